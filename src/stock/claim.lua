-- Exclusive claim to a sale while its books are checked. `beat` counts the owner's renewals: a caller that
-- saw it stand still for long enough names owner and beat, and takes the claim over.
--
-- KEYS  book
-- ARGV  id, what, the id and the beat to take over from
--   what: 'reopen'    unless the sale is open and trusted, or has no book
--         'doubt'     also one that is open and trusted
--         'restore'   also what has no book; waits in line behind the owner
--         'overrule'  as 'restore', and also what is open and trusted
--         'renew'     keep it; the third argument is the life of the data in which it was claimed
--         'release'   give it back; the sale stays shut
--         'drop'      give it back without a sale: a counter set by hand begins one
-- Returns false when there is nothing to claim (or, for the last three, the claim is not the caller's; also
-- after a drop); else the owner, its beat, this life of the data, epoch, serial.
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
    -- Hand over to the next in line, before any other caller.
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
