"""The node of this process: assembled, started and stopped."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

from dss_api import guard, running
from dss_cache import metrics as cache_metrics
from dss_cache.backing_store import BackingStore
from dss_cache.core.directory import Directory
from dss_cache.django_app.django_store import DjangoStore
from dss_cache.service import CacheService
from dss_console.live.view import SERVICE, LiveView
from dss_locks import metrics as lock_metrics
from dss_locks.core.table import LockTable
from dss_locks.watching import LockWatchers
from dss_project.config import NodeConfig
from dss_project.first_user import FirstUsers
from dss_queue import engine_metrics
from dss_queue import metrics as queue_metrics
from dss_queue.core.broker import Broker
from dss_queue.engine_numbers import EngineNumbers
from dss_queue.engine_service import EngineService
from dss_queue.engine_upkeep import EngineUpkeep
from dss_queue.idle_topics import IdleTopics
from dss_queue.routing import Routing, routing_of
from dss_queue.subscribers import Subscribers
from dss_raft import node_metrics, state_usage
from dss_raft.audit_log import AuditLog
from dss_raft.node import Node
from dss_raft.replication.access_tokens import AccessTokens
from dss_raft.replication.audit import AuditTrail
from dss_raft.replication.limits import LimitsMachine, StateLimits
from dss_raft.replication.machine import StateMachine
from dss_raft.replication.users import Users
from dss_raft.tokens import Tokens

#: New objects between two garbage collections. With Python's 700, the objects of the calls in progress survive the collection and are
#: looked at again by the next ones. A collection of this many takes about 0.4 ms.
YOUNG_OBJECTS = 10_000
#: Collections of one generation before the next older one is collected: Python's own values.
GENERATIONS = 10, 10

_node: Node | None = None
_cache_service: CacheService | None = None
_engine: EngineService | None = None


def state_machines() -> list[StateMachine]:
    """The state machines of a node. Their order is part of the replicated state: the same on every node."""
    limits = StateLimits()
    table = LockTable(state_limits=limits)
    of_access: list[StateMachine] = [AccessTokens(limits), AuditTrail(limits), Users(limits)]
    return [table, Broker(table, limits), Directory(limits), *of_access, LimitsMachine(limits)]


async def start(config: NodeConfig, on_failure: Callable[[BaseException], None] | None = None) -> Node:
    """Assemble the node with its subsystems and start it in the running loop.

    Args:
        on_failure: called once if the node has to stop because it could do harm otherwise.

    Raises:
        StoreRefused, StoreDamaged, StoreFailed: the data directory cannot be used.
        OSError: the peer port cannot be bound.
    """
    global _node, _cache_service, _engine
    node = Node(config, state_machines(), on_failure)
    state_usage.attach(node)
    node_metrics.attach(node)
    lock_metrics.attach(node)
    LockWatchers(node)
    queue_metrics.attach(node)
    Subscribers(node)
    IdleTopics(node)
    engine = EngineService(node, config.engine_url, config.engine_replicas_min, config.engine_keyspace)
    queue_metrics.show_engine(EngineNumbers(node, Routing(node, engine)))
    EngineUpkeep(node, engine)
    engine_metrics.attach(node, engine)
    AuditLog(node)
    tokens = Tokens(node, guard.shared())
    FirstUsers(node, config)
    cache = CacheService(node, backing_store(config))
    cache_metrics.show(cache)
    LiveView(node, cache)
    await node.start()
    tokens.begin()
    await cache.start()
    await engine.start()
    _node, _cache_service, _engine = node, cache, engine
    running.set_running(node, asyncio.get_running_loop())
    # Objects that exist now live until the process ends: exclude them from garbage collection.
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *GENERATIONS)
    return node


async def stop() -> None:
    """Write back dirty values, withdraw waiting calls, hand leadership over and stop. Does nothing if no node runs."""
    global _node
    node, _node = _node, None
    running.set_running(None, None)
    if node is None:
        return
    if _cache_service is not None:
        await _cache_service.stop()
    node.services[SERVICE].close()
    await node.withdraw()
    routing_of(node).withdraw()
    if _engine is not None:
        await _engine.stop()
    await node.hand_over()
    await node.stop()


def backing_store(config: NodeConfig) -> BackingStore:
    """The backing store that the settings name."""
    if config.cache_memory == "redis":
        # Imported where it is needed: it would take a tenth of the start of every other node.
        from dss_cache.redis_store import RedisStore

        return RedisStore(
            config.redis_url,
            config.cache_backing_prefix,
            config.cache_redis_timeout_ms / 1000,
            config.cache_redis_connections_max,
        )
    return DjangoStore()
