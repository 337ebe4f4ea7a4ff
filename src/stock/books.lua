-- Snapshot of what Redis holds of an item; read-only.
--
-- KEYS  counter, book, books
-- Returns the counter, fields of the book, the earlier books, this life of the data.
return {
  redis.call('GET', KEYS[1]),
  redis.call('HMGET', KEYS[2], 'epoch', 'serial', 'left', 'seeded', 'shut', 'run', 'term'),
  redis.call('HGETALL', KEYS[3]),
  life() or '',
}
