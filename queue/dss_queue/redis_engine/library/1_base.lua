#!lua name=dss_queue_1
-- The steps of the queue on partitions of topics. One call is one step: it takes effect as a whole, and nothing comes between.
--
-- A partition is a stream of messages with the state of its groups. A message's number is the time of its publication in
-- microseconds, or the last number plus 1: it only grows, and it is not given twice when a replica without the last
-- writes becomes the primary, unless its clock is behind. Numbers are 16 digits, so that they sort as text. Times with the suffix `ms` are the primary's.
--
-- A group has met the messages up to its `cursor`. What it has met and not finished is exactly one of these:
--   in flight   a record in `in_flight`, or a number of a batch, see `Take:record`
--   ready       a number in `ready`
--   waiting     in `waiting`, with the time from which it is ready
--   parked      in `parked`, behind an earlier message of its routing key
-- A routing key with such a message has a record in `keys`: f and the run in flight, r and the ready head, or w and the
-- waiting head. A place in a key is a letter (0: redriven, 1: others) and a number, so that redriven messages come first.
--
-- A partition takes messages and groups from its opening to its closing. One that does not exist is not open, so what is deleted
-- does not come back through a node that knows of no deletion. It is opened in two steps, see `open`.
--
-- Each call reads and changes a bounded number of messages; `more` in an answer says that it stopped early.

-- Of this library. A release that changes it without changing what calls mean raises the number.
local REVISION = 12
local FORMAT = '1'
local CALL_VERSION = 1
-- Bytes of messages in one answer of a peek, about.
local PEEK_BYTES_MAX = 2097152
-- Messages that one call may look at without delivering them.
local SCAN_MAX = 1000
-- Deliveries and waits that one call ends because their time is over.
local EXPIRE_MAX = 200
-- Batches of which one call gives each message a record.
local OPEN_MAX = 100
-- Messages that one call deletes or buries because of their age.
local UPKEEP_MAX = 100
local HISTORY_MAX = 20
local DIGITS = 16
local BACKOFF_MS_MAX = 3600000
-- How long a repeat of a publish whose answer was lost finds the first one.
local REPEAT_MS = 60000
-- How long a partition that is being opened waits for the confirmation.
local OPENING_MS = 60000
local RATE_MS = 10000
local ARGUMENTS_MAX = 4000
local NEVER = 9e15


local function refuse(code, detail)
  error({err = 'DSS_' .. code .. ' ' .. detail})
end

-- A number as text; `tostring` would round it.
local function digits(number)
  return string.format('%016.0f', number)
end

-- Numbers as one text, which is cheap to send, to store and to compare.
local function split(text)
  local numbers = {}
  for place = 1, #text / DIGITS do numbers[place] = string.sub(text, (place - 1) * DIGITS + 1, place * DIGITS) end
  return numbers
end

-- `redis.call` with any number of arguments.
local function call_all(command, key, list)
  local count = #list
  if count == 0 then return end
  if count <= ARGUMENTS_MAX then return redis.call(command, key, unpack(list)) end
  for first = 1, count, ARGUMENTS_MAX do
    redis.call(command, key, unpack(list, first, math.min(first + ARGUMENTS_MAX - 1, count)))
  end
end

-- The state of a partition, as far as every step needs it. `group_keys`: whether the step is one of a group.
local function open_partition(keys, args)
  if args[1] ~= CALL_VERSION then refuse('CALL', 'this library does not know calls of version ' .. tostring(args[1])) end
  local at_us = args[2]
  if at_us == 0 then
    local time = redis.call('TIME')
    at_us = time[1] * 1000000 + time[2]
  end
  local read = redis.call('HMGET', keys[1], 'format', 'state')
  if read[1] and read[1] ~= FORMAT then
    refuse('FORMAT', 'the partition has format ' .. read[1] .. ', written by a newer release')
  end
  local stored = read[2] and cmsgpack.unpack(read[2]) or {0, 0, 0, 0, 0, 0, 0, 0}
  return {
    info = keys[1], messages = keys[2], dedup = keys[3], once = keys[4], done = keys[5], group_names = keys[6],
    stored = read[2],
    at_us = at_us,
    at_ms = math.floor(at_us / 1000),
    -- the number of the last message, and how many there were
    last = stored[1], published = stored[2],
    -- of the messages, and of dead letters and redriven messages
    bytes = stored[3], copies = stored[4],
    groups = stored[5],
    -- the last message that a purge deleted, and how many had been published by then
    purged = stored[6], purged_at = stored[7],
    -- messages that were too old before there was a group
    expired = stored[8],
    is_closed = stored[9] or false,
    publish_rate = stored[10] or {0, 0, 0},
    -- While a group is being deleted: the last message that no longer counts it, see `delete_group`.
    passed = stored[11] or 0,
  }
end

-- The counts of events in the slot of ten seconds of the last one, and in the slot before: {slot, count, before}.
local function count_events(rate, at_ms, events)
  local slot = math.floor(at_ms / RATE_MS)
  if slot ~= rate[1] then
    rate[3] = slot == rate[1] + 1 and rate[2] or 0
    rate[1], rate[2] = slot, 0
  end
  rate[2] = rate[2] + events
end

-- Events of the last full ten seconds.
local function events_in_slot(rate, at_ms)
  local behind = math.floor(at_ms / RATE_MS) - rate[1]
  if behind <= 0 then return rate[3] end
  return behind == 1 and rate[2] or 0
end

local function save_partition(state)
  local packed = cmsgpack.pack({state.last, state.published, state.bytes, state.copies, state.groups, state.purged,
    state.purged_at, state.expired, state.is_closed, state.publish_rate, state.passed})
  if packed == state.stored then return end
  if state.stored then
    redis.call('HSET', state.info, 'state', packed)
  else
    redis.call('HSET', state.info, 'state', packed, 'format', FORMAT)
  end
  state.stored = packed
end

-- Everything of a group before a purge is gone, but its dead letters.
local function purge_group(state)
  redis.call('UNLINK', state.in_flight, state.batches, state.handouts, state.due, state.past, state.ready, state.waiting, state.keys,
    state.parked, state.private)
  state.copies = state.copies - state.private_bytes
  state.private_bytes, state.finished, state.base, state.batched = 0, 0, state.purged_at, 0
  state.cursor = math.max(state.cursor, state.purged)
  state.seen_purge, state.next_ms = state.purged, NEVER
end

-- The state of a group and its partition. `purpose`: "read" or "delete", or nil for a step of the group.
local function open_group(keys, args, purpose)
  local state = open_partition(keys, args)
  state.group = keys[7]
  state.in_flight, state.handouts, state.due, state.past = keys[8], keys[9], keys[10], keys[11]
  state.ready, state.waiting, state.keys, state.parked = keys[12], keys[13], keys[14], keys[15]
  state.private, state.dead, state.dead_order, state.batches = keys[16], keys[17], keys[18], keys[19]
  local stored = redis.call('HGET', state.group, 'state')
  if not stored then refuse('NO_GROUP', 'the group does not exist') end
  state.stored_group = stored
  local read = cmsgpack.unpack(stored)
  state.is_deleting = read[14] or false
  if state.is_deleting and purpose ~= 'delete' then refuse('NO_GROUP', 'the group is being deleted') end
  state.cursor, state.serial, state.next_ms, state.seen_purge = read[1], read[2], read[3], read[4]
  -- The group has to finish what was published since `base`, without what it `finished`.
  state.base, state.finished = read[5], read[6]
  state.delivered, state.redelivered, state.acked = read[7], read[8], read[9]
  state.private_bytes = read[10]
  -- Messages up to here are not for this group.
  state.start = read[11]
  state.deliver_rate, state.ack_rate = read[12] or {0, 0, 0}, read[13] or {0, 0, 0}
  -- messages in batches
  state.batched = read[15] or 0
  -- What consumers that wait know at least.
  state.next_ms_known = state.next_ms
  state.handout_of = {}
  state.ended, state.touched, state.finished_now, state.finished_bytes = {}, {}, {}, 0
  state.is_stale = state.purged > state.seen_purge
  if state.is_stale and purpose ~= 'read' then purge_group(state) end
  return state
end

local function pending(state)
  return state.published - state.base - state.finished
end

-- What changes nothing writes nothing: a consume that gets nothing waits for no replica and no disk.
local function save_group(state)
  local packed = cmsgpack.pack({state.cursor, state.serial, state.next_ms, state.seen_purge, state.base,
    state.finished, state.delivered, state.redelivered, state.acked, state.private_bytes, state.start,
    state.deliver_rate, state.ack_rate, state.is_deleting, state.batched})
  if packed ~= state.stored_group then redis.call('HSET', state.group, 'state', packed) end
  save_partition(state)
end

-- How many of `wanted` messages of a partition to read at once: not many more than `bytes` if they are as long as the others.
local function count_for(state, wanted, bytes)
  if wanted <= 10 then return wanted end
  local count = redis.call('XLEN', state.messages)
  if count == 0 or state.bytes <= 0 then return wanted end
  return math.min(wanted, math.max(10, math.ceil(bytes * count / state.bytes)))
end

-- Wake consumers that wait. The channel has the name of a key of the partition, so it is in the same slot.
local function wake(state, group)
  redis.call('SPUBLISH', state.info, group)
end

-- Consumers that wait look by themselves at the `next_ms` that they know.
local function wake_if_sooner(state)
  if state.has_ready or state.next_ms < state.next_ms_known then wake(state, state.group) end
end

-- An entry of the stream has the field `v`, the value, and behind it perhaps `m`, packed. Key, headers and delay of a message: most have
-- none of them.
local function extras(text)
  if not text then return '', '', 0 end
  local read = cmsgpack.unpack(text)
  return read[1], read[2], read[3]
end

-- A message of the partition, or of the group alone; nil: there is none.
local function find(state, number, is_private)
  if is_private then
    local stored = redis.call('HGET', state.private, number)
    if not stored then return nil end
    local read = cmsgpack.unpack(stored)
    return {number = number, value = read[1], key = read[2], headers = read[3], ready_ms = 0, size = #read[1] + #read[2] + #read[3],
      is_private = true}
  end
  local entry = redis.call('XRANGE', state.messages, number, number)[1]
  if not entry then return nil end
  local value = entry[2][2]
  local key, headers, ready_ms = extras(entry[2][4])
  return {number = number, value = value, key = key, headers = headers, ready_ms = ready_ms, size = #value + #key + #headers}
end
