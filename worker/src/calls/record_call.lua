-- Writes the record of an external call, if what is there is what its writer last saw.
--
-- Two attempts may hold the same call: one whose worker was taken for dead, and the one that took its place. Look and write
-- are one call, so that the first of them never writes over what the second found out. A write whose reply was lost may be
-- repeated.
--
-- KEYS[1]   hash: the calls of the run
-- ARGV[1]   the field of the call
-- ARGV[2]   the record that was last seen; empty for none
-- ARGV[3]   the new record
-- ARGV[4]   the field that counts the records of the step and generation
-- ARGV[5]   how many records these may have
-- ARGV[6]   the key of the run, a hash in the same slot; its calls go with it, and none is written after it. It is no key of the
--           call because a server asks for the right to write all of those, and a worker may only see that a run is there.
-- Replies   `written`; `other`: something else is there; `full`: there are as many records as there may be;
--           `gone`: there is no such run. But for `written` nothing was done.
--
-- Bounded work: three fields.
local found = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if found == ARGV[3] then
  return 'written'
end
if found ~= ARGV[2] then
  return 'other'
end
if redis.call('EXISTS', ARGV[6]) == 0 then
  return 'gone'
end
if found == '' then
  if tonumber(redis.call('HGET', KEYS[1], ARGV[4]) or '0') >= tonumber(ARGV[5]) then
    return 'full'
  end
  redis.call('HINCRBY', KEYS[1], ARGV[4], 1)
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 'written'
