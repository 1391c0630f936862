-- ------------------------------------------------- partitions and groups

-- Opening. The caller gets a token, looks into the log whether the topic is still here, and confirms the token. What is closed or
-- deleted in between forgets the token. args: token. Answer: the token to confirm; '': the partition is open or closed already.
local function open(keys, argv)
  local args = cmsgpack.unpack(argv[1])
  local state = open_partition(keys, args)
  if state.stored then return cmsgpack.pack({CALL_VERSION, ''}) end
  local token = redis.call('HGET', state.info, 'opening') or args[3]
  redis.call('HSET', state.info, 'opening', token)
  redis.call('PEXPIRE', state.info, OPENING_MS)
  return cmsgpack.pack({CALL_VERSION, token})
end

-- A group that has to finish what the partition retains or, if it is late, what comes after.
local function create_group(state, group, name, is_late)
  local length = redis.call('XLEN', state.messages)
  redis.call('SADD', state.group_names, name)
  state.groups = state.groups + 1
  redis.call('HSET', group, 'state', cmsgpack.pack({0, 0, NEVER, state.purged,
    is_late and state.published or state.published - length, 0, 0, 0, 0, 0, is_late and state.last or 0}))
  return is_late and 0 or length
end

-- args: token, names of the groups that the topic has in the log. Behind the keys of the partition, the call has those of these groups.
local function confirm(keys, argv)
  local args = cmsgpack.unpack(argv[1])
  local state = open_partition(keys, args)
  if state.is_closed then refuse('CLOSED', 'the partition takes no more messages') end
  if not state.stored then
    if redis.call('HGET', state.info, 'opening') ~= args[3] then refuse('NOT_OPEN', 'the partition is not being opened') end
    redis.call('HDEL', state.info, 'opening')
    redis.call('PERSIST', state.info)
    for place, name in ipairs(args[4]) do create_group(state, keys[6 + place], name, false) end
    save_partition(state)
  end
  return cmsgpack.pack({CALL_VERSION})
end

-- No further message is published. Consumers that wait look again.
local function close_partition(keys, argv)
  local args = cmsgpack.unpack(argv[1])
  local state = open_partition(keys, args)
  if not state.stored then
    redis.call('UNLINK', state.info)
  elseif not state.is_closed then
    state.is_closed = true
    save_partition(state)
    wake(state, '')
  end
  return cmsgpack.pack({CALL_VERSION})
end

-- args: start ("first" or "now"), group. Answer: whether it is new, and what it has to finish.
local function put_group(keys, argv)
  local args = cmsgpack.unpack(argv[1])
  local state = open_partition(keys, args)
  if not state.stored then refuse('NOT_OPEN', 'the partition is not open') end
  local group, name = keys[7], args[4]
  if redis.call('HEXISTS', group, 'state') == 1 then
    return cmsgpack.pack({CALL_VERSION, false, pending(open_group(keys, args))})
  end
  if state.groups >= args[5] then refuse('OVER_LIMIT', string.format('groups_per_topic_max %.0f %.0f', args[5], state.groups)) end
  local pending_count = create_group(state, group, name, args[3] == 'now')
  save_partition(state)
  return cmsgpack.pack({CALL_VERSION, true, pending_count})
end

-- Delete the messages, not the dead letters. Groups notice it at their next step. Answer: how many there were.
local function purge(keys, argv)
  local args = cmsgpack.unpack(argv[1])
  local state = open_partition(keys, args)
  if not state.stored then return cmsgpack.pack({CALL_VERSION, 0}) end
  local length = redis.call('XLEN', state.messages)
  redis.call('UNLINK', state.messages, state.done)
  state.bytes = 0
  state.purged, state.purged_at = state.last, state.published
  save_partition(state)
  if state.is_closed then wake(state, '') end
  return cmsgpack.pack({CALL_VERSION, length})
end

-- Old messages of a partition without groups. args: retention_ms. Answer: how many are deleted, and whether there may be more.
local function retain(keys, argv)
  local args = cmsgpack.unpack(argv[1])
  local state = open_partition(keys, args)
  local count = drop_old(state, args[3])
  if state.stored then save_partition(state) end
  return cmsgpack.pack({CALL_VERSION, count, count == UPKEEP_MAX})
end

-- A group goes, in as many calls as it takes. Messages that only this group had not finished leave the partition. In the counts of the others
-- it is one of those that have finished them, so it is taken out of the counts, message by message; up to `passed` it is.
-- args: name. Answer: the name of another group that must be deleted first, or '', and whether there is more to do.
local function delete_group(keys, argv)
  local args = cmsgpack.unpack(argv[1])
  local state = open_group(keys, args, 'delete')
  local name = args[3]
  local current = redis.call('HGET', state.info, 'deleting')
  if current and current ~= name then return cmsgpack.pack({CALL_VERSION, current, true}) end
  if not current then
    redis.call('HSET', state.info, 'deleting', name)
    state.is_deleting, state.passed = true, 0
  end
  local is_over = drop_dead(state, '') < UPKEEP_MAX
  if is_over and state.groups > 1 then
    local entries = redis.call('XRANGE', state.messages, '(' .. digits(state.passed), '+', 'COUNT', UPKEEP_MAX)
    local states, numbers = states_of(state, entries)
    local gone = {}
    for place, number in ipairs(numbers) do
      local has_finished = tonumber(number) <= state.cursor and not states[place]
      local done = has_finished and redis.call('HINCRBY', state.done, number, -1) or tonumber(redis.call('HGET', state.done, number) or '0')
      if done >= state.groups - 1 then
        gone[#gone + 1] = number
        local key, headers = extras(entries[place][2][4])
        state.bytes = state.bytes - #entries[place][2][2] - #key - #headers
      elseif done <= 0 then
        redis.call('HDEL', state.done, number)
      end
      state.passed = tonumber(number)
    end
    call_all('XDEL', state.messages, gone)
    call_all('HDEL', state.done, gone)
    is_over = #entries < UPKEEP_MAX
  end
  if not is_over then
    save_group(state)
    return cmsgpack.pack({CALL_VERSION, '', true})
  end
  redis.call('HDEL', state.info, 'deleting')
  redis.call('SREM', state.group_names, name)
  redis.call('UNLINK', unpack(keys, 7))
  state.groups, state.passed = state.groups - 1, 0
  state.copies = state.copies - state.private_bytes
  save_partition(state)
  wake(state, state.group)
  return cmsgpack.pack({CALL_VERSION, '', false})
end

-- Delete the partition with its groups, whose keys the call must have. args: names of groups.
-- Answer: the names of all groups, if the call lacks some, and whether it is deleted.
local function delete(keys, argv)
  local args = cmsgpack.unpack(argv[1])
  local state = open_partition(keys, args)
  local given = {}
  for _, name in ipairs(args[3]) do given[name] = true end
  local names = redis.call('SMEMBERS', state.group_names)
  for _, name in ipairs(names) do
    if not given[name] then return cmsgpack.pack({CALL_VERSION, names, false}) end
  end
  for first = 1, #keys, ARGUMENTS_MAX do
    redis.call('UNLINK', unpack(keys, first, math.min(first + ARGUMENTS_MAX - 1, #keys)))
  end
  wake(state, '')
  return cmsgpack.pack({CALL_VERSION, {}, true})
end

-- When a sweep has something to do. args: retention_ms. Behind the keys of the partition, the call has those of groups.
-- Answer: now, the places of the groups that have something to do, the time of the next one, when the first message is too old, and how many
-- groups there are (-1: the partition is not open), and how many of those in the call.
local function due(keys, argv)
  local args = cmsgpack.unpack(argv[1])
  local state = open_partition(keys, args)
  local retention_ms, next_ms, old_ms, places, known = args[3], NEVER, NEVER, {}, 0
  for place = 7, #keys do
    local stored = redis.call('HGET', keys[place], 'state')
    local read = stored and cmsgpack.unpack(stored)
    -- A group that is being deleted is none of them.
    if read and not read[14] then
      known = known + 1
      local cursor, start = read[1], read[11]
      local has_passed_over = cursor < start and redis.call('XRANGE', state.messages, '(' .. digits(cursor), digits(start), 'COUNT', 1)[1]
      if read[3] <= state.at_ms or state.purged > read[4] or has_passed_over then
        places[#places + 1] = place - 7
      else
        next_ms = math.min(next_ms, read[3])
      end
    end
  end
  local first = retention_ms > 0 and redis.call('XRANGE', state.messages, '-', '+', 'COUNT', 1)[1]
  if first then
    local _, _, ready_ms = extras(first[2][4])
    old_ms = math.max(math.floor(tonumber(string.sub(first[1], 1, 16)) / 1000), ready_ms) + retention_ms
  end
  return cmsgpack.pack({CALL_VERSION, state.at_ms, places, next_ms, old_ms, state.stored and state.groups or -1, known})
end
