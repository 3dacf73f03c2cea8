-- Put before every script: key names, gathered index changes, events, references to blobs.
-- KEYS[1] is the prefix of all keys; its hash tag keeps them in one slot.
local call = redis.call
local P = KEYS[1]

local function task_key(tenant, id)
  return P .. tenant .. ':t:' .. id
end

local function cluster_clock()
  return call('GET', P .. 'clock') or '0'
end

local function present_term()
  return call('GET', P .. 'term') or '0'
end

-- A number of at most 53 bits as a protobuf varint.
local function varint(number)
  local encoded = ''
  repeat
    local low = number % 128
    number = (number - low) / 128
    encoded = encoded .. string.char(number > 0 and low + 128 or low)
  until number == 0
  return encoded
end

-- Changes of one index by many tasks become one ZADD and one ZREM; of several changes of the same
-- task in one script the last one counts.
local moves = {}

local function move(index, id, present)
  local ids = moves[index]
  if not ids then
    ids = {}
    moves[index] = ids
  end
  ids[id] = present
end

local function write_moves()
  for index, ids in pairs(moves) do
    local added, removed = { index }, { index }
    local a, r = 1, 1
    for id, present in pairs(ids) do
      if present then
        added[a + 1], added[a + 2] = '0', id
        a = a + 2
      else
        r = r + 1
        removed[r] = id
      end
    end
    if a > 1 then
      call('ZADD', unpack(added))
    end
    if r > 1 then
      call('ZREM', unpack(removed))
    end
  end
end

-- Events are numbered without holes, so that a reader sees from the numbers what was trimmed.
local heads, bodies, event_count = {}, {}, 0

local function emit(head, body)
  event_count = event_count + 1
  heads[event_count], bodies[event_count] = head, body
end

local function write_events(kept)
  if event_count == 0 then
    return
  end
  local stream = P .. 'events'
  local before = call('INCRBY', P .. 'seq', event_count) - event_count
  for i = 1, event_count do
    call('XADD', stream, string.format('%.0f-0', before + i), 'h', heads[i], 'e', bodies[i])
  end
  call('XTRIM', stream, 'MAXLEN', '~', kept)
end

-- A blob is kept while somebody refers to it or it is pinned; else it waits in `idle`, from where
-- the sweep takes it after the grace period.
local function hold_blob(tenant, sha, holder)
  call('SADD', P .. tenant .. ':br:' .. sha, holder)
  call('ZREM', P .. 'blobs:idle', tenant .. '/' .. sha)
end

local function release_blob(tenant, sha, holder)
  local holders = P .. tenant .. ':br:' .. sha
  call('SREM', holders, holder)
  if call('EXISTS', holders) == 0 and call('HGET', P .. tenant .. ':b:' .. sha, 'pin') == '0' then
    call('ZADD', P .. 'blobs:idle', cluster_clock(), tenant .. '/' .. sha)
  end
end
