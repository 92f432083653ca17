-- Says what operators want of a campaign, with the audit entry, in one call.
--
-- A campaign that was cancelled stays so, also if a resume and the runner meet.
--
-- KEYS[1]   hash: the campaign
-- KEYS[2]   stream: the audit
-- ARGV[1]   running | paused | cancelled
-- ARGV[2]   the audit entry
-- Replies   1: done; 0: it is gone, is ending or has ended, and nothing was written
--
-- Bounded work: four commands.
local want = redis.call('HGET', KEYS[1], 'want')
local phase = redis.call('HGET', KEYS[1], 'phase')
if not want or (want == 'cancelled' and ARGV[1] ~= 'cancelled') then
  return 0
end
-- The same call again, perhaps: it has its entry.
if want == ARGV[1] then
  return 1
end
if phase == 'completed' or phase == 'stopping' or phase == 'stopped' or phase == 'cancelled' then
  return 0
end
redis.call('HSET', KEYS[1], 'want', ARGV[1])
redis.call('XADD', KEYS[2], '*', 'm', ARGV[2])
return 1
