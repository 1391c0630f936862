
-- ------------------------------------------------------------------ publish

local function is_old(state, number, ready_ms, retention_ms)
  if retention_ms == 0 then return false end
  return math.max(math.floor(tonumber(number) / 1000), ready_ms) + retention_ms <= state.at_ms
end

-- The last number of a message that may be too old.
local function old_until(state, retention_ms)
  return digits(math.max((state.at_ms - retention_ms) * 1000 + 999, 0))
end

-- Without a group, old messages are deleted.
local function drop_old(state, retention_ms)
  if state.groups > 0 or retention_ms == 0 then return 0 end
  local old = {}
  for _, entry in ipairs(redis.call('XRANGE', state.messages, '-', old_until(state, retention_ms), 'COUNT', UPKEEP_MAX)) do
    local key, headers, ready_ms = extras(entry[2][4])
    local number = string.sub(entry[1], 1, 16)
    if is_old(state, number, ready_ms, retention_ms) then
      old[#old + 1] = number
      state.bytes = state.bytes - #entry[2][2] - #key - #headers
    end
  end
  call_all('XDEL', state.messages, old)
  state.expired = state.expired + #old
  return #old
end

-- Forget more than a call adds, or what is remembered would grow for as long as large calls follow each other. `added`: by this call.
local function forget_before(key, until_us, added)
  local old = redis.call('ZRANGEBYSCORE', key, '-inf', string.format('%.0f', until_us), 'LIMIT', 0, UPKEEP_MAX + added)
  call_all('ZREM', key, old)
end

-- args: token, bytes_max, messages_max, dedup_window_ms, retention_ms, messages.
-- A message is its value, or {value, key, headers, delay_ms, dedup_id}.
-- Answer: the first number, and {place, number} for each duplicate.
local function publish(keys, argv)
  local args = cmsgpack.unpack(argv[1])
  local state = open_partition(keys, args)
  local token, bytes_max, messages_max, window_ms, retention_ms, messages = args[3], args[4], args[5], args[6], args[7], args[8]
  if not state.stored then refuse('NOT_OPEN', 'the partition is not open') end
  local at_us = state.at_us
  local first, size, count, known, own = math.max(state.last + 1, at_us), 0, 0, {}, {}
  local repeated = redis.call('ZSCORE', state.once, token)
  if repeated then first = tonumber(repeated) end
  for place, message in ipairs(messages) do
    if type(message) == 'string' then
      size = size + #message
      count = count + 1
    else
      local dedup_id = message[5]
      local found = dedup_id ~= '' and window_ms > 0 and (own[dedup_id] or tonumber(redis.call('ZSCORE', state.dedup, dedup_id) or '0'))
      if found and found + window_ms * 1000 > at_us then
        if found ~= first + place - 1 then
          known[#known + 1] = place
          known[#known + 1] = found
        end
        message.is_known = true
      else
        own[dedup_id] = first + place - 1
        size = size + #message[1] + #message[2] + #message[3]
        count = count + 1
      end
    end
  end
  if repeated then return cmsgpack.pack({CALL_VERSION, first, known}) end
  if state.is_closed and count > 0 then refuse('CLOSED', 'the partition takes no more messages') end
  drop_old(state, retention_ms)
  if bytes_max > 0 and state.bytes + state.copies + size > bytes_max then
    save_partition(state)
    refuse('OVER_LIMIT', string.format('max_bytes %.0f %.0f', bytes_max, state.bytes + state.copies))
  end
  if messages_max > 0 and count > 0 then
    local length = redis.call('XLEN', state.messages)
    if length + count > messages_max then
      save_partition(state)
      refuse('OVER_LIMIT', string.format('partition_messages_max %.0f %.0f', messages_max, length))
    end
  end
  local has_dedup = false
  for place, message in ipairs(messages) do
    local number = digits(first + place - 1)
    if type(message) == 'string' then
      redis.call('XADD', state.messages, number, 'v', message)
    elseif not message.is_known then
      local key, headers, delay_ms, dedup_id = message[2], message[3], message[4], message[5]
      local more
      if key ~= '' or headers ~= '' or delay_ms > 0 then
        more = cmsgpack.pack({key, headers, delay_ms > 0 and state.at_ms + delay_ms or 0})
      end
      if more then
        redis.call('XADD', state.messages, number, 'v', message[1], 'm', more)
      else
        redis.call('XADD', state.messages, number, 'v', message[1])
      end
      if dedup_id ~= '' and window_ms > 0 then
        redis.call('ZADD', state.dedup, number, dedup_id)
        has_dedup = true
      end
    end
  end
  state.last = first + #messages - 1
  state.published = state.published + count
  count_events(state.publish_rate, state.at_ms, count)
  state.bytes = state.bytes + size
  redis.call('ZADD', state.once, digits(first), token)
  forget_before(state.once, at_us - REPEAT_MS * 1000, 1)
  redis.call('PEXPIRE', state.once, 2 * REPEAT_MS)
  if has_dedup then
    forget_before(state.dedup, at_us - window_ms * 1000, count)
    -- For a partition to which nothing more is published.
    redis.call('PEXPIRE', state.dedup, window_ms + REPEAT_MS)
  end
  save_partition(state)
  if count > 0 then wake(state, '') end
  return cmsgpack.pack({CALL_VERSION, first, known})
end
