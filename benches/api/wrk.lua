-- What wrk sends: wrk ... -- TAG MODE
--   new       orders under keys that nobody used before
--   repeated  orders under the keys of a small pool, over and over: the first round creates them,
--             every later one is a replay
--   mixed     of 20 requests 18 new, 1 repeated and 1 with a key of the pool and another amount
--   health    GET /healthz
-- One line `RESULT {…}` at the end says what came of it.

local POOL = 2000 -- keys per thread
local HEADERS = "Host: orders\r\nContent-Type: application/json\r\nIdempotency-Key: "
local BODY = '{"customerId":42,"amountCents":%d,"customerEmail":"customer@example.com"}'

local threads = {}

function setup(thread)
  table.insert(threads, thread)
  thread:set("id", #threads)
end

local function post(amount)
  local body = string.format(BODY, amount)
  local tail = "\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
  return function(key) return "POST /orders HTTP/1.1\r\n" .. HEADERS .. key .. tail end
end

function init(args)
  local tag, mode = args[1], args[2]
  local count = 0
  local order, other = post(2599), post(2600)
  conflicts = 0
  math.randomseed(id * 7919)

  -- Random at the front, as keys of clients are, so that the index is not filled from one end;
  -- unique by what follows.
  local function new()
    count = count + 1
    return order(string.format("%08x-%s-%d-%d", math.random(0, 0x7fffffff), tag, id, count))
  end
  local function pooled()
    count = count + 1
    return string.format("%s-pool-%d-%d", tag, id, count % POOL)
  end

  if mode == "new" then
    request = new
  elseif mode == "repeated" then
    request = function() return order(pooled()) end
  elseif mode == "mixed" then
    request = function()
      local turn = count % 20
      if turn == 0 then return order(pooled()) end
      if turn == 10 then return other(pooled()) end
      return new()
    end
    -- Elsewhere a conflict is an error like any other, and looking at each answer is saved.
    response = function(status)
      if status == 409 then conflicts = conflicts + 1 end
    end
  else
    request = function() return "GET /healthz HTTP/1.1\r\nHost: orders\r\n\r\n" end
  end
end

function done(summary, latency, requests)
  local conflicts = 0
  for _, thread in ipairs(threads) do conflicts = conflicts + thread:get("conflicts") end
  local e = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"micros":%d,"p50":%d,"p99":%d,"p999":%d,"conflicts":%d,"refused":%d,"broken":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    latency:percentile(99.9), conflicts, e.status - conflicts, e.connect + e.read + e.write + e.timeout))
end
