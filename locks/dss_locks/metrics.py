"""The lock manager's metrics.

Calls are counted by the node that receives them. Ends of holds are counted by the leader only, because a hold can end without a
call (with its lease or session, or by an ack of the queue): every node applies that entry, and a restarted node applies it again.
In both cases, the sum over all nodes is correct.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from prometheus_client import Counter, Gauge, Histogram

from dss_locks.core.state import LockChanged
from dss_locks.core.table import LockTable

if TYPE_CHECKING:
    from dss_raft.node import Node

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20)
_HELD_SECONDS = (0.005, 0.025, 0.1, 0.5, 1, 5, 15, 30, 60, 300, 1800, 7200)

ACQUIRE_RESULTS = (
    "granted",
    "reentrant",
    "held",
    "wait_timeout",
    "deadlock",
    "lock_lost",
    "session_lost",
    "invalid",
    "over_limit",
    "cancelled",
    "failed",
)
RELEASE_RESULTS = ("released", "not_held", "not_holder", "forced", "failed")

lock_acquire_total = Counter("lock_acquire_total", "Acquire calls at this node, by result", ["mode", "result"])
lock_release_total = Counter("lock_release_total", "Release calls at this node, by result", ["result"])
lock_held = Gauge("lock_held", "Locks held in the cluster, as seen by this node", ["mode"])
lock_delayed = Gauge("lock_delayed", "Keys with a lock delay after their lock was lost, as seen by this node")
lock_waiting = Gauge("lock_waiting", "Calls waiting for a lock in the cluster, as seen by this node")
lock_wait_seconds = Histogram("lock_wait_seconds", "Time that granted requests waited", buckets=_SECONDS)
lock_held_seconds = Histogram("lock_held_seconds", "Time that locks were held, counted by the leader", buckets=_HELD_SECONDS)
lock_expired_total = Counter("lock_expired_total", "Locks lost because their lease or session expired, counted by the leader")
lock_deadlock_total = Counter("lock_deadlock_total", "Acquire calls at this node refused because of a deadlock")

acquire_counters = {
    (mode, result): lock_acquire_total.labels(mode, result) for mode in ("exclusive", "shared") for result in ACQUIRE_RESULTS
}
release_counters = {result: lock_release_total.labels(result) for result in RELEASE_RESULTS}


def attach(node: Node) -> None:
    """Connect the gauges to this node's table, and count ends of holds while it leads. Call it once, when the node is built."""
    table = cast(LockTable, node.machine("locks"))
    lock_held.labels("shared").set_function(lambda: table.holdings.held[0])
    lock_held.labels("exclusive").set_function(lambda: table.holdings.held[1])
    lock_delayed.set_function(lambda: len(table.holdings.delays.by_key))
    lock_waiting.set_function(lambda: len(table.waiters.by_origin))

    def count(event: LockChanged, index: int) -> None:
        kind = event.kind
        if (kind == "released" or kind == "lost") and node.is_leader:
            lock_held_seconds.observe(event.held_ms / 1000)
            if kind == "lost" and event.reason != "forced":
                lock_expired_total.inc()

    node.on_event(LockChanged, count)
