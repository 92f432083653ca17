-- A circuit breaker: counts what coordinators report, opens, lets a few through to try, closes again.
--
-- One call is one moment: the look, the change of state, the gate that owners and workers read, and the audit entry. Time is the
-- server's.
--
-- KEYS[1]   hash: this breaker
-- KEYS[2]   hash: gates that are not simply open to everybody
-- KEYS[3]   sorted set: breakers by the time they were last heard of
-- KEYS[4]   stream: audit
-- ARGV[1]   the gate's name
-- ARGV[2]   report | take | open | close | reset
-- ARGV[3..10] its policy: enabled (0 or 1), failures, ratio, minimum calls, window ms, break ms, longest break ms, canaries
-- report    ARGV[11..15]: successes, failures, failures before the first success, most failures in a row, failures after the
--           last success (each is the weight of failures; without a success the last three are all of them);
--           then pairs of token and ok | failed | none | held: what became of canaries
-- take      ARGV[11]: how long a token holds, in ms; then tokens that are wished for
-- open, close, reset   ARGV[11]: actor, ARGV[12]: reason; open: ARGV[13]: for how long in ms, 0 until somebody closes it
-- Replies   report, open, close, reset: the state and whether it changed (0 or 1); take: the tokens that were granted
--
-- Bounded work: some 40 fields and at most 100 tokens.
local SLOTS, RAMP, KEEP, KNOWN, LEASE = 10, 10000, 86400000, 10000, 30000
local gate, op = ARGV[1], ARGV[2]
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local h = {}
local flat = redis.call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do h[flat[i]] = flat[i + 1] end
local p = { on = ARGV[3] == '1', failures = tonumber(ARGV[4]), ratio = tonumber(ARGV[5]), min = tonumber(ARGV[6]),
  window = tonumber(ARGV[7]), span = tonumber(ARGV[8]), cap = tonumber(ARGV[9]), canaries = tonumber(ARGV[10]) }
local function num(field) return tonumber(h[field] or 0) end
local before = h.state or 'closed'
local state = before

local function put(field, value)
  h[field] = tostring(value)
  redis.call('HSET', KEYS[1], field, string.format('%.0f', value))
end

local function drop_tokens()
  for field in pairs(h) do
    if string.sub(field, 1, 2) == 'c:' then redis.call('HDEL', KEYS[1], field) end
  end
  for field in pairs(h) do if string.sub(field, 1, 2) == 'c:' then h[field] = nil end end
end

local function forget_window()
  for i = 0, SLOTS - 1 do redis.call('HDEL', KEYS[1], 'b' .. i, 'o' .. i, 'f' .. i) ; h['b' .. i] = nil end
  put('row', 0)
end

-- Moves to a state and tells everybody.
local function enter(new, until_ms, actor, reason)
  state = new
  redis.call('HSET', KEYS[1], 'state', new, 'actor', actor, 'reason', reason)
  put('since', now) ; put('until', until_ms)
  if new == 'closed' then
    redis.call('HDEL', KEYS[2], gate)
  else
    redis.call('HSET', KEYS[2], gate, cmsgpack.pack({ v = 1, stand = new, since_ms = now, until_ms = until_ms,
      canaries = p.canaries, reason = reason, actor = actor }))
  end
  redis.call('XADD', KEYS[4], '*', 'm', cmsgpack.pack({ v = 1, actor = actor, action = 'breaker.' .. new,
    target = 'breaker:' .. gate, reason = reason, outcome = 'done', at_ms = now }))
end

local function open(reason)
  -- One that fails again soon after it closed stays open for longer.
  local trips = num('trips')
  if state == 'closed' and now - num('since') > p.span then trips = 0 end
  local span = math.min(p.span * 2 ^ math.min(trips, 30), p.cap)
  put('trips', trips + 1) ; put('opened', now)
  drop_tokens() ; forget_window()
  enter('open', now + span, 'breaker', reason)
end

local function try()
  put('passed', 0)
  drop_tokens()
  enter('half_open', 0, 'breaker', 'the time is over; a few jobs try')
end

local function recover(actor, reason)
  drop_tokens() ; forget_window()
  enter('recovering', now + RAMP, actor, reason)
end

-- What time alone changes.
if state == 'open' and num('until') > 0 and now >= num('until') then try() end
if state == 'recovering' and now >= num('until') then enter('closed', 0, 'breaker', 'recovered') end

if op == 'report' then
  local ok, failed = tonumber(ARGV[11]), tonumber(ARGV[12])
  local first, most, last = tonumber(ARGV[13]), tonumber(ARGV[14]), tonumber(ARGV[15])
  if (state == 'closed' or state == 'recovering') and ok + failed > 0 then
    local bucket = math.floor(now * SLOTS / p.window)
    local slot = bucket % SLOTS
    if num('b' .. slot) ~= bucket then put('b' .. slot, bucket) ; put('o' .. slot, 0) ; put('f' .. slot, 0) end
    put('o' .. slot, num('o' .. slot) + ok) ; put('f' .. slot, num('f' .. slot) + failed)
    local calls, bad = 0, 0
    for i = 0, SLOTS - 1 do
      if num('b' .. i) > bucket - SLOTS then calls = calls + num('o' .. i) + num('f' .. i) ; bad = bad + num('f' .. i) end
    end
    local row = math.max(num('row') + first, most)
    put('row', ok > 0 and last or num('row') + failed)
    if p.on and failed > 0 and calls >= p.min then
      if row >= p.failures then
        open(string.format('%d failures in a row', row))
      elseif bad / calls >= p.ratio then
        open(string.format('%d of %d calls failed', bad, calls))
      end
    end
  end
  local lost = false
  for i = 16, #ARGV, 2 do
    local field, verdict = 'c:' .. ARGV[i], ARGV[i + 1]
    if state == 'half_open' and h[field] then
      if verdict == 'held' then
        put(field, now + LEASE)
      else
        redis.call('HDEL', KEYS[1], field) ; h[field] = nil
        if verdict == 'ok' then put('passed', num('passed') + 1) end
        lost = lost or verdict == 'failed'
      end
    end
  end
  if state == 'half_open' and lost then
    open('a job that tried has failed')
  elseif state == 'half_open' and num('passed') >= p.canaries then
    recover('breaker', string.format('%d jobs that tried have succeeded', num('passed')))
  end
elseif op == 'open' then
  local span = tonumber(ARGV[13])
  drop_tokens() ; put('opened', now)
  enter('open', span > 0 and now + span or 0, ARGV[11], ARGV[12])
elseif op == 'close' and state ~= 'closed' then
  put('trips', 0)
  recover(ARGV[11], ARGV[12])
elseif op == 'reset' then
  put('trips', 0) ; drop_tokens() ; forget_window()
  enter('closed', 0, ARGV[11], ARGV[12])
end

-- One of very many names is not worth being remembered.
if state ~= 'closed' or redis.call('ZCARD', KEYS[3]) < KNOWN or redis.call('ZSCORE', KEYS[3], gate) then
  redis.call('ZADD', KEYS[3], now, gate)
end
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - KEEP)
if state == 'closed' then redis.call('PEXPIRE', KEYS[1], KEEP) else redis.call('PERSIST', KEYS[1]) end

if op == 'take' then
  local granted, live = {}, num('passed')
  for field, ends in pairs(h) do
    if string.sub(field, 1, 2) == 'c:' then
      if tonumber(ends) > now then live = live + 1 else redis.call('HDEL', KEYS[1], field) end
    end
  end
  for i = 12, #ARGV do
    if state ~= 'half_open' or live >= p.canaries then break end
    put('c:' .. ARGV[i], now + tonumber(ARGV[11]))
    granted[#granted + 1] = ARGV[i]
    live = live + 1
  end
  return granted
end
return { state, state ~= before and 1 or 0 }
