-- A limit of the whole fleet: what each partition has of it.
--
-- A partition says what it has in use and what more it wants. What it has is set and not changed by a difference, so that a call
-- that is lost or repeated leaks nothing: the next one says how it is. Only an older reign, or an older call, of the partition
-- is not heard. Time is the server's.
--
-- KEYS[1]   hash: p:<partition> = "reign call used wanted since at" (since in us, at in ms); next: when the rate's next permit is due, in us
-- ARGV[1..3] partition, counter of the reign, number of the call in it
-- ARGV[4..5] permits in use, permits wanted on top
-- ARGV[6..8] permits in use at once in the fleet (0: any number), us between two permits (0: no rate), permits at once (burst)
-- Replies   { 1 if it was heard, permits granted, permits that it may use again and again, ms until more may be granted }
--
-- Who has waited longest comes first. While others wait nobody gets more than an equal share, and what a partition has beyond
-- what everybody can have goes back to all whenever a job ends.
--
-- Bounded work: one field for each partition that has or wants something, at most 4096.
local FRESH, KEEP = 3000, 86400000
local part, reign, call = 'p:' .. ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local used, want = tonumber(ARGV[4]), tonumber(ARGV[5])
local most, every, burst = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local t = redis.call('TIME')
local now_us = t[1] * 1000000 + t[2]
local now = math.floor(now_us / 1000)

local others, active, since, waiting, next_us = 0, 1, now_us, {}, 0
local flat = redis.call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do
  if flat[i] == 'next' then
    next_us = tonumber(flat[i + 1])
  else
    local r, c, u, w, s, at = string.match(flat[i + 1], '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
    r, c, u, w, s, at = tonumber(r), tonumber(c), tonumber(u), tonumber(w), tonumber(s), tonumber(at)
    if flat[i] == part then
      if r > reign or (r == reign and c >= call) then return { 0, 0, 0, 0 } end
      if w > 0 then since = s end
    else
      others = others + u
      -- Who wanted something and does not say so any more is gone, or has it.
      local waits = w > 0 and now - at < FRESH
      if u > 0 or waits then active = active + 1 end
      if waits then waiting[#waiting + 1] = { s, w, u } end
    end
  end
end

local room = want
if most > 0 then room = math.min(room, math.max(most - others - used, 0)) end
local due = 0
if every > 0 then
  next_us = math.max(next_us, now_us)
  local ready = math.floor((now_us + burst * every - next_us) / every)
  room = math.min(room, math.max(ready, 0))
end
local share = most > 0 and math.ceil(most / active) or want
for _, other in ipairs(waiting) do
  -- One that has its share already stands behind everybody.
  if other[1] < since then room = room - math.min(other[2], math.max(share - other[3], 0)) end
end
if most > 0 and #waiting > 0 then room = math.min(room, math.max(share - used, used == 0 and 1 or 0)) end
local granted = math.max(math.floor(room), 0)
if every > 0 then
  next_us = next_us + granted * every
  due = math.max(math.ceil((next_us + every - burst * every - now_us) / 1000), 0)
  redis.call('HSET', KEYS[1], 'next', string.format('%.0f', next_us))
end
local left = want - granted
if used + granted + left > 0 then
  local from = granted > 0 and now_us or since
  redis.call('HSET', KEYS[1], part,
    string.format('%.0f %.0f %.0f %.0f %.0f %.0f', reign, call, used + granted, left, from, now))
elseif #flat > 0 then
  redis.call('HDEL', KEYS[1], part)
end
redis.call('PEXPIRE', KEYS[1], KEEP)
local keep = most
if #waiting > 0 then keep = math.floor(most / active) end
return { 1, granted, keep, due }
