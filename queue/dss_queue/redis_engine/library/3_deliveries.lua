
-- ------------------------------------------------- deliveries, and their ends

-- The record of a message in flight. `flags`: p it has a past, x its deadline is its own, not that of its handout, - neither.
local function encode_delivery(serial, attempt, flags, size, letter, key)
  return serial .. letter .. flags .. ' ' .. attempt .. ' ' .. size .. ' ' .. key
end

-- The size of a message without a key in its first delivery, with the deadline of its handout, if a receipt with this serial names the
-- delivery; nil: it is another one. Most deliveries are like this one, and `decode_delivery` costs more.
local function plain_size(text, serial)
  if string.sub(text, 1, 16) ~= serial then return nil end
  return tonumber(string.match(text, '^1%- %d+ (%d+) $', 17))
end

local function decode_delivery(text)
  local flags, attempt, size, key = string.match(text, '^([^ ]*) (%d+) (%d+) (.*)$', 18)
  return {serial = string.sub(text, 1, 16), letter = string.sub(text, 17, 17), has_past = flags == 'p' or flags == 'px',
    is_extended = flags == 'x' or flags == 'px', attempt = tonumber(attempt), size = tonumber(size), key = key}
end

-- What one consume got: when, for how long, its attempt_id, the node that asked, and the numbers in order; of a batch also the sizes,
-- see `Take:record`.
local function handout(state, serial)
  local known = state.handout_of[serial]
  if known == nil then
    local stored = redis.call('HGET', state.handouts, 'h' .. serial)
    known = stored and cmsgpack.unpack(stored) or false
    state.handout_of[serial] = known
  end
  return known
end

local function place_of(letter, number)
  return letter .. number
end

-- The size of a message of a batch.
local function size_at(batch, place)
  local sizes = batch[6]
  return type(sizes) == 'number' and sizes or sizes[place]
end

local function plain_record(serial, size)
  return encode_delivery(serial, 1, '-', size, '1', '')
end

-- The place of a number among those of a batch, which ascend. A call may name messages of as many batches as it has numbers, so this does not
-- look at each message of them.
local function place_in(text, number)
  local first, last = 1, #text / DIGITS
  while first <= last do
    local middle = math.floor((first + last) / 2)
    local found = string.sub(text, (middle - 1) * DIGITS + 1, middle * DIGITS)
    if found == number then return middle end
    if found < number then first = middle + 1 else last = middle - 1 end
  end
  return nil
end

-- The batch that has a message, its serial, and the record that the message would have in `in_flight`; nil: none has it. Batches are made
-- of what a group meets, so that one that begins later also ends later.
local function batch_of(state, number)
  if state.batched == 0 or tonumber(number) > state.cursor then return nil end
  local serial = redis.call('ZREVRANGEBYSCORE', state.batches, number, '-inf', 'LIMIT', 0, 1)[1]
  local batch = serial and handout(state, serial)
  if not batch then return nil end
  local place = place_in(batch[5], number)
  if not place then return nil end
  return batch, serial, plain_record(serial, size_at(batch, place))
end

-- Give each message of a batch a record of its own.
local function open_batch(state, serial, batch)
  local records, numbers = {}, split(batch[5])
  for place, number in ipairs(numbers) do
    records[2 * place - 1], records[2 * place] = number, plain_record(serial, size_at(batch, place))
  end
  call_all('HSET', state.in_flight, records)
  batch[6] = false
  redis.call('HSET', state.handouts, 'h' .. serial, cmsgpack.pack({batch[1], batch[2], batch[3], batch[4], batch[5]}), 'l' .. serial, #numbers)
  redis.call('ZREM', state.batches, serial)
  state.batched = state.batched - #numbers
end

-- The records of messages in flight; false: it is not in flight. The step may change them, so batches that have some of them are opened, up
-- to `OPEN_MAX`. Also the places of the messages of others, as names.
local function records_of(state, numbers)
  local stored, left, opened = redis.call('HMGET', state.in_flight, unpack(numbers)), {}, 0
  for place, number in ipairs(numbers) do
    local batch, serial
    if not stored[place] then batch, serial = batch_of(state, number) end
    if batch and opened < OPEN_MAX then
      open_batch(state, serial, batch)
      opened = opened + 1
    elseif batch then
      left[place] = true
    end
  end
  return opened > 0 and redis.call('HMGET', state.in_flight, unpack(numbers)) or stored, left
end

-- The same for a step that changes nothing.
local function read_records(state, numbers)
  local stored = redis.call('HMGET', state.in_flight, unpack(numbers))
  for place, number in ipairs(numbers) do
    if not stored[place] then
      local _, _, record = batch_of(state, number)
      stored[place] = record or false
    end
  end
  return stored
end

local function parked_member(key, place)
  return key .. '\0' .. place
end

-- A handout has no delivery any more.
local function drop_handout(state, serial, known)
  local attempt = known and 'a' .. known[3]
  if attempt and redis.call('HGET', state.handouts, attempt) == serial then
    redis.call('HDEL', state.handouts, 'h' .. serial, 'l' .. serial, attempt)
  else
    redis.call('HDEL', state.handouts, 'h' .. serial, 'l' .. serial)
  end
  redis.call('ZREM', state.due, 'h' .. serial)
end

-- A delivery is over. The handouts are updated by `close_handouts`.
local function close(state, number, delivery)
  state.ended[delivery.serial] = (state.ended[delivery.serial] or 0) + 1
  if delivery.is_extended then redis.call('ZREM', state.due, 'x' .. number) end
end

local function close_handouts(state)
  for serial, count in pairs(state.ended) do
    if redis.call('HINCRBY', state.handouts, 'l' .. serial, -count) <= 0 then
      drop_handout(state, serial, handout(state, serial))
    end
  end
  state.ended = {}
end

-- The group is finished with a message. `drop_finished` tells the partition.
local function finish(state, number, size, is_private)
  state.finished = state.finished + 1
  if is_private then
    redis.call('HDEL', state.private, number)
    state.private_bytes = state.private_bytes - size
    state.copies = state.copies - size
  else
    local list = state.finished_now
    list[#list + 1] = number
    list.sizes = list.sizes or {}
    list.sizes[#list] = size
  end
end

-- A message leaves the partition when all groups are finished with it.
local function drop_finished(state)
  local finished = state.finished_now
  if #finished == 0 then return end
  local gone, first_of_all = finished, state.groups <= 1
  if not first_of_all then
    gone = {}
    for place, number in ipairs(finished) do
      -- A group that is being deleted no longer counts for messages up to `passed`.
      local needed = tonumber(number) <= state.passed and state.groups - 1 or state.groups
      if redis.call('HINCRBY', state.done, number, 1) >= needed then
        gone[#gone + 1] = number
        state.bytes = state.bytes - finished.sizes[place]
      end
    end
    call_all('HDEL', state.done, gone)
  else
    for _, size in ipairs(finished.sizes) do state.bytes = state.bytes - size end
  end
  call_all('XDEL', state.messages, gone)
  state.finished_now = {}
end

-- The group is finished with all messages of a batch.
local function finish_batch(state, serial, batch)
  local text, sizes = batch[5], batch[6]
  local count = #text / DIGITS
  if state.groups > 1 then
    for place, number in ipairs(split(text)) do finish(state, number, size_at(batch, place), false) end
  else
    state.finished = state.finished + count
    local bytes = 0
    if type(sizes) == 'number' then
      bytes = count * sizes
    else
      for _, size in ipairs(sizes) do bytes = bytes + size end
    end
    state.bytes = state.bytes - bytes
    if redis.call('ZRANGE', state.batches, 0, 0)[1] == serial
      and redis.call('EXISTS', state.in_flight, state.ready, state.waiting, state.parked) == 0 then
      -- The group has finished everything before the last one of them. This costs much less.
      redis.call('XTRIM', state.messages, 'MINID', digits(tonumber(string.sub(text, -DIGITS)) + 1))
    else
      call_all('XDEL', state.messages, split(text))
    end
  end
  redis.call('ZREM', state.batches, serial)
  state.batched = state.batched - count
  drop_handout(state, serial, batch)
end

-- Put the first message of a routing key into `ready` or `waiting`, unless a run of it is in flight.
local function settle(state, key)
  local current = redis.call('HGET', state.keys, key)
  if current and string.sub(current, 1, 1) == 'f' then return end
  local first = redis.call('ZRANGEBYLEX', state.parked, '[' .. key .. '\0', '(' .. key .. '\1', 'LIMIT', 0, 1)[1]
  if not first then
    if not current then redis.call('HDEL', state.keys, key) end
    return
  end
  local place = string.sub(first, #key + 2)
  if current then
    local head = string.sub(current, 2)
    if head <= place then return end
    redis.call('ZADD', state.parked, 0, parked_member(key, head))
    redis.call('ZREM', state.ready, string.sub(head, 2))
  end
  redis.call('ZREM', state.parked, first)
  local letter, number = string.sub(place, 1, 1), string.sub(place, 2)
  local past, ready_ms = redis.call('HGET', state.past, number), 0
  if past then
    ready_ms = cmsgpack.unpack(past).ready_ms
  else
    local message = find(state, number, letter == '0')
    ready_ms = message and message.ready_ms or 0
  end
  if ready_ms > state.at_ms then
    redis.call('ZADD', state.waiting, ready_ms, number .. place_of(letter, key))
    redis.call('HSET', state.keys, key, 'w' .. place)
    state.next_ms = math.min(state.next_ms, ready_ms)
  else
    redis.call('ZADD', state.ready, number, number)
    redis.call('HSET', state.keys, key, 'r' .. place)
    state.has_ready = true
  end
end

-- Take messages out of the run of their key; `gone` has their places as names. Returns the places behind the first of them.
local function leave_runs(state, key, gone)
  local run = redis.call('HGET', state.keys, key)
  local left, behind = {}, {}
  local found = false
  for one in string.gmatch(string.sub(run or '', 2), '[^,]+') do
    if gone[one] then
      found = true
    else
      left[#left + 1] = one
      if found then behind[#behind + 1] = one end
    end
  end
  if #left > 0 then
    redis.call('HSET', state.keys, key, 'f' .. table.concat(left, ','))
  else
    redis.call('HDEL', state.keys, key)
    state.touched[key] = true
  end
  return behind
end

local function leave_run(state, key, place)
  return leave_runs(state, key, {[place] = true})
end

local function settle_touched(state)
  for key in pairs(state.touched) do settle(state, key) end
  state.touched = {}
end

local function read_past(state, number)
  local stored = redis.call('HGET', state.past, number)
  return stored and cmsgpack.unpack(stored) or nil
end

-- A message becomes a dead letter, with a copy of its own.
local function bury(state, message, letter, attempts, history, reason)
  local body = {message.value, message.key, message.headers, state.at_ms, attempts, reason, history}
  redis.call('HSET', state.dead, message.number, cmsgpack.pack(body))
  redis.call('ZADD', state.dead_order, state.at_ms, message.number)
  redis.call('HINCRBY', state.group, 'dead:' .. reason, 1)
  state.copies = state.copies + message.size
  redis.call('HDEL', state.past, message.number)
  finish(state, message.number, message.size, letter == '0')
end

-- A delivery ends without an ack. `counts`: the attempt counts. Returns whether the message is dead.
local function fail_one(state, number, delivery, settings, reason, counts, delay_ms)
  local known = handout(state, delivery.serial)
  local past = delivery.has_past and read_past(state, number) or {history = {}, first_ms = 0}
  local delivered_ms = known and known[1] or state.at_ms
  local history = past.history
  history[#history + 1] = {delivery.attempt, delivered_ms, state.at_ms, reason, known and known[4] or ''}
  if #history > HISTORY_MAX then table.remove(history, 1) end
  redis.call('HDEL', state.in_flight, number)
  close(state, number, delivery)
  local max_attempts = settings[1]
  local is_rejected = reason == 'rejected'
  if counts and (is_rejected or (max_attempts > 0 and delivery.attempt >= max_attempts)) then
    local message = find(state, number, delivery.letter == '0')
    if message then
      bury(state, message, delivery.letter, delivery.attempt, history, is_rejected and 'rejected' or 'max_attempts')
      return true
    end
  end
  local attempts = counts and delivery.attempt or delivery.attempt - 1
  if not delay_ms or delay_ms < 0 then
    delay_ms = counts and math.min(settings[2] * 2 ^ math.min(math.max(delivery.attempt - 1, 0), 32), BACKOFF_MS_MAX) or 0
  end
  local ready_ms = delay_ms > 0 and state.at_ms + delay_ms or 0
  local first_ms = past.first_ms > 0 and past.first_ms or delivered_ms
  redis.call('HSET', state.past, number, cmsgpack.pack({attempts = attempts, first_ms = attempts > 0 and first_ms or 0, serial = delivery.serial,
    ready_ms = ready_ms, history = history, letter = delivery.letter, key = delivery.key, size = delivery.size}))
  local key = delivery.key
  if ready_ms > 0 then
    redis.call('ZADD', state.waiting, ready_ms, number .. place_of(delivery.letter, key))
    state.next_ms = math.min(state.next_ms, ready_ms)
  end
  if key ~= '' then
    redis.call('ZADD', state.parked, 0, parked_member(key, place_of(delivery.letter, number)))
  elseif ready_ms == 0 then
    redis.call('ZADD', state.ready, number, number)
    state.has_ready = true
  end
  return false
end

-- The deadline of a delivery that is in flight.
local function due_of(state, number, delivery)
  local member = delivery.is_extended and 'x' .. number or 'h' .. delivery.serial
  return tonumber(redis.call('ZSCORE', state.due, member) or '0')
end

-- A delivery ends, and those behind it in its run come back with it.
local function fail(state, number, delivery, settings, reason, counts, delay_ms)
  local key = delivery.key
  local behind = {}
  if key ~= '' then behind = leave_run(state, key, place_of(delivery.letter, number)) end
  local is_dead = fail_one(state, number, delivery, settings, reason, counts, delay_ms)
  if not is_dead then
    for _, place in ipairs(behind) do
      local other = string.sub(place, 2)
      local stored = redis.call('HGET', state.in_flight, other)
      if stored then
        local one = decode_delivery(stored)
        leave_run(state, key, place)
        local is_over = due_of(state, other, one) <= state.at_ms
        fail_one(state, other, one, settings, is_over and 'timeout' or counts and 'behind' or reason, is_over, not is_over and 0 or nil)
      end
    end
  end
  return is_dead
end

-- The waits and deliveries whose time is over.
local function expire(state, settings)
  state.drops_expired = settings[4]
  if state.at_ms < state.next_ms then return end
  local left = EXPIRE_MAX
  local waits = redis.call('ZRANGEBYSCORE', state.waiting, '-inf', state.at_ms, 'LIMIT', 0, left)
  for _, member in ipairs(waits) do
    local number, letter, key = string.sub(member, 1, 16), string.sub(member, 17, 17), string.sub(member, 18)
    if key == '' then
      redis.call('ZADD', state.ready, number, number)
      state.has_ready = true
    elseif redis.call('HGET', state.keys, key) == 'w' .. letter .. number then
      redis.call('HSET', state.keys, key, 'r' .. letter .. number)
      redis.call('ZADD', state.ready, number, number)
      state.has_ready = true
    end
  end
  call_all('ZREM', state.waiting, waits)
  left = left - #waits
  if left > 0 then
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', state.due, '-inf', state.at_ms, 'LIMIT', 0, left)) do
      local numbers, is_own = {string.sub(member, 2)}, string.sub(member, 1, 1) == 'x'
      if not is_own then
        local serial = string.sub(member, 2)
        local known = handout(state, serial)
        if known and known[6] then open_batch(state, serial, known) end
        numbers = known and split(known[5]) or {}
      end
      local stored = #numbers > 0 and redis.call('HMGET', state.in_flight, unpack(numbers)) or {}
      local is_complete = true
      for place, number in ipairs(numbers) do
        local delivery = stored[place] and decode_delivery(stored[place])
        if delivery and delivery.is_extended == is_own and (is_own or delivery.serial == string.sub(member, 2)) then
          if left <= 0 then
            is_complete = false
            break
          end
          -- It may have gone back behind an earlier one of its run.
          if place == 1 or delivery.key == '' or redis.call('HEXISTS', state.in_flight, number) == 1 then
            fail(state, number, delivery, settings, 'timeout', true, nil)
            left = left - 1
          end
        end
      end
      if is_complete then redis.call('ZREM', state.due, member) end
      if left <= 0 then break end
    end
  end
  close_handouts(state)
  settle_touched(state)
  local wait = redis.call('ZRANGE', state.waiting, 0, 0, 'WITHSCORES')
  local due = redis.call('ZRANGE', state.due, 0, 0, 'WITHSCORES')
  state.next_ms = math.min(tonumber(wait[2] or NEVER), tonumber(due[2] or NEVER))
end
