-- Shuts a sale under an id: nothing is taken, looked up or seeded until open.lua is called with
-- the same id.
--
-- KEYS  book
-- ARGV  id, 'reopen' or 'restore' (also what has no book; takes over from anybody), the id to take over from
-- Returns false when the book is open and believed, or there is none to reopen; else who has shut it, this Redis' run, epoch, serial.
local BOOK = KEYS[1]
local is = redis.call('TYPE', BOOK).ok
if is ~= 'hash' and is ~= 'none' then return redis.error_reply('BADKEY ' .. BOOK .. ': not a hash') end
local here = redis.call('INFO', 'server'):match('run_id:(%x+)') or ''
local epoch, run, shut, serial = unpack(redis.call('HMGET', BOOK, 'epoch', 'run', 'shut', 'serial'))
if not shut and epoch and run == here then return false end
if not shut and not epoch and ARGV[2] == 'reopen' then return false end
if not shut or ARGV[2] == 'restore' or shut == ARGV[3] then
  redis.call('HSET', BOOK, 'shut', ARGV[1])
  shut = ARGV[1]
end
return { shut, here, epoch or '', serial or '0' }
