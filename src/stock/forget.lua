-- Removes what is kept of earlier sales, and of an item that is over.
--
-- KEYS  counter, book, books, outbox, attempts
-- ARGV  1: everything of the item, if it is not on sale; then epochs of earlier sales
-- Returns whether nothing of the item is left.
local COUNTER, BOOK, BOOKS, OUTBOX, ATTEMPTS = unpack(KEYS)
if #ARGV > 1 then redis.call('HDEL', BOOKS, unpack(ARGV, 2)) end
if redis.call('EXISTS', COUNTER) == 1 then return 0 end
if ARGV[1] == '1' and redis.call('EXISTS', OUTBOX) == 0 then
  redis.call('UNLINK', BOOK, ATTEMPTS)
end
return redis.call('EXISTS', BOOK, BOOKS, OUTBOX, ATTEMPTS) == 0 and 1 or 0
