-- For wrk: every request is an attempt of another buyer, by its Idempotency-Key.
dofile("bench/report.lua")
local threads = 0
function setup(thread)
  threads = threads + 1
  thread:set('number', threads)
end
function init()
  math.randomseed(os.time() + number)
  run, count = string.format('%d-%08x', number, math.random(0, 0x7fffffff)), 0
end
function request()
  count = count + 1
  return wrk.format('POST', nil, { ['Idempotency-Key'] = run .. '-' .. count })
end
