
-- ------------------------------------------------------------------ consume

local function empty_reason(state, in_flight, delayed)
  if in_flight > 0 and pending(state) > in_flight + delayed then return 'key_blocked' end
  if delayed > 0 then return 'delayed' end
  if in_flight > 0 then return 'all_in_flight' end
  return state.is_closed and pending(state) <= 0 and 'closed' or 'no_messages'
end

-- A message that is too old becomes a dead letter when its turn comes, or is dropped.
local function bury_old(state, message, past)
  if state.drops_expired then
    redis.call('HDEL', state.past, message.number)
    state.expired = state.expired + 1
    return finish(state, message.number, message.size, false)
  end
  bury(state, message, '1', past and past.attempts or 0, past and past.history or {}, 'expired')
end

-- The messages that a consume takes.
local Take = {}
Take.__index = Take

local function new_take(state, settings, serial, count_max, per_key, bytes_max)
  return setmetatable({state = state, settings = settings, serial = serial, count_max = count_max, per_key = per_key,
    bytes_max = bytes_max, bytes = 0, numbers = {}, values = {}, more = {}, sizes = {}, records = {}, runs = {}, redelivered = 0,
    is_batch = true}, Take)
end

function Take:is_full()
  return #self.numbers >= self.count_max or self.bytes > self.bytes_max
end

function Take:add(number, value, key, headers, size, letter, past)
  local place = #self.numbers + 1
  self.numbers[place], self.values[place], self.sizes[place] = number, value, size
  self.bytes = self.bytes + size
  if key == '' and letter == '1' and not past then
    if headers ~= '' then self.more[#self.more + 1] = {place, '', headers, 1, self.state.at_ms} end
    return
  end
  self.is_batch = false
  local attempt, first_ms, flags = 1, self.state.at_ms, '-'
  if past then
    attempt, flags = past.attempts + 1, 'p'
    if past.first_ms > 0 then first_ms = past.first_ms end
    if attempt > 1 then self.redelivered = self.redelivered + 1 end
  end
  self.more[#self.more + 1] = {place, key, headers, attempt, first_ms}
  self.records[place] = encode_delivery(self.serial, attempt, flags, size, letter, key)
  if key ~= '' then
    local run = self.runs[key]
    if not run then
      run = {is_open = self.per_key > 1}
      self.runs[key] = run
    end
    run[#run + 1] = place_of(letter, number)
    if #run >= self.per_key then run.is_open = false end
  end
end

-- Messages of a key that follow its head, as far as the group has met them.
function Take:follow(key)
  local state, run = self.state, self.runs[key]
  if not run.is_open then return end
  local members = redis.call('ZRANGEBYLEX', state.parked, '[' .. key .. '\0', '(' .. key .. '\1', 'LIMIT', 0, self.per_key - 1)
  for _, member in ipairs(members) do
    if self:is_full() or not run.is_open then
      run.is_open = false
      return
    end
    local letter, number = string.sub(member, #key + 2, #key + 2), string.sub(member, #key + 3)
    local message, past = find(state, number, letter == '0'), read_past(state, number)
    if not message or is_old(state, number, message.ready_ms, letter == '0' and 0 or self.settings[3])
      or (past and past.ready_ms or message.ready_ms) > state.at_ms then
      run.is_open = false
      return
    end
    redis.call('ZREM', state.parked, member)
    if past then redis.call('ZREM', state.waiting, number .. place_of(letter, key)) end
    self:add(number, message.value, key, message.headers, message.size, letter, past)
  end
end

-- Messages that the group has met before: heads of keys, and what came back.
function Take:met()
  local state = self.state
  local budget = SCAN_MAX
  while not self:is_full() and budget > 0 do
    local numbers = redis.call('ZRANGE', state.ready, 0, math.min(self.count_max - #self.numbers, budget) - 1)
    if #numbers == 0 then return end
    budget = budget - #numbers
    local taken = {}
    local pasts = redis.call('HMGET', state.past, unpack(numbers))
    for place, number in ipairs(numbers) do
      if self:is_full() then break end
      local past = pasts[place] and cmsgpack.unpack(pasts[place])
      local letter = past and past.letter or '1'
      local message = find(state, number, letter == '0')
      taken[#taken + 1] = number
      if not message then
        redis.call('HDEL', state.past, number)
        state.finished = state.finished + 1
      elseif letter == '1' and is_old(state, number, message.ready_ms, self.settings[3]) then
        bury_old(state, message, past)
        if message.key ~= '' then
          redis.call('HDEL', state.keys, message.key)
          settle(state, message.key)
        end
      else
        self:add(number, message.value, message.key, message.headers, message.size, letter, past)
        if message.key ~= '' then self:follow(message.key) end
      end
    end
    call_all('ZREM', state.ready, taken)
  end
end

-- Messages that the group has not met, in the order of publication. Returns whether there may be more.
function Take:unmet()
  local state, settings = self.state, self.settings
  local budget = SCAN_MAX
  while not self:is_full() and budget > 0 do
    local wanted = count_for(state, math.min(self.count_max - #self.numbers, budget), self.bytes_max - self.bytes)
    local entries = redis.call('XRANGE', state.messages, '(' .. digits(state.cursor), '+', 'COUNT', wanted)
    if #entries == 0 then return false end
    budget = budget - #entries
    local decoded, names, busy = {}, {}, {}
    for place, entry in ipairs(entries) do
      local text = entry[2][4]
      if text then
        local read = cmsgpack.unpack(text)
        decoded[place] = read
        local key = read[1]
        if key ~= '' and busy[key] == nil then
          names[#names + 1] = key
          busy[key] = false
        end
      end
    end
    if #names > 0 then
      for place, current in ipairs(redis.call('HMGET', state.keys, unpack(names))) do busy[names[place]] = current or false end
    end
    local parked, heads, waiting = {}, {}, {}
    for place, entry in ipairs(entries) do
      if self:is_full() then break end
      local number, value, read = string.sub(entry[1], 1, 16), entry[2][2], decoded[place]
      state.cursor = tonumber(number)
      local key, headers, ready_ms = '', '', 0
      if read then key, headers, ready_ms = read[1], read[2], read[3] end
      local size = #value + #key + #headers
      local run = key ~= '' and self.runs[key]
      if state.cursor <= state.start then
        finish(state, number, size, false)
        state.finished = state.finished - 1
      elseif key ~= '' and (busy[key] or run) and not (run and run.is_open and ready_ms <= state.at_ms) then
        if run then run.is_open = false end
        parked[#parked + 1] = 0
        parked[#parked + 1] = parked_member(key, place_of('1', number))
      elseif ready_ms > state.at_ms then
        waiting[#waiting + 1] = ready_ms
        waiting[#waiting + 1] = number .. place_of('1', key)
        state.next_ms = math.min(state.next_ms, ready_ms)
        if key ~= '' then
          busy[key] = 'w'
          heads[#heads + 1] = key
          heads[#heads + 1] = 'w' .. place_of('1', number)
        end
      elseif is_old(state, state.cursor, ready_ms, settings[3]) then
        bury_old(state, {number = number, value = value, key = key, headers = headers, size = size}, nil)
      else
        self:add(number, value, key, headers, size, '1', nil)
      end
    end
    call_all('ZADD', state.parked, parked)
    call_all('ZADD', state.waiting, waiting)
    call_all('HSET', state.keys, heads)
    if not self:is_full() and #entries < wanted then return false end
  end
  return true
end

-- Record what was taken as one handout. It is a batch if it has only messages that the group has just met, without keys: then they have no
-- records of their own until a step means some of them, which is never when one ack means all of them. `batches` has its first number.
function Take:record(attempt_id, visibility_ms, node)
  local state, serial = self.state, self.serial
  local due_ms = state.at_ms + visibility_ms
  local stored = {state.at_ms, visibility_ms, attempt_id, node, self.text}
  if self.is_batch then
    local sizes, first = self.sizes, self.sizes[1]
    stored[6] = first
    for _, size in ipairs(sizes) do
      if size ~= first then stored[6] = sizes end
    end
    redis.call('ZADD', state.batches, self.numbers[1], serial)
    redis.call('HSET', state.handouts, 'h' .. serial, cmsgpack.pack(stored), 'a' .. attempt_id, serial)
    state.batched = state.batched + #sizes
  else
    local records = {}
    for place, number in ipairs(self.numbers) do
      records[2 * place - 1], records[2 * place] = number, self.records[place] or plain_record(serial, self.sizes[place])
    end
    call_all('HSET', state.in_flight, records)
    redis.call('HSET', state.handouts, 'h' .. serial, cmsgpack.pack(stored), 'l' .. serial, #self.numbers, 'a' .. attempt_id, serial)
  end
  redis.call('ZADD', state.due, due_ms, 'h' .. serial)
  local runs = {}
  for key, run in pairs(self.runs) do
    runs[#runs + 1] = key
    runs[#runs + 1] = 'f' .. table.concat(run, ',')
  end
  call_all('HSET', state.keys, runs)
  state.next_ms = math.min(state.next_ms, due_ms)
  state.delivered = state.delivered + #self.numbers
  count_events(state.deliver_rate, state.at_ms, #self.numbers)
  state.redelivered = state.redelivered + self.redelivered
  return due_ms
end

-- The messages of an earlier call with this attempt_id that are still in flight, with their full visibility; nil: there are none.
local function hand_out_again(state, attempt_id, visibility_ms)
  local serial = redis.call('HGET', state.handouts, 'a' .. attempt_id)
  local known = serial and handout(state, serial)
  if not known then return nil end
  if known[6] then open_batch(state, serial, known) end
  local numbers, values, more, changed = {}, {}, {}, {}
  local all = split(known[5])
  local stored = redis.call('HMGET', state.in_flight, unpack(all))
  for place, number in ipairs(all) do
    local delivery = stored[place] and decode_delivery(stored[place])
    local message = delivery and delivery.serial == serial and find(state, number, delivery.letter == '0')
    if message then
      local past = delivery.has_past and read_past(state, number)
      local first_ms = past and past.first_ms > 0 and past.first_ms or known[1]
      numbers[#numbers + 1], values[#values + 1] = number, message.value
      more[#more + 1] = {#numbers, message.key, message.headers, delivery.attempt, first_ms}
      if delivery.is_extended then
        redis.call('ZREM', state.due, 'x' .. number)
        changed[#changed + 1] = number
        changed[#changed + 1] = encode_delivery(serial, delivery.attempt, delivery.has_past and 'p' or '-', delivery.size,
          delivery.letter, delivery.key)
      end
    end
  end
  if #numbers == 0 then return nil end
  call_all('HSET', state.in_flight, changed)
  local due_ms = state.at_ms + visibility_ms
  redis.call('ZADD', state.due, due_ms, 'h' .. serial)
  state.next_ms = math.min(state.next_ms, due_ms)
  return cmsgpack.pack({CALL_VERSION, serial, known[1], due_ms, table.concat(numbers), values, more, '', 0, false, 0})
end

-- args: settings {max_attempts, backoff_ms, retention_ms, drops_expired}, attempt_id, visibility_ms, count_max, per_key, bytes_max, node.
-- Answer: serial, delivered_ms, due_ms, numbers, values, `more`, empty_reason, next_ms, whether there is more, redelivered. Most messages
-- have no key, no headers, and no earlier attempt; of the others, `more` has place, key, headers, attempt, first_ms.
local function consume(keys, argv)
  local args = cmsgpack.unpack(argv[1])
  local state = open_group(keys, args)
  local settings, attempt_id, visibility_ms = args[3], args[4], args[5]
  expire(state, settings)
  local again = hand_out_again(state, attempt_id, visibility_ms)
  if again then
    wake_if_sooner(state)
    save_group(state)
    return again
  end
  local number = math.max(state.serial + 1, state.at_us)
  local take = new_take(state, settings, digits(number), args[6], args[7], args[8])
  take:met()
  take.is_batch = #take.numbers == 0
  local more = take:is_full() or take:unmet()
  local reason, due_ms = '', 0
  take.text = table.concat(take.numbers)
  if #take.numbers > 0 then
    state.serial = number
    due_ms = take:record(attempt_id, visibility_ms, args[9])
  end
  drop_finished(state)
  if #take.numbers == 0 then
    reason = empty_reason(state, redis.call('HLEN', state.in_flight) + state.batched, redis.call('ZCARD', state.waiting))
  end
  -- This call took only a part of what became ready by itself; consumers that wait do not know of the rest.
  if state.has_ready and more then wake(state, state.group) end
  save_group(state)
  return cmsgpack.pack({CALL_VERSION, take.serial, state.at_ms, due_ms, take.text, take.values, take.more, reason, state.next_ms, more,
    take.redelivered})
end
