-- Begins a campaign over dead letters: its definition, its place in the lists and its audit entry, in one call.
--
-- The id comes from the client: a repeated begin finds the campaign and changes nothing. Of several that begin at the same time
-- no more than are allowed do.
--
-- KEYS[1]   hash: the campaign
-- KEYS[2]   sorted set: the campaigns that go on
-- KEYS[3]   sorted set: all campaigns
-- KEYS[4]   stream: the audit
-- ARGV[1]   its id
-- ARGV[2]   its definition
-- ARGV[3]   when, in Unix milliseconds
-- ARGV[4]   how many may go on at the same time
-- ARGV[5]   the audit entry
-- Replies   1: it begins; 0: it began before; -1: too many go on
--
-- Bounded work: six commands.
if redis.call('HEXISTS', KEYS[1], 'd') == 1 then
  return 0
end
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[4]) then
  return -1
end
redis.call('HSET', KEYS[1], 'd', ARGV[2], 'want', 'running', 'phase', 'running')
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[1])
redis.call('XADD', KEYS[4], '*', 'm', ARGV[5])
return 1
