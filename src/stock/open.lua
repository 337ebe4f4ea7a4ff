-- Opens a sale claimed under this id, in the life of the data that was checked.
--
-- KEYS  counter, book, books, outbox, attempts, attempts to put in their place
-- ARGV  id, life, term, and to rebuild the book: epoch, serial, left
-- Returns 1, or 0 when the claim is another's by now, or this is another life.
local COUNTER, BOOK, BOOKS, OUTBOX, ATTEMPTS, NEW = unpack(KEYS)
local here = life()
if not here then return NO_LIFE end
local epoch, shut = unpack(redis.call('HMGET', BOOK, 'epoch', 'shut'))
if shut ~= ARGV[1] or here ~= ARGV[2] then return 0 end
if ARGV[4] then
  if epoch and epoch ~= ARGV[4] then
    -- An operator chose another sale: keep this one's books with the earlier ones.
    local book = redis.call('HMGET', BOOK, 'serial', 'left', 'seeded')
    redis.call('HSET', BOOKS, epoch, table.concat({ book[1] or '0', book[2] or '0', book[3] or '0' }, ' '))
  end
  redis.call('HDEL', BOOKS, ARGV[4])
  local seeded = string.format('%.0f', tonumber(ARGV[5]) + tonumber(ARGV[6]))
  redis.call('HSET', BOOK, 'epoch', ARGV[4], 'serial', ARGV[5], 'left', ARGV[6], 'seeded', seeded)
  redis.call('SET', COUNTER, ARGV[6])
  -- UNLINK, not DEL: freeing millions of fields blocks Redis for a second.
  redis.call('UNLINK', ATTEMPTS)
  if redis.call('EXISTS', NEW) == 1 then
    redis.call('RENAME', NEW, ATTEMPTS)
    redis.call('PERSIST', ATTEMPTS)
  end
end
-- Its entries are all in the ledger by now, or void.
redis.call('UNLINK', OUTBOX)
redis.call('HSET', BOOK, 'run', here, 'term', ARGV[3])
redis.call('HDEL', BOOK, 'shut', 'beat', 'next')
return 1
