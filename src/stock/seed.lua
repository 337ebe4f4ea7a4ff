-- Begins a new sale: moves the old book to the earlier ones, sets a new epoch, drops attempts. The outbox
-- stays: its entries carry their own epoch.
--
-- KEYS  counter, book, books, attempts
-- ARGV  epoch, units
local COUNTER, BOOK, BOOKS, ATTEMPTS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

local function whole(value)
  if value and (value == '0' or value:match('^[1-9]%d*$')) then
    local number = tonumber(value)
    if number <= 9007199254740991 then return number end
  end
  return 0
end
local function text(number)
  return string.format('%.0f', number)
end
local function kind(key, wanted)
  local is = redis.call('TYPE', key).ok
  return is == 'none' or is == wanted
end
if not kind(BOOK, 'hash') then return redis.error_reply('BADKEY ' .. BOOK .. ': not a hash') end
if not kind(BOOKS, 'hash') then return redis.error_reply('BADKEY ' .. BOOKS .. ': not a hash') end

local run = life()
if not run then return NO_LIFE end
local epoch, last, shut = unpack(redis.call('HMGET', BOOK, 'epoch', 'run', 'shut'))
-- Seeded already, as the running sale or an earlier one: a late or repeated call.
if epoch == ARGV[1] or redis.call('HEXISTS', BOOKS, ARGV[1]) == 1 then return 0 end
if shut or (epoch and last ~= run) then
  return redis.error_reply('SHUT the books of ' .. COUNTER .. ' are not complete, or not checked yet')
end
-- Of two concurrent seeds the later wins, here as in the ledger: epochs begin with the time.
if epoch and #epoch == 36 and epoch > ARGV[1] then
  return redis.error_reply('OUTDATED another sale of ' .. COUNTER .. ' was begun in the same moment, ' .. epoch)
end
local stands = redis.pcall('GET', COUNTER)
if epoch then
  -- Withdraws what was left; counts an operator's changes since the last batch.
  local book = redis.call('HMGET', BOOK, 'serial', 'left', 'seeded')
  local serial, left, seeded = whole(book[1]), whole(book[2]), whole(book[3])
  local now = type(stands) == 'string' and whole(stands) or 0
  redis.call('HSET', BOOKS, epoch, table.concat({ text(serial), text(now), text(seeded + now - left) }, ' '))
end
redis.call('SET', COUNTER, ARGV[2])
-- UNLINK, not DEL: freeing millions of winners blocks Redis for a second.
redis.call('UNLINK', ATTEMPTS, BOOK)
redis.call('HSET', BOOK, 'epoch', ARGV[1], 'serial', '0', 'left', ARGV[2], 'seeded', ARGV[2],
  'term', '0', 'run', run)
return 1
