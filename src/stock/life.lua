-- Identifies the life of the data: the process and its replication history. A restart changes the first; a
-- promotion, a full resynchronisation or a demotion the second. False if this Redis does not report both.
local function life()
  local server, replication = redis.pcall('INFO', 'server'), redis.pcall('INFO', 'replication')
  local run = type(server) == 'string' and server:match('run_id:(%x+)')
  local history = type(replication) == 'string' and replication:match('master_replid:(%x+)')
  return run and history and run .. ':' .. history
end
local NO_LIFE = redis.error_reply('NOLIFE this Redis does not say its run_id and master_replid, so nothing is sold on it; '
  .. 'let the user run INFO, and use a server that has both')

