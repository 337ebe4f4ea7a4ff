-- Settles, looks up and takes, for a batch of attempts of one item.
--
-- Reads and checks every key before the first write: Redis does not roll back a failed script.
--
-- KEYS  counter, book, outbox, attempts
-- ARGV  offered epoch, micros now, batch, may take (1/0),
--       anonymous attempts, their outbox lines (37 bytes each),
--       named attempts n, n names, n orders, settled batches …
local COUNTER, BOOK, OUTBOX, ATTEMPTS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local LINE = 37
-- The largest exact integer in Lua.
local MAX = 9007199254740991

local function wrong(key, why)
  return redis.error_reply('BADKEY ' .. key .. ': ' .. why)
end
-- `tostring` is exact to 14 digits only.
local format = string.format
local function text(number)
  return format('%d', number)
end
local function whole(value)
  if value and (value == '0' or value:match('^%-?[1-9]%d*$')) then
    local number = tonumber(value)
    if number <= MAX and number >= -MAX then return number end
  end
end

local named = tonumber(ARGV[7])
local anonymous = tonumber(ARGV[5])

-- Read.
local counter = redis.pcall('GET', COUNTER)
if type(counter) == 'table' then return wrong(COUNTER, 'not a string') end
local stands = 0
if counter then
  stands = whole(counter)
  if not stands then return wrong(COUNTER, 'not a whole number') end
  if stands < 0 then stands = 0 end
end

local book = redis.pcall('HMGET', BOOK, 'epoch', 'serial', 'left', 'seeded', 'term', 'run', 'shut')
if book.err then return wrong(BOOK, 'not a hash') end
local epoch, serial, left, seeded, term = book[1], whole(book[2]), whole(book[3]), whole(book[4]), book[5]
local run, shut = book[6], book[7]
local function count(value)
  return value and value >= 0
end
if epoch and not (#epoch == 36 and count(serial) and count(left) and count(seeded) and count(whole(term))
    and seeded + stands - left <= MAX) then
  return wrong(BOOK, 'something in it is missing or wrong')
end
-- A book without its epoch was edited by hand; it is no new sale.
if not epoch and (book[2] or book[3] or book[4]) then return wrong(BOOK, 'its epoch is missing') end

local open = redis.pcall('HLEN', OUTBOX)
if type(open) == 'table' then return wrong(OUTBOX, 'not a hash') end
-- Checked without named attempts too: an item is unavailable to all or to none.
if type(redis.pcall('HLEN', ATTEMPTS)) == 'table' then return wrong(ATTEMPTS, 'not a hash') end

-- Data that was restarted, replaced or restored is not trusted until its books are proven complete.
local here = life()
if not here then return NO_LIFE end
if shut or (epoch and run ~= here) then
  local settled = 8 + 2 * named
  if ARGV[settled] then open = open - redis.call('HDEL', OUTBOX, unpack(ARGV, settled)) end
  return { -2, epoch or '', term or '0', 0, 0, 0, open, {}, {}, 0 }
end

local known = {}
if named > 0 then
  known = redis.call('HMGET', ATTEMPTS, unpack(ARGV, 8, 7 + named))
end

-- Decide.
local dirty = false
if not epoch and counter then
  epoch, serial, left, seeded, term = ARGV[1], 0, stands, stands, '0'
  run, dirty = here, true
elseif epoch and stands ~= left then
  -- An operator's changes since the last batch.
  seeded, left, dirty = seeded + stands - left, stands, true
end

local may = counter and ARGV[4] == '1'
local units = may and left or 0
-- An outcome is the index among those taken, 0 for none, or the known record.
local outcomes, lines, names, mine, entries, shown = {}, {}, {}, {}, {}, {}
local taken, batch = 0, ' ' .. ARGV[3]
for i = 1, named do
  local name, record = ARGV[7 + i], known[i]
  if record then
    local of = record:sub(-36)
    local entry = redis.call('HGET', OUTBOX, of)
    outcomes[i] = (entry and 'o' or 'k') .. record
    if entry and not shown[of] then
      shown[of] = true
      entries[#entries + 1] = of
      entries[#entries + 1] = entry
    end
  elseif mine[name] then
    outcomes[i] = mine[name]
  elseif taken < units then
    local order = ARGV[7 + named + i]
    taken = taken + 1
    lines[taken] = order .. ' ' .. name .. '\n'
    mine[name] = taken
    outcomes[i] = taken
    names[2 * taken - 1] = name
    names[2 * taken] = order .. ' ' .. format('%d', left - taken) .. batch
  else
    outcomes[i] = 0
  end
end
local unnamed = math.min(anonymous, units - taken)
taken = taken + unnamed

-- Write: the counter first, since a Redis out of memory refuses only the first write.
local first, remaining = 0, 0
if taken > 0 then
  first, remaining = serial + 1, left - 1
  redis.call('DECRBY', COUNTER, text(taken))
  serial, left, dirty = serial + taken, left - taken, true
end
if dirty then
  redis.call('HSET', BOOK, 'epoch', epoch, 'serial', text(serial), 'left', text(left),
    'seeded', text(seeded), 'term', term, 'run', run)
end
if taken > 0 then
  local head = table.concat({ epoch, term, text(first), text(remaining), ARGV[2] }, ' ') .. '\n'
  redis.call('HSET', OUTBOX, ARGV[3], head .. table.concat(lines) .. ARGV[6]:sub(1, unnamed * LINE))
  open = open + 1
end
if #names > 0 then redis.call('HSET', ATTEMPTS, unpack(names)) end
local settled = 8 + 2 * named
if ARGV[settled] then open = open - redis.call('HDEL', OUTBOX, unpack(ARGV, settled)) end

return { counter and left or -1, epoch or '', term or '0', first, remaining, unnamed, open, outcomes, entries, serial or 0 }
