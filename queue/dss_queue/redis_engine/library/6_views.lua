
-- ------------------------------------------------------------------ queries

-- Answer: messages, bytes, published, expired, oldest (number or ''), groups, published in ten seconds, and whether the partition
-- is "open", "closed", or "" for neither.
local function stats(keys, argv)
  local state = open_partition(keys, cmsgpack.unpack(argv[1]))
  local first = redis.call('XRANGE', state.messages, '-', '+', 'COUNT', 1)[1]
  return cmsgpack.pack({CALL_VERSION, redis.call('XLEN', state.messages), state.bytes + state.copies, state.published,
    state.expired, first and string.sub(first[1], 1, 16) or '', redis.call('SMEMBERS', state.group_names),
    events_in_slot(state.publish_rate, state.at_ms), state.is_closed and 'closed' or state.stored and 'open' or ''})
end

-- How many dead letters groups of a partition have. The keys behind those of the partition: `dead_order` of each group. Answer: the sum.
local function dead_count(keys, argv)
  open_partition(keys, cmsgpack.unpack(argv[1]))
  local count = 0
  for place = 7, #keys do count = count + redis.call('ZCARD', keys[place]) end
  return cmsgpack.pack({CALL_VERSION, count})
end

local DEAD_REASONS = {'max_attempts', 'rejected', 'expired'}

-- In which state a group has the messages of some entries; false: it has finished them.
local function states_of(state, entries)
  local numbers, waits, parks, answers = {}, {}, {}, {}
  for place, entry in ipairs(entries) do
    local key = extras(entry[2][4])
    local number = string.sub(entry[1], 1, 16)
    numbers[place] = number
    waits[place] = number .. place_of('1', key)
    parks[place] = parked_member(key, place_of('1', number))
  end
  if #numbers == 0 then return answers, numbers end
  local flight = read_records(state, numbers)
  local ready = redis.call('ZMSCORE', state.ready, unpack(numbers))
  local waiting = redis.call('ZMSCORE', state.waiting, unpack(waits))
  local parked = redis.call('ZMSCORE', state.parked, unpack(parks))
  -- Redriven messages are not those of the partition, which other groups may still have to finish.
  local private = redis.call('HMGET', state.private, unpack(numbers))
  for place, number in ipairs(numbers) do
    local place_number = tonumber(number)
    if place_number > state.cursor then
      answers[place] = place_number > state.start and {'ready'}
    elseif state.is_stale then
      answers[place] = {'ready'}
    elseif private[place] then
      answers[place] = false
    elseif flight[place] then
      answers[place] = {'in_flight', flight[place]}
    elseif waiting[place] then
      answers[place] = {'delayed'}
    elseif ready[place] or parked[place] then
      answers[place] = {'ready'}
    else
      answers[place] = false
    end
  end
  return answers, numbers
end

-- Answer: ready, delayed, in_flight, dead, oldest (number or ''), delivered, redelivered, acked, dead letters by reason,
-- delivered and acked in ten seconds.
local function group_stats(keys, argv)
  local state = open_group(keys, cmsgpack.unpack(argv[1]), 'read')
  local in_flight, delayed, unfinished = redis.call('HLEN', state.in_flight) + state.batched, redis.call('ZCARD', state.waiting), pending(state)
  if state.is_stale then in_flight, delayed, unfinished = 0, 0, state.published - state.purged_at end
  local oldest = ''
  if unfinished > 0 then
    -- It is one of the first, nearly always.
    local from, count, looked = '-', 1, 0
    while oldest == '' and looked < UPKEEP_MAX do
      local entries = redis.call('XRANGE', state.messages, from, '+', 'COUNT', count)
      local states, numbers = states_of(state, entries)
      for place = 1, #entries do
        if states[place] then
          oldest = numbers[place]
          break
        end
      end
      if #entries < count then break end
      from, looked, count = '(' .. numbers[#numbers], looked + count, math.min(4 * count, UPKEEP_MAX - looked)
    end
  end
  local reasons = {}
  for place, count in ipairs(redis.call('HMGET', state.group, 'dead:max_attempts', 'dead:rejected', 'dead:expired')) do
    if count then
      reasons[#reasons + 1] = DEAD_REASONS[place]
      reasons[#reasons + 1] = tonumber(count)
    end
  end
  return cmsgpack.pack({CALL_VERSION, unfinished - in_flight - delayed, delayed, in_flight, redis.call('ZCARD', state.dead_order), oldest,
    state.delivered, state.redelivered, state.acked, reasons, events_in_slot(state.deliver_rate, state.at_ms),
    events_in_slot(state.ack_rate, state.at_ms)})
end

-- args: numbers. Answer: for each the serial of the delivery that it is in flight in, or ''.
local function in_flight(keys, argv)
  local args = cmsgpack.unpack(argv[1])
  local state = open_group(keys, args, 'read')
  local numbers, serials = split(args[3]), {}
  local stored = state.is_stale and {} or read_records(state, numbers)
  for place = 1, #numbers do serials[place] = stored[place] and string.sub(stored[place], 1, DIGITS) or '' end
  return cmsgpack.pack({CALL_VERSION, serials})
end

local function message_line(state, number, value, key, headers, ready_ms)
  return {number, value, key, headers, math.max(0, ready_ms - state.at_ms)}
end

local function line_bytes(line)
  return #line[2] + #line[3] + #line[4]
end

-- The retained messages. args: limit, number ('': all), dedup_id ('': all). Answer: lines, and whether there are fewer than `limit` because
-- they are long.
local function peek(keys, argv)
  local args = cmsgpack.unpack(argv[1])
  local state = open_partition(keys, args)
  local number, dedup_id = args[4], args[5]
  local first, last = '-', '+'
  if dedup_id ~= '' then
    local found = redis.call('ZSCORE', state.dedup, dedup_id)
    if not found then return cmsgpack.pack({CALL_VERSION, {}, false}) end
    number = digits(tonumber(found))
  end
  if number ~= '' then first, last = number, number end
  local lines = {}
  local count, bytes = count_for(state, args[3], PEEK_BYTES_MAX), 0
  local entries = redis.call('XRANGE', state.messages, first, last, 'COUNT', count)
  for place, entry in ipairs(entries) do
    if bytes > PEEK_BYTES_MAX then return cmsgpack.pack({CALL_VERSION, lines, true}) end
    local key, headers, ready_ms = extras(entry[2][4])
    lines[place] = message_line(state, string.sub(entry[1], 1, 16), entry[2][2], key, headers, ready_ms)
    bytes = bytes + line_bytes(lines[place])
  end
  return cmsgpack.pack({CALL_VERSION, lines, #entries == count and count < args[3]})
end

local function dead_line(state, number)
  local stored = redis.call('HGET', state.dead, number)
  if not stored then return nil end
  local body = cmsgpack.unpack(stored)
  return {number, body[1], body[2], body[3], 0, 'dead', body[5], body[4], body[6], body[7]}
end

-- A line of an unfinished message: message_line, state, attempt, attempt_id, delivered_ms, visible_until_ms, node, history.
local function group_line(state, line, is_private, in_flight)
  local number = line[1]
  local past = not state.is_stale and read_past(state, number)
  local history = past and past.history or {}
  local stored = in_flight or read_records(state, {number})[1]
  if stored and not state.is_stale then
    local delivery = decode_delivery(stored)
    local known = handout(state, delivery.serial) or {0, 0, '', ''}
    for _, one in ipairs({'in_flight', delivery.attempt, known[3], known[1], due_of(state, number, delivery), known[4], history}) do
      line[#line + 1] = one
    end
    return line
  end
  local ready_ms = past and past.ready_ms or 0
  local is_delayed = ready_ms > state.at_ms or (not past and line[5] > 0)
  for _, one in ipairs({is_delayed and 'delayed' or 'ready', past and past.attempts or 0, '', 0, 0, '', history}) do
    line[#line + 1] = one
  end
  return line
end

-- A group's unfinished messages or, with `dead`, its dead letters. args: limit, number ('': all), dedup_id ('': all), dead.
-- Answer: lines, oldest first, and whether there are fewer than `limit` because they are long.
local function group_peek(keys, argv)
  local args = cmsgpack.unpack(argv[1])
  local state = open_group(keys, args, 'read')
  local limit, number, dedup_id, is_dead = args[3], args[4], args[5], args[6]
  local lines, bytes = {}, 0
  if dedup_id ~= '' then
    local found = redis.call('ZSCORE', state.dedup, dedup_id)
    if not found then return cmsgpack.pack({CALL_VERSION, {}, false}) end
    number = digits(tonumber(found))
  end
  local function add(line)
    lines[#lines + 1] = line
    bytes = bytes + (line and line_bytes(line) or 0)
  end
  if is_dead and number == '' then
    for _, one in ipairs(redis.call('ZRANGE', state.dead_order, 0, limit - 1)) do
      if bytes > PEEK_BYTES_MAX then return cmsgpack.pack({CALL_VERSION, lines, true}) end
      add(dead_line(state, one))
    end
    return cmsgpack.pack({CALL_VERSION, lines, false})
  end
  if number ~= '' then
    lines[1] = dead_line(state, number)
    if lines[1] or is_dead then return cmsgpack.pack({CALL_VERSION, lines, false}) end
  end
  if not state.is_stale then
    local privates = redis.call('HMGET', state.private, number)
    local names = {number}
    if number == '' then
      names = {}
      -- Names alone can only be had since Redis 7.4.
      local fields = redis.call('HSCAN', state.private, 0, 'COUNT', limit)[2]
      for place = 1, #fields, 2 do names[#names + 1] = fields[place] end
      table.sort(names)
    elseif not privates[1] then
      names = {}
    end
    for _, one in ipairs(names) do
      if #lines >= limit or bytes > PEEK_BYTES_MAX then break end
      local message = find(state, one, true)
      add(group_line(state, message_line(state, one, message.value, message.key, message.headers, 0), true))
    end
  end
  local from, to, looked = '-', '+', 0
  if number ~= '' then from, to = number, number end
  while #lines < limit and looked < SCAN_MAX and bytes <= PEEK_BYTES_MAX do
    local count = count_for(state, UPKEEP_MAX, PEEK_BYTES_MAX)
    local entries = redis.call('XRANGE', state.messages, from, to, 'COUNT', count)
    local states, numbers = states_of(state, entries)
    for place, entry in ipairs(entries) do
      if states[place] and #lines < limit and bytes <= PEEK_BYTES_MAX then
        local key, headers, ready_ms = extras(entry[2][4])
        local line = message_line(state, numbers[place], entry[2][2], key, headers, ready_ms)
        add(group_line(state, line, false, states[place][2]))
      end
    end
    looked = looked + #entries
    if #entries < count then break end
    from = '(' .. numbers[#numbers]
  end
  return cmsgpack.pack({CALL_VERSION, lines, #lines < limit and bytes > PEEK_BYTES_MAX})
end
