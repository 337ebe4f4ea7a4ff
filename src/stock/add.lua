-- Adds units to a running sale.
--
-- KEYS  counter, book
-- ARGV  units
-- Returns what is left then, or false when nothing is on sale.
local COUNTER, BOOK = KEYS[1], KEYS[2]
local counter = redis.pcall('GET', COUNTER)
if type(counter) == 'table' then return redis.error_reply('BADKEY ' .. COUNTER .. ': not a string') end
local is = redis.call('TYPE', BOOK).ok
if is ~= 'hash' and is ~= 'none' then return redis.error_reply('BADKEY ' .. BOOK .. ': not a hash') end
local here = life()
if not here then return NO_LIFE end
local epoch, run, shut = unpack(redis.call('HMGET', BOOK, 'epoch', 'run', 'shut'))
-- A rebuild of the books would lose what is added meanwhile.
if shut or (epoch and run ~= here) then
  return redis.error_reply('SHUT the books of ' .. COUNTER .. ' are being checked, or lack something')
end
if not counter then return false end
local stands = (counter == '0' or counter:match('^%-?[1-9]%d*$')) and tonumber(counter)
if not stands or stands > 9007199254740991 or stands < -9007199254740991 then
  return redis.error_reply('BADKEY ' .. COUNTER .. ': not a whole number')
end
local units = tonumber(ARGV[1])
if stands + units > 9007199254740991 then
  return redis.error_reply('BADKEY ' .. COUNTER .. ': that would be more than it can count')
end
-- Below zero counts as zero.
if stands < 0 then units = units - stands end
return redis.call('INCRBY', COUNTER, string.format('%.0f', units))
