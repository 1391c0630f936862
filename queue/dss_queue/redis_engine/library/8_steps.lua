local function revision()
  return REVISION
end

-- While a library is loaded, it has no functions of Lua: not even `pairs`.
local function register(name, callback, flags)
  redis.register_function{function_name = 'dss_queue_1_' .. name, callback = callback, flags = flags}
end

register('publish', publish, {})
register('put_group', put_group, {})
register('open', open, {})
register('confirm', confirm, {})
-- Steps that let the partition shrink work when memory is full.
register('purge', purge, {'allow-oom'})
register('retain', retain, {'allow-oom'})
register('close', close_partition, {'allow-oom'})
register('delete', delete, {'allow-oom'})
register('delete_group', delete_group, {'allow-oom'})
register('consume', consume, {'allow-oom'})
register('ack', ack, {'allow-oom'})
register('nack', nack, {'allow-oom'})
register('extend', extend, {'allow-oom'})
register('sweep', sweep, {'allow-oom'})
register('redrive', redrive, {'allow-oom'})
register('purge_dead', purge_dead, {'allow-oom'})
-- Steps that change nothing.
register('due', due, {'no-writes'})
register('stats', stats, {'no-writes'})
register('dead_count', dead_count, {'no-writes'})
register('group_stats', group_stats, {'no-writes'})
register('in_flight', in_flight, {'no-writes'})
register('peek', peek, {'no-writes'})
register('group_peek', group_peek, {'no-writes'})
register('revision', revision, {'no-writes'})
