-- Deletes a consumer of a job stream, if nothing is pending at it.
--
-- Look and deletion are one call: deleting a consumer drops what is pending at it, and an entry that is delivered between
-- a look and a deletion of their own would be lost. (WATCH does not notice a delivery.)
--
-- KEYS[1]   stream: the job stream
-- ARGV[1]   the group
-- ARGV[2]   the consumer
-- Replies   1: deleted, or there was none; 0: something is pending, and nothing was done
-- Refused   NOGROUP, if there is no such stream or group
--
-- Bounded work: one pending entry is looked at.
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then
  return 0
end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1
