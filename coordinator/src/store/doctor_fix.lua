-- Puts one thing of a job stream right, with its audit entry: no repair is without one, and what needs none has none.
--
-- KEYS[1]   stream: jobs
-- KEYS[2]   stream: the partition's audit
-- ARGV[1]   group | consumer
-- ARGV[2]   the group
-- ARGV[3]   group: the id behind which it begins; consumer: whose it is
-- ARGV[4]   the audit entry
-- Replies   1: done; 0: there was nothing to do, or something is pending at the consumer
--
-- Bounded work: a look at the groups of one stream, and two commands.
local group = false
for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  for i = 1, #info, 2 do group = group or (info[i] == 'name' and info[i + 1] == ARGV[2]) end
end
if ARGV[1] == 'group' then
  if group then return 0 end
  redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[2], ARGV[3])
else
  if not group or #redis.call('XPENDING', KEYS[1], ARGV[2], '-', '+', 1, ARGV[3]) > 0 then return 0 end
  local there = false
  for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[2])) do
    for i = 1, #info, 2 do there = there or (info[i] == 'name' and info[i + 1] == ARGV[3]) end
  end
  if not there then return 0 end
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[2], ARGV[3])
end
redis.call('XADD', KEYS[2], '*', 'm', ARGV[4])
return 1
