-- Writes a new version of the fleet's policies, if the present one is the expected one, with its audit entry.
--
-- Comparison, policies, their copy and the audit entry are one call: of two operators who change the same version one is told,
-- and no change is without its entry.
--
-- KEYS[1]   hash: the present policies
-- KEYS[2]   stream: the audit
-- KEYS[3]   hash: the copy of the new version
-- KEYS[4]   hash: the copy that is too old to be kept
-- ARGV[1]   the expected version; 0 if there must be none
-- ARGV[2]   the policies
-- ARGV[3]   when, in Unix milliseconds
-- ARGV[4]   who
-- ARGV[5]   why; empty for no reason
-- ARGV[6]   the audit entry
-- Replies   the new version; minus the present version less one, if it is another than expected, and nothing was done
--
-- Bounded work: five commands.
local found = tonumber(redis.call('HGET', KEYS[1], 'version') or '0')
if found ~= tonumber(ARGV[1]) then
  return -found - 1
end
local version = found + 1
for _, key in ipairs({KEYS[1], KEYS[3]}) do
  redis.call('HSET', key, 'version', version, 'doc', ARGV[2], 'at', ARGV[3], 'actor', ARGV[4], 'reason', ARGV[5])
end
redis.call('UNLINK', KEYS[4])
redis.call('XADD', KEYS[2], '*', 'm', ARGV[6])
return version
