-- Who has a sale for itself while its books are looked at. A claim that its owner does not renew
-- is one that others may take over: `beat` counts the renewals, and whoever saw it stand still
-- for long enough names it.
--
-- KEYS  book
-- ARGV  id, what, the id and the beat to take over from
--   what: 'reopen'    unless the sale is open and believed, or has no book
--         'doubt'     also one that is open and believed
--         'restore'   also what has no book; waits in line for whoever has it
--         'overrule'  as 'restore', and also what is open and believed
--         'renew'     still mine; here the third is the life of the data in which it was claimed
--         'release'   no longer mine; the sale stays shut
--         'drop'      no longer mine, and there is no sale: whoever sets its counter begins one
-- Returns false when there is nothing to claim (or, for the last two, the claim is not the
-- caller's); else whose it is, its beat, this life of the data, epoch, serial.
local BOOK, ID, WHAT = KEYS[1], ARGV[1], ARGV[2]
local FREE = 'free'
local is = redis.call('TYPE', BOOK).ok
if is ~= 'hash' and is ~= 'none' then return redis.error_reply('BADKEY ' .. BOOK .. ': not a hash') end
local here = life()
if not here then return NO_LIFE end
local epoch, run, shut, beat, serial, next = unpack(redis.call('HMGET', BOOK, 'epoch', 'run', 'shut', 'beat', 'serial', 'next'))

if WHAT == 'renew' or WHAT == 'release' or WHAT == 'drop' then
  if shut ~= ID or (WHAT == 'renew' and here ~= ARGV[3]) then return false end
  if WHAT == 'renew' then
    beat = redis.call('HINCRBY', BOOK, 'beat', 1)
  elseif WHAT == 'drop' and not epoch and not next then
    redis.call('DEL', BOOK)
    return false
  else
    -- To whoever waits for it, before anybody else comes.
    shut = next or FREE
    redis.call('HSET', BOOK, 'shut', shut, 'beat', 0)
    redis.call('HDEL', BOOK, 'next')
    beat = 0
  end
elseif WHAT ~= 'doubt' and WHAT ~= 'overrule' and not shut and epoch and run == here then
  return false
elseif WHAT == 'reopen' and not shut and not epoch then
  return false
elseif not shut or shut == FREE or shut == ID or (shut == ARGV[3] and (beat or '0') == ARGV[4]) then
  shut, beat = ID, 0
  redis.call('HSET', BOOK, 'shut', ID, 'beat', 0)
  if next == ID then redis.call('HDEL', BOOK, 'next') end
elseif WHAT == 'restore' or WHAT == 'overrule' then
  redis.call('HSET', BOOK, 'next', ID)
end
return { shut, tostring(beat or 0), here, epoch or '', serial or '0' }
