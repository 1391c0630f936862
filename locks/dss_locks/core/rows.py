"""Holds and waiters as rows of a snapshot."""

from __future__ import annotations

from typing import Any

from dss_locks.core.state import Caller, Hold, LockWaiter
from dss_raft.replication.machine import Origin

#: `timer` refers to this node's list of deadlines. It is not part of the replicated state.
_HOLD_FIELDS = tuple(field for field in Hold.__struct_fields__ if field not in ("key", "timer"))


def encode_hold(hold: Hold) -> list[Any]:
    return [getattr(hold, field) for field in _HOLD_FIELDS]


def decode_hold(key: str, row: list[Any]) -> Hold:
    return Hold(key, *row)


def encode_waiter(waiter: LockWaiter) -> list[Any]:
    callers = [[list(c.origin), c.since_ms, c.deadline_ms, c.ttl_ms, c.meta, c.session, c.lock_delay_ms] for c in waiter.callers]
    return [waiter.rank, waiter.client, waiter.exclusive, waiter.keys, waiter.depends_on, waiter.upgrades, callers]


def decode_waiter(row: list[Any]) -> LockWaiter:
    *fields, callers = row
    waiter = LockWaiter(*fields)
    waiter.callers = [Caller(Origin(*origin), waiter, *rest) for origin, *rest in callers]
    return waiter
