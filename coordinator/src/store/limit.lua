-- A limit of the whole fleet: what each partition has of it.
--
-- A partition says what it has in use and what more it wants. What it has is set and not changed by a difference, so that a call
-- that is lost or repeated leaks nothing: the next one says how it is. Only an older reign, or an older call, of the partition
-- is not heard, as long as the newer one speaks. Time is the server's.
--
-- KEYS[1]   hash: p:<partition> = six doubles: reign, call, used, wanted, since (us), at (ms); next: when the rate's next permit is
--           due, in us
-- ARGV[1..3] partition, counter of the reign, number of the call in it
-- ARGV[4..5] permits in use, permits wanted on top
-- ARGV[6..8] permits in use at once in the fleet (0: any number), us between two permits (0: no rate), permits at once (burst)
-- Replies   { 1 if it was heard, permits granted, permits that it may use again and again, ms until more may be granted }
--
-- Of places, who has waited longest comes first. While others wait nobody gets more than an equal share, unless they have
-- theirs; and what a partition has beyond what everybody can have goes back to all whenever a job ends. Of a rate, whoever asks
-- first: all ask equally often.
--
-- Bounded work: one field for each partition that has or wants something, at most 4096.
local PACK, FRESH, SPEAKS, GONE, KEEP = '>dddddd', 3000, 10000, 60000, 86400000
local part, reign, call = 'p:' .. ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local used, want = tonumber(ARGV[4]), tonumber(ARGV[5])
local most, every, burst = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local t = redis.call('TIME')
local now_us = t[1] * 1000000 + t[2]
local now = math.floor(now_us / 1000)
local unpack, floor, max, min = struct.unpack, math.floor, math.max, math.min

local others, active, since, waiting, next_us = 0, 1, now_us, {}, 0
local flat = redis.call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do
  if flat[i] == 'next' then
    next_us = tonumber(flat[i + 1])
  else
    local r, c, u, w, s, at = unpack(PACK, flat[i + 1])
    if flat[i] == part then
      if now - at < SPEAKS and (r > reign or (r == reign and c >= call)) then return { 0, 0, 0, 0 } end
      if w > 0 then since = s end
    elseif now - at >= GONE then
      -- Whoever has something says so twice a second: this was said by an owner that is none any more.
      redis.call('HDEL', KEYS[1], flat[i])
    else
      others = others + u
      -- Who wanted something and does not say so any more has it.
      local waits = w > 0 and now - at < FRESH
      if u > 0 or waits then active = active + 1 end
      if waits then waiting[#waiting + 1] = { s, w, u } end
    end
  end
end

local room, keep = want, most
if most > 0 then
  room = min(room, max(most - others - used, 0))
  local share, ahead, behind = math.ceil(most / active), 0, 0
  for _, other in ipairs(waiting) do
    -- One that has its share already stands behind everybody.
    local need = min(other[2], max(share - other[3], 0))
    if other[1] < since then ahead = ahead + need else behind = behind + need end
  end
  room = max(room - ahead, 0)
  local own = max(share - used, used == 0 and 1 or 0)
  if room > own then room = max(own, room - behind) end
  if ahead + behind > 0 then keep = floor(most / active) end
  -- After the limit was lowered nothing begins until enough has ended.
  keep = min(keep, max(most - others, 0))
end
local granted, due = max(floor(room), 0), 0
if every > 0 then
  -- A permit that was due under a slower rate, or by a clock that was set back, is due by this one.
  next_us = min(max(next_us, now_us), now_us + burst * every)
  granted = min(granted, max(floor((now_us + burst * every - next_us) / every), 0))
  next_us = next_us + granted * every
  due = max(math.ceil((next_us + every - burst * every - now_us) / 1000), 0)
  redis.call('HSET', KEYS[1], 'next', string.format('%.0f', next_us))
end
local left = want - granted
if used + granted + left > 0 then
  local from = granted > 0 and now_us or since
  redis.call('HSET', KEYS[1], part, struct.pack(PACK, reign, call, used + granted, left, from, now))
elseif #flat > 0 then
  redis.call('HDEL', KEYS[1], part)
end
redis.call('PEXPIRE', KEYS[1], KEEP)
return { 1, granted, keep, due }
