-- Opens a sale that was shut under this id, on the Redis that was looked at.
--
-- KEYS  counter, book, outbox, attempts, attempts to put in their place
-- ARGV  id, run, term, and to set the book anew: epoch, serial, left
-- Returns 1, or 0 when somebody else shut it since, or this is another Redis.
local COUNTER, BOOK, OUTBOX, ATTEMPTS, NEW = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local here = redis.call('INFO', 'server'):match('run_id:(%x+)') or ''
if redis.call('HGET', BOOK, 'shut') ~= ARGV[1] or here ~= ARGV[2] then return 0 end
if ARGV[4] then
  local seeded = string.format('%.0f', tonumber(ARGV[5]) + tonumber(ARGV[6]))
  redis.call('HSET', BOOK, 'epoch', ARGV[4], 'serial', ARGV[5], 'left', ARGV[6], 'seeded', seeded)
  redis.call('SET', COUNTER, ARGV[6])
  redis.call('DEL', ATTEMPTS)
  if redis.call('EXISTS', NEW) == 1 then
    redis.call('RENAME', NEW, ATTEMPTS)
    redis.call('PERSIST', ATTEMPTS)
  end
end
-- All that stood in it is in the ledger by now.
redis.call('DEL', OUTBOX)
redis.call('HSET', BOOK, 'run', here, 'term', ARGV[3])
redis.call('HDEL', BOOK, 'shut')
return 1
