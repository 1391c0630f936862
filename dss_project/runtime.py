"""The running node of this process: assembled here, started and stopped by the server's command."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

from dss_project.config import NodeConfig
from dss_raft.errors import Refused
from dss_raft.node import Node

_node: Node | None = None
_loop: asyncio.AbstractEventLoop | None = None
_cache_service: object | None = None


async def start(config: NodeConfig, on_failure: Callable[[BaseException], None] | None = None) -> Node:
    """Assemble the node with its subsystems and start it in the running loop.

    Args:
        on_failure: called once when the node must stop because going on could do harm.

    Raises:
        StoreRefused, StoreDamaged, StoreFailed: the data directory cannot be used.
        OSError: the peer port cannot be bound.
    """
    global _node, _loop, _cache_service
    from dss_cache import metrics as cache_metrics
    from dss_cache.directory import Directory
    from dss_cache.service import CacheService
    from dss_locks import metrics as lock_metrics
    from dss_locks.table import LockTable
    from dss_locks.watching import LockWatchers
    from dss_queue import metrics as queue_metrics
    from dss_queue.broker import Broker
    from dss_queue.push import Subscribers

    # The order is part of the replicated state: the same on every node, for ever.
    table = LockTable()
    node = Node(config, [table, Broker(table), Directory()], on_failure)
    lock_metrics.attach(node)
    LockWatchers(node)
    queue_metrics.attach(node)
    Subscribers(node)
    cache = CacheService(node)
    cache_metrics.show(cache)
    await node.start()
    await cache.start()
    _node, _loop, _cache_service = node, asyncio.get_running_loop(), cache
    # What lives now lives until the end: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    return node


async def stop() -> None:
    """Write back what is dirty, take back what waits, hand leadership over, stop. Safe to call when nothing runs."""
    global _node
    node, _node = _node, None
    if node is None:
        return
    if _cache_service is not None:
        await _cache_service.stop()  # type: ignore[attr-defined]
    await node.withdraw()
    await node.hand_over()
    await node.stop()


def node() -> Node:
    """The running node.

    Raises:
        Refused: `stopping` while there is none.
    """
    if _node is None:
        raise Refused("stopping", "this node is not running")
    return _node


def loop() -> asyncio.AbstractEventLoop:
    """The loop that the node runs in.

    Raises:
        Refused: `stopping` while there is none.
    """
    if _loop is None or _node is None:
        raise Refused("stopping", "this node is not running")
    return _loop
