"""The moves of `_store` as scripts of a Redis server: each happens as a whole or not at all, and counts only what it
moved itself, so that asking for it again doubles nothing.

    in          stream: batches that are recorded and not sealed; group `fold`
    out         stream: batches of frozen POSTs; group `post`
    bits:<id>   of a batch of `out` that is partly done: a bit for each POST that is not pending any more
    dead        hash: dead letters by their number; `dead-ids` has the numbers in order, `dead-next` the last one
    recorders   hash: the number of what each recorder stored last; `seen` has when that was. "5x" for deposits:
                up to the fifth nothing counts any more, and it is not known which was the last
    ledger      hash: counters of events, and of units in two halves: a script's numbers are exact to 2**53 only
    meta        hash: the destination, and into how many partitions the namespace is split
    folder      the consumer that folds; expires with its lease
    workers     sorted set: who delivers, and when it last said so

All of a partition is in one hash slot, and has its own of all of these, except for the number of partitions and the
workers, which are the namespace's: {x402:<ns>}. Where there is one partition, that is where it is too; otherwise each
is at {x402:<ns>:<p>}.

An entry of a stream is a whole batch and is deleted when all of it is folded or settled, never trimmed. A server whose
memory is full refuses a script at its first write if that needs memory, so what makes room begins with one that needs
none.
"""

from __future__ import annotations

_ADD = """
local function add(ledger, name, sign, events, high, low)
  if events ~= '0' then redis.call('HINCRBY', ledger, name .. ' events', sign .. events) end
  if high ~= '0' then redis.call('HINCRBY', ledger, name .. ' high', sign .. high) end
  if low ~= '0' then redis.call('HINCRBY', ledger, name .. ' low', sign .. low) end
end
"""

# KEYS in out recorders seen ledger · ARGV deposit's name, number (0: it has none), milliseconds, dropped events high
# low, then for each batch: recorder, number, 1 if it is sealed, events high low, value. Writes also when it knows all
# of it, so that WAIT tells of replicas that have it.
DEPOSIT = (
    _ADD
    + """
local before = redis.call('HGET', KEYS[3], ARGV[1])
local is_new = ARGV[2] == '0' or not before or tonumber(ARGV[2]) > tonumber(before:match('%d+'))
redis.call('HSET', KEYS[3], ARGV[1], is_new and ARGV[2] ~= '0' and ARGV[2] or before or '0')
redis.call('ZADD', KEYS[4], ARGV[3], ARGV[1])
if is_new and ARGV[4] ~= '0' then
  add(KEYS[5], 'dropped', '', ARGV[4], ARGV[5], ARGV[6])
  add(KEYS[5], 'recorded', '', ARGV[4], ARGV[5], ARGV[6])
end
for at = 7, #ARGV, 7 do
  local recorder, number = ARGV[at], ARGV[at + 1]
  local last = redis.call('HGET', KEYS[3], recorder)
  if not last or tonumber(number) > tonumber(last) then
    redis.call('HSET', KEYS[3], recorder, number)
    redis.call('ZADD', KEYS[4], ARGV[3], recorder)
    local events, high, low = ARGV[at + 3], ARGV[at + 4], ARGV[at + 5]
    redis.call('XADD', ARGV[at + 2] == '1' and KEYS[2] or KEYS[1], '*', 'batch', ARGV[at + 6], 'tally',
      events .. ' ' .. high .. ' ' .. low)
    add(KEYS[5], 'recorded', '', events, high, low)
    add(KEYS[5], 'pending', '', events, high, low)
  end
end
return 1
"""
)

# KEYS in or out · ARGV group. Also where memory is full: a worker that starts then is what makes room.
MAKE_GROUP = """
redis.call('XACK', KEYS[1], ARGV[1], '0-0')
return redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
"""

# KEYS recorders · ARGV deposit's name, number. Writes, so that WAIT tells of replicas that have all before it. One that
# is not there counts nothing when it comes after all: who asked makes another of the same things.
HAS_DEPOSIT = """
local last = redis.call('HGET', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[1], '')
if last == ARGV[2] then
  redis.call('HSET', KEYS[1], ARGV[1], last)
  return 1
end
if not last or tonumber(ARGV[2]) > tonumber(last:match('%d+')) then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. 'x')
end
return 0
"""

# KEYS in out · ARGV consumer, how many entries, their ids, then the value and the tally of each sealed batch. 0: some
# of the entries are not this consumer's any more, or the server has come back empty, without the group.
SEAL = """
redis.call('XACK', KEYS[1], 'fold', '0-0')
local count = tonumber(ARGV[2])
for at = 3, count + 2 do
  local held = redis.pcall('XPENDING', KEYS[1], 'fold', ARGV[at], ARGV[at], 1)
  if held.err or #held == 0 or held[1][2] ~= ARGV[1] then
    return 0
  end
end
for at = 3, count + 2 do
  redis.call('XACK', KEYS[1], 'fold', ARGV[at])
  redis.call('XDEL', KEYS[1], ARGV[at])
end
for at = count + 3, #ARGV, 2 do
  redis.call('XADD', KEYS[2], '*', 'batch', ARGV[at], 'tally', ARGV[at + 1])
end
return 1
"""

# KEYS out ledger dead dead-ids dead-next, then bits:<id> for each entry · ARGV for each entry: id, how many POSTs it
# has, how many settlements follow; for each of them: position, events high low, and what a dead letter is, else ''.
SETTLE = (
    _ADD
    + """
redis.call('XACK', KEYS[1], 'post', '0-0')
local at, entry = 1, 5
while at <= #ARGV do
  entry = entry + 1
  local id, posts, settlements, bits = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), KEYS[entry]
  at = at + 3
  local is_there = #redis.call('XRANGE', KEYS[1], id, id) > 0
  for _ = 1, settlements do
    if is_there and redis.call('SETBIT', bits, ARGV[at], 1) == 0 then
      local events, high, low, letter = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
      add(KEYS[2], 'pending', '-', events, high, low)
      if letter == '' then
        add(KEYS[2], 'delivered', '', events, high, low)
      else
        local number = redis.call('INCR', KEYS[5])
        redis.call('HSET', KEYS[3], number, letter)
        redis.call('ZADD', KEYS[4], number, number)
        add(KEYS[2], 'dead', '', events, high, low)
      end
    end
    at = at + 5
  end
  if is_there and redis.call('BITCOUNT', bits) >= posts then
    redis.call('XACK', KEYS[1], 'post', id)
    redis.call('XDEL', KEYS[1], id)
    redis.call('DEL', bits)
  end
end
return 1
"""
)

# A batch that cannot be read any more. KEYS in or out, ledger dead dead-ids dead-next · ARGV group, id, events high
# low, what the dead letter is.
BURY_BATCH = (
    _ADD
    + """
if redis.call('XDEL', KEYS[1], ARGV[2]) == 0 then
  return 0
end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
add(KEYS[2], 'pending', '-', ARGV[3], ARGV[4], ARGV[5])
add(KEYS[2], 'dead', '', ARGV[3], ARGV[4], ARGV[5])
local number = redis.call('INCR', KEYS[5])
redis.call('HSET', KEYS[3], number, ARGV[6])
redis.call('ZADD', KEYS[4], number, number)
return 1
"""
)

# KEYS dead dead-ids out ledger · ARGV for each letter: number, events high low, value. How many were still there.
REQUEUE = (
    _ADD
    + """
local count = 0
for at = 1, #ARGV, 5 do
  if redis.call('HDEL', KEYS[1], ARGV[at]) == 1 then
    redis.call('ZREM', KEYS[2], ARGV[at])
    local events, high, low = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
    redis.call('XADD', KEYS[3], '*', 'batch', ARGV[at + 4], 'tally', events .. ' ' .. high .. ' ' .. low)
    add(KEYS[4], 'dead', '-', events, high, low)
    add(KEYS[4], 'pending', '', events, high, low)
    count = count + 1
  end
end
return count
"""
)

# KEYS stream · ARGV group, consumer, idle milliseconds, ids. Those that are another consumer's by now, or gone: all of
# them, where the server has come back empty.
KEEP = """
local lost = {}
for at = 4, #ARGV do
  local held = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[at], ARGV[at], 1)
  if not held.err and #held == 1 and held[1][2] == ARGV[2] then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[at], 'IDLE', ARGV[3], 'JUSTID')
  else
    lost[#lost + 1] = ARGV[at]
  end
end
return lost
"""

# KEYS meta in out dead · ARGV destination. 0: it has work for another one.
BIND = """
local known = redis.call('HGET', KEYS[1], 'destination')
local waiting = redis.call('XLEN', KEYS[2]) + redis.call('XLEN', KEYS[3]) + redis.call('HLEN', KEYS[4])
if known and known ~= ARGV[1] and waiting > 0 then
  return 0
end
redis.call('HDEL', KEYS[1], '')
redis.call('HSET', KEYS[1], 'destination', ARGV[1])
return 1
"""

# KEYS in or out. The id of the oldest entry, or '', and the newest id there ever was.
ENDS = """
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
local newest = ''
if redis.call('EXISTS', KEYS[1]) == 1 then
  local told = redis.call('XINFO', 'STREAM', KEYS[1])
  for at = 1, #told, 2 do
    if told[at] == 'last-generated-id' then newest = told[at + 1] end
  end
end
return {oldest[1] and oldest[1][1] or '', newest}
"""

# KEYS recorders seen · ARGV milliseconds. Forgets recorders that stored nothing since then.
PRUNE = """
local old = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[1], 'LIMIT', 0, 1000)
for _, recorder in ipairs(old) do
  redis.call('HDEL', KEYS[1], recorder)
  redis.call('ZREM', KEYS[2], recorder)
end
return #old
"""

# KEYS folder · ARGV consumer, milliseconds. 1: this consumer is the one that folds, for so long from now on.
FOLD_HERE = """
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return 1
end
if holder then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

# KEYS folder · ARGV consumer. Lets another one fold.
FOLD_ELSEWHERE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
return 1
"""

# KEYS meta in out recorders dead · ARGV partitions. How many the namespace has, from now on if nobody has said it; one
# where something lies that an earlier version has stored.
PARTITIONS = """
local there = redis.call('HGET', KEYS[1], 'partitions')
if not there then
  local stored = redis.call('XLEN', KEYS[2]) + redis.call('XLEN', KEYS[3]) + redis.call('EXISTS', KEYS[4], KEYS[5])
  there = stored > 0 and '1' or ARGV[1]
  redis.call('HDEL', KEYS[1], '')
  redis.call('HSET', KEYS[1], 'partitions', there)
end
return there
"""

# KEYS workers · ARGV consumer, milliseconds. How many gave a sign of life within so long, this one with them.
WORKERS = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('ZADD', KEYS[1], now, ARGV[1])
return redis.call('ZCARD', KEYS[1])
"""

# KEYS workers · ARGV consumer.
NO_WORKER = """
return redis.call('ZREM', KEYS[1], ARGV[1])
"""
