"""The refusals of the lock table. Pure, as the table is."""

from __future__ import annotations

from typing import Any

from dss_api.result import Result
from dss_locks.core.account import LIMIT
from dss_locks.core.holdings import MODES, Holdings
from dss_locks.core.state import LockWaiter
from dss_locks.core.waiters import Positions

#: Maximum number of holders of a key in a refusal.
HOLDERS_SHOWN_MAX = 16


def holders(holdings: Holdings, key: str, at_ms: int, at_most: int = HOLDERS_SHOWN_MAX) -> list[dict[str, Any]]:
    """The first holders of a key."""
    lock = holdings.locks.get(key)
    return [
        {
            "key": key,
            "client": hold.client,
            "mode": MODES[hold.exclusive],
            "fencing_token": hold.token,
            "expires_in_ms": holdings.expires_in_ms(hold, at_ms),
        }
        for hold in (lock.holds()[:at_most] if lock is not None else ())
    ]


def not_granted(code: str, holdings: Holdings, positions: Positions, waiter: LockWaiter, at_ms: int) -> Result:
    """`held` and `wait_timeout`: the holders, the position in the queue, and the remaining lock delay if there is one."""
    others = [h for key in waiter.keys for h in holders(holdings, key, at_ms) if h["client"] != waiter.client]
    body: dict[str, Any] = {"holders": others, "position": positions.of(waiter)}
    delayed = [key for key in waiter.keys if holdings.delays.blocks(key, waiter.exclusive)] if holdings.delays.by_key else []
    if delayed:
        left_ms = max(holdings.delays.left_ms(key, at_ms) for key in delayed)
        body["delayed_ms"] = left_ms
        body["detail"] = f"the lock of {delayed[0]} was lost; the key is not granted for another {left_ms} ms (lock_delay_ms)"
    return Result(body, code)


def deadlock(cycle: list[dict[str, Any]]) -> Result:
    """`deadlock`, with the cycle that the request would close."""
    return Result({"deadlock": True, "cycle": cycle}, "deadlock")


def over_limit(holdings: Holdings, limit: str) -> Result:
    """`over_limit`, with the name of the limit."""
    if limit == LIMIT:
        return holdings.account.limits.over_limit(limit)
    maximum = getattr(holdings.limits, limit)
    return Result({"limit": limit, "maximum": maximum, "detail": f"the lock manager's limit {limit} is {maximum}"}, "over_limit")


def not_holder(holdings: Holdings, keys: list[str]) -> Result:
    """`not_holder`: other clients hold these keys. `current` is the highest of their tokens."""
    current = max(hold.token for key in keys for hold in holdings.locks[key].holds())
    return Result({"keys": keys, "current": current}, "not_holder")
