
-- ------------------------------------------------------- ack, nack, extend …

-- The call is over: tell the partition and the consumers that wait.
local function end_step(state)
  close_handouts(state)
  settle_touched(state)
  drop_finished(state)
  wake_if_sooner(state)
  -- Nothing more comes here: consumers that wait go elsewhere.
  if state.is_closed and pending(state) <= 0 then wake(state, state.group) end
  save_group(state)
end

-- The delivery that a number and a receipt's serial ('' for none) name: its record, or the past of a message that came back and
-- that no other consumer has since; or whether the receipt is stale.
local function held(state, number, serial, stored)
  if stored then
    local delivery = decode_delivery(stored)
    if serial == '' or serial == delivery.serial then return delivery, nil, false end
    return nil, nil, true
  end
  local past = read_past(state, number)
  if past and past.serial ~= '' then
    if serial == '' or serial == past.serial then return nil, past, false end
    return nil, nil, true
  end
  return nil, nil, serial ~= '' and redis.call('ZSCORE', state.dead_order, number) ~= false
end

-- Deliveries that a call names: a text of numbers, and their serials, or one for all of them.
local function named(args)
  local numbers, serials = split(args[4]), args[5]
  if type(serials) == 'string' then
    local one = serials
    serials = {}
    for place = 1, #numbers do serials[place] = one end
  end
  return numbers, serials
end

-- args: settings, numbers, serials. Answer: a letter for each: a acked, n not held, s stale receipt, l left for another call.
local function ack(keys, argv)
  local args = cmsgpack.unpack(argv[1])
  local state = open_group(keys, args)
  expire(state, args[3])
  local batch, serial = nil, args[5]
  if serial == '' then
    batch, serial = batch_of(state, string.sub(args[4], 1, DIGITS))
  elseif type(serial) == 'string' then
    batch = handout(state, serial)
  end
  if batch and batch[6] and batch[5] == args[4] then
    local count = #args[4] / DIGITS
    finish_batch(state, serial, batch)
    state.acked = state.acked + count
    count_events(state.ack_rate, state.at_ms, count)
    end_step(state)
    return cmsgpack.pack({CALL_VERSION, string.rep('a', count)})
  end
  local numbers, serials = named(args)
  local answers, gone, pasts, left_runs, acked = {}, {}, {}, {}, 0
  local stored, left = records_of(state, numbers)
  for place, number in ipairs(numbers) do
    local size = stored[place] and plain_size(stored[place], serials[place])
    local delivery, past, is_stale
    if not (size or left[place]) then delivery, past, is_stale = held(state, number, serials[place] or '', stored[place]) end
    if left[place] then
      answers[place] = 'l'
    elseif size then
      local serial = serials[place]
      gone[#gone + 1] = number
      state.ended[serial] = (state.ended[serial] or 0) + 1
      finish(state, number, size, false)
      answers[place] = 'a'
    elseif delivery then
      gone[#gone + 1] = number
      if delivery.has_past then pasts[#pasts + 1] = number end
      close(state, number, delivery)
      local key = delivery.key
      if key ~= '' then
        local left = left_runs[key] or {}
        left_runs[key] = left
        left[place_of(delivery.letter, number)] = true
      end
      finish(state, number, delivery.size, delivery.letter == '0')
      answers[place] = 'a'
    elseif past then
      pasts[#pasts + 1] = number
      redis.call('ZREM', state.ready, number)
      redis.call('ZREM', state.waiting, number .. place_of(past.letter, past.key))
      if past.key ~= '' then
        local at = place_of(past.letter, number)
        redis.call('ZREM', state.parked, parked_member(past.key, at))
        local current = redis.call('HGET', state.keys, past.key)
        if current == 'r' .. at or current == 'w' .. at then
          redis.call('HDEL', state.keys, past.key)
          state.touched[past.key] = true
        end
      end
      finish(state, number, past.size, past.letter == '0')
      answers[place] = 'a'
    else
      answers[place] = is_stale and 's' or 'n'
    end
    if answers[place] == 'a' then acked = acked + 1 end
  end
  if acked > 0 then
    state.acked = state.acked + acked
    count_events(state.ack_rate, state.at_ms, acked)
  end
  call_all('HDEL', state.in_flight, gone)
  call_all('HDEL', state.past, pasts)
  for key, places in pairs(left_runs) do leave_runs(state, key, places) end
  end_step(state)
  return cmsgpack.pack({CALL_VERSION, table.concat(answers)})
end

-- args: settings, numbers, serials, reason (nack, rejected, silent, gone), delay_ms (-1: the backoff).
-- Answer: a letter for each: b back, d dead, n not in flight, s stale receipt.
local function nack(keys, argv)
  local args = cmsgpack.unpack(argv[1])
  local state = open_group(keys, args)
  local settings, reason, delay_ms = args[3], args[6], args[7]
  local numbers, serials = named(args)
  local counts = reason == 'nack' or reason == 'rejected'
  expire(state, settings)
  local answers = {}
  for place, number in ipairs(numbers) do
    -- Those behind one of the same run come back with it.
    local stored = records_of(state, {number})[1]
    local delivery, _, is_stale = held(state, number, serials[place] or '', stored)
    if delivery then
      answers[place] = fail(state, number, delivery, settings, reason, counts, delay_ms) and 'd' or 'b'
    else
      answers[place] = is_stale and 's' or 'n'
    end
  end
  end_step(state)
  return cmsgpack.pack({CALL_VERSION, table.concat(answers)})
end

-- args: settings, numbers, serials, visibility_ms. Answer: until when, and a letter for each: e extended, s not in flight.
local function extend(keys, argv)
  local args = cmsgpack.unpack(argv[1])
  local state = open_group(keys, args)
  local due_ms = state.at_ms + args[6]
  local numbers, serials = named(args)
  expire(state, args[3])
  local answers = {}
  local records = records_of(state, numbers)
  for place, number in ipairs(numbers) do
    local stored = records[place]
    local delivery = stored and held(state, number, serials[place] or '', stored)
    if delivery then
      redis.call('HSET', state.in_flight, number, encode_delivery(delivery.serial, delivery.attempt,
        delivery.has_past and 'px' or 'x', delivery.size, delivery.letter, delivery.key))
      redis.call('ZADD', state.due, due_ms, 'x' .. number)
      state.next_ms = math.min(state.next_ms, due_ms)
    end
    answers[place] = delivery and 'e' or 's'
  end
  end_step(state)
  return cmsgpack.pack({CALL_VERSION, due_ms, table.concat(answers)})
end

-- Up to `left` old messages that are ready become dead letters. It passes over others, which were redriven or delayed; the next
-- call goes on behind the last one. Returns what is left of `left`, and whether it stopped early.
local function bury_ready(state, retention_ms, left)
  local last, until_number, budget = redis.call('HGET', state.group, 'swept'), old_until(state, retention_ms), SCAN_MAX
  local was_partial = last
  while left > 0 and budget > 0 do
    local numbers = redis.call('ZRANGEBYSCORE', state.ready, last and '(' .. last or '-inf', until_number, 'LIMIT', 0, left)
    for _, number in ipairs(numbers) do
      last = number
      local past = read_past(state, number)
      local message = not (past and past.letter == '0') and find(state, number, false)
      if message and is_old(state, number, message.ready_ms, retention_ms) then
        redis.call('ZREM', state.ready, number)
        bury_old(state, message, past)
        if message.key ~= '' then
          redis.call('HDEL', state.keys, message.key)
          state.touched[message.key] = true
        end
        left = left - 1
      end
    end
    budget = budget - #numbers
    if #numbers == 0 then
      if was_partial then redis.call('HDEL', state.group, 'swept') end
      return left, false
    end
  end
  redis.call('HSET', state.group, 'swept', last)
  return left, true
end

-- What no call waits for: timeouts, delays and retention. args: settings. Answer: next_ms, and whether there is more to do.
local function sweep(keys, argv)
  local args = cmsgpack.unpack(argv[1])
  local state = open_group(keys, args)
  local settings = args[3]
  expire(state, settings)
  local left = UPKEEP_MAX
  local retention_ms = settings[3]
  local is_partial = false
  if retention_ms > 0 then left, is_partial = bury_ready(state, retention_ms, left) end
  local limit = retention_ms > 0 and math.max(state.start, tonumber(old_until(state, retention_ms))) or state.start
  if left > 0 and state.cursor < limit then
    -- Nothing is delivered: a key that is busy parks its message, an old one becomes a dead letter.
    local entries = redis.call('XRANGE', state.messages, '(' .. digits(state.cursor), digits(limit), 'COUNT', left)
    for _, entry in ipairs(entries) do
      local number, value = string.sub(entry[1], 1, 16), entry[2][2]
      local key, headers, ready_ms = extras(entry[2][4])
      local size = #value + #key + #headers
      if tonumber(number) <= state.start then
        finish(state, number, size, false)
        state.finished = state.finished - 1
      elseif key ~= '' and redis.call('HEXISTS', state.keys, key) == 1 then
        redis.call('ZADD', state.parked, 0, parked_member(key, place_of('1', number)))
      elseif is_old(state, number, ready_ms, retention_ms) then
        bury_old(state, {number = number, value = value, key = key, headers = headers, size = size}, nil)
      else
        break
      end
      state.cursor = tonumber(number)
      left = left - 1
    end
  end
  end_step(state)
  return cmsgpack.pack({CALL_VERSION, state.next_ms, left <= 0 or is_partial or state.next_ms <= state.at_ms})
end

-- Delete one dead letter or, for '', the oldest ones. Returns how many.
local function drop_dead(state, number)
  local numbers = {number}
  if number == '' then numbers = redis.call('ZRANGE', state.dead_order, 0, UPKEEP_MAX - 1) end
  if #numbers == 0 then return 0 end
  local count = 0
  for _, stored in ipairs(redis.call('HMGET', state.dead, unpack(numbers))) do
    if stored then
      local body = cmsgpack.unpack(stored)
      state.copies = state.copies - #body[1] - #body[2] - #body[3]
      count = count + 1
    end
  end
  redis.call('HDEL', state.dead, unpack(numbers))
  redis.call('ZREM', state.dead_order, unpack(numbers))
  return count
end

-- Dead letters back to the queue. args: number ('': the oldest ones). Answer: how many, and whether there are more.
local function redrive(keys, argv)
  local args = cmsgpack.unpack(argv[1])
  local state = open_group(keys, args)
  local numbers = {args[3]}
  if args[3] == '' then numbers = redis.call('ZRANGE', state.dead_order, 0, UPKEEP_MAX - 1) end
  local count = 0
  for _, number in ipairs(numbers) do
    local stored = redis.call('HGET', state.dead, number)
    if stored then
      local body = cmsgpack.unpack(stored)
      local key = body[2]
      local size = #body[1] + #key + #body[3]
      redis.call('HSET', state.private, number, cmsgpack.pack({body[1], key, body[3]}))
      redis.call('HSET', state.past, number, cmsgpack.pack({attempts = 0, first_ms = 0, serial = '', ready_ms = 0, history = body[7], letter = '0',
        key = key, size = size}))
      redis.call('HDEL', state.dead, number)
      redis.call('ZREM', state.dead_order, number)
      state.private_bytes = state.private_bytes + size
      state.finished = state.finished - 1
      if key == '' then
        redis.call('ZADD', state.ready, number, number)
        state.has_ready = true
      else
        redis.call('ZADD', state.parked, 0, parked_member(key, place_of('0', number)))
        state.touched[key] = true
      end
      count = count + 1
    end
  end
  end_step(state)
  return cmsgpack.pack({CALL_VERSION, count, args[3] == '' and redis.call('ZCARD', state.dead_order) > 0})
end

-- Delete dead letters, up to a bounded number of them. args: number ('': the oldest ones). Answer: how many, and whether there are more.
local function purge_dead(keys, argv)
  local args = cmsgpack.unpack(argv[1])
  local state = open_group(keys, args)
  local count = drop_dead(state, args[3])
  end_step(state)
  return cmsgpack.pack({CALL_VERSION, count, args[3] == '' and redis.call('ZCARD', state.dead_order) > 0})
end
