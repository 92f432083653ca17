-- Pauses or resumes a queue: the gate that owners and workers read, and the audit entry, in one call.
--
-- KEYS[1]   hash: gates that are not simply open to everybody
-- KEYS[2]   stream: audit
-- ARGV[1]   the gate's name, `queue:<name>`
-- ARGV[2]   pause | resume
-- ARGV[3]   actor
-- ARGV[4]   reason
-- Replies   1: done; 0: it was so already, and only the audit entry is written
--
-- Bounded work: one field.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local was = redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1
local changed = was == (ARGV[2] == 'resume')
if changed and ARGV[2] == 'pause' then
  redis.call('HSET', KEYS[1], ARGV[1], cmsgpack.pack({ v = 1, stand = 'paused', since_ms = now, until_ms = 0, canaries = 0,
    reason = ARGV[4], actor = ARGV[3] }))
elseif changed then
  redis.call('HDEL', KEYS[1], ARGV[1])
end
redis.call('XADD', KEYS[2], '*', 'm', cmsgpack.pack({ v = 1, actor = ARGV[3], action = 'queue.' .. ARGV[2],
  target = ARGV[1], reason = ARGV[4], outcome = changed and 'done' or { refused = 'it was so already' }, at_ms = now }))
return changed and 1 or 0
