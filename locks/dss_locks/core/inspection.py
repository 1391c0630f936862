"""Read-only views of the lock table: who holds a key, who waits for it, and why a client is waiting. Pure, as the table is.

Times are relative to `now_ms`, the applied time as estimated by this node.
"""

from __future__ import annotations

from itertools import chain as chained
from itertools import islice
from typing import Any

from dss_locks.core.holdings import MODES
from dss_locks.core.state import Hold, KeyLock, LockWaiter
from dss_locks.core.table import LockTable
from dss_locks.core.waiters import Positions

ROWS_SHOWN_MAX = 1_000
EDGES_SHOWN_MAX = 10_000
CHAIN_SHOWN_MAX = 100


def status(table: LockTable, key: str, now_ms: int, client: str = "", rows_max: int = ROWS_SHOWN_MAX) -> dict[str, Any]:
    """Holders and waiters of a key, in order, the first `rows_max` of each. With `client`: why that client waits."""
    lock = table.locks.get(key)
    holds = lock.holds() if lock is not None else []
    queue = (lock.queue if lock is not None else None) or []
    upgraders = (lock.upgraders if lock is not None else None) or []
    ordered = chained(upgraders, (p for p in queue if key not in p.upgrades))
    body: dict[str, Any] = {
        "key": key,
        "locked": bool(holds),
        "mode": MODES[holds[0].exclusive] if holds else None,
        "holders": [hold_row(table, hold, now_ms) for hold in holds[:rows_max]],
        "holder_count": len(holds),
        "waiters": [waiter_row(waiter, number, now_ms) for number, waiter in enumerate(islice(ordered, rows_max), 1)],
        "waiter_count": len(queue),
        "delay": delay_row(table, key, now_ms),
    }
    if client:
        body["why"] = why(table, key, client, now_ms)
    return body


def hold_row(table: LockTable, hold: Hold, now_ms: int) -> dict[str, Any]:
    """A holder in the answer of `status`."""
    return {
        "client": hold.client,
        "mode": MODES[hold.exclusive],
        "fencing_token": hold.token,
        "expires_in_ms": table.holdings.expires_in_ms(hold, now_ms),
        "age_ms": max(0, now_ms - hold.granted_ms),
        "ttl_ms": hold.ttl_ms,
        "lock_delay_ms": hold.lock_delay_ms,
        "session": hold.session,
        "meta": hold.meta.value() if hold.meta is not None else None,
    }


def delay_row(table: LockTable, key: str, now_ms: int) -> dict[str, Any] | None:
    """The lock delay of a key: who lost the lock, which requests have to wait, and for how long. None if it has none."""
    delay = table.holdings.delays.by_key.get(key)
    if delay is None:
        return None
    return {
        "lost_by": delay.client,
        "keeps_out": "everybody" if delay.exclusive else "exclusive",
        "left_ms": table.holdings.delays.left_ms(key, now_ms),
        "delay_ms": delay.length_ms,
    }


def waiter_row(waiter: LockWaiter, position: int, now_ms: int) -> dict[str, Any]:
    """A waiter in the answer of `status`."""
    first = waiter.callers[0]
    return {
        "position": position,
        "place": waiter.rank,
        "client": waiter.client,
        "mode": MODES[waiter.exclusive],
        "keys": waiter.keys,
        "upgrade": bool(waiter.upgrades),
        "age_ms": max(0, now_ms - first.since_ms),
        "gives_up_in_ms": max(0, max(caller.deadline_ms for caller in waiter.callers) - now_ms),
        "meta": first.meta.value() if first.meta is not None else None,
    }


def why(table: LockTable, key: str, client: str, now_ms: int) -> dict[str, Any] | None:
    """Why `client` waits for `key`: its position, the holders, the lock delay if that blocks it, and the chain of clients.

    None: it does not wait for this key.
    """
    lock = table.locks.get(key)
    waiter = next((p for p in table.waiters.of_client.get(client, ()) if key in p.keys), None)
    if lock is None or waiter is None:
        return None
    return {
        "position": Positions(table.locks).at(waiter, key) or 1,
        "holders": [hold_row(table, hold, now_ms) for hold in lock.holds()[:ROWS_SHOWN_MAX] if hold.client != client],
        "delay": delay_row(table, key, now_ms) if table.holdings.delays.blocks(key, waiter.exclusive) else None,
        "chain": chain(table, waiter),
    }


def chain(table: LockTable, waiter: LockWaiter, steps_max: int = CHAIN_SHOWN_MAX) -> list[dict[str, Any]]:
    """Who waits for whom: follow the first blocker from `waiter` on, until a client that is not waiting."""
    steps: list[dict[str, Any]] = []
    seen: dict[str, None] = {}
    current: LockWaiter | None = waiter
    while current is not None and current.client not in seen and len(steps) < steps_max:
        seen[current.client] = None
        step = _first_step(table, current)
        if step is None:
            break
        steps.append(step)
        current = next(iter(table.waiters.of_client.get(step["held_by"], ())), None)
    return steps


def _first_step(table: LockTable, waiter: LockWaiter) -> dict[str, Any] | None:
    for key in waiter.keys:
        blocker = next(table.locks[key].blockers(waiter, key), None)
        if blocker is not None:
            return {"client": waiter.client, "waits_for": key, "held_by": blocker.client, "because": blocker.because}
    return None


def graph(table: LockTable, edges_max: int = EDGES_SHOWN_MAX, places_max: int | None = None) -> dict[str, Any]:
    """The waits-for graph: the clients that wait or are waited for, and who waits for whom.

    In a queue, only the edge to the nearest blocking waiter is shown. The edges to those before it follow from there.

    Args:
        places_max: how many places in queues are looked at, from those of the first calls on; None: all.
    """
    edges: list[dict[str, Any]] = []
    nodes: dict[str, bool] = {}
    nearest: dict[str, _NearestWaiters] = {}
    places = 0
    for waiter in table.waiters.all() if places_max is None else table.waiters.first(places_max):
        nodes[waiter.client] = True
        for key in waiter.keys:
            places += 1
            if places_max is not None and places > places_max:
                return _graph(table, nodes, edges, truncated=True)
            lock = table.locks[key]
            if key not in nearest:
                nearest[key] = _NearestWaiters(lock, key)
            for client, because in _edges_from(lock, waiter, key, nearest[key].of(waiter), edges_max):
                nodes.setdefault(client, False)
                if len(edges) >= edges_max:
                    return _graph(table, nodes, edges, truncated=True)
                edges.append(
                    {"from": waiter.client, "to": client, "key": key, "mode": MODES[waiter.exclusive], "because": because}
                )
    return _graph(table, nodes, edges, truncated=places_max is not None and len(table.waiters.by_origin) > places_max)


class _Nearest:
    """The client of the last waiter added, and the last client other than that one."""

    def __init__(self) -> None:
        self._client = self._other = ""

    def add(self, waiter: LockWaiter) -> None:
        if waiter.client != self._client:
            self._other, self._client = self._client, waiter.client

    def before(self, waiter: LockWaiter) -> str:
        """The client of the last waiter that does not belong to the client of `waiter`; "" if there is none."""
        return self._other if waiter.client == self._client else self._client


class _NearestWaiters:
    """For the waiters of one key, the client of the nearest waiter that each waits for there; "" if there is none.

    This is the last of `KeyLock.blockers`, for the queue in one pass, which goes as far as the last waiter that was asked for.
    """

    def __init__(self, lock: KeyLock, key: str) -> None:
        self._key = key
        self._queue = iter(lock.queue or ())
        self._any_mode, self._exclusive, self._upgrading = _Nearest(), _Nearest(), _Nearest()
        for waiter in lock.upgraders or ():
            self._upgrading.add(waiter)
        self._found: dict[int, str] = {}

    def of(self, waiter: LockWaiter) -> str:
        while waiter.rank not in self._found:
            self._pass(next(self._queue))
        return self._found[waiter.rank]

    def _pass(self, waiter: LockWaiter) -> None:
        ahead = self._any_mode if waiter.exclusive else self._exclusive
        is_free = self._key in waiter.depends_on
        self._found[waiter.rank] = "" if is_free else ahead.before(waiter) or self._upgrading.before(waiter)
        self._any_mode.add(waiter)
        if waiter.exclusive:
            self._exclusive.add(waiter)


def _edges_from(lock: KeyLock, waiter: LockWaiter, key: str, nearest: str, edges_max: int) -> list[tuple[str, str]]:
    """The clients that block `waiter` at a key: the holders, one more than `edges_max` at most, and the nearest waiter."""
    edges: dict[str, str] = {}
    for blocker in islice(lock.blockers(waiter, key), edges_max + 1):
        if blocker.because != "holds":
            break
        edges[blocker.client] = "holds"
    if nearest:
        edges.setdefault(nearest, "waits")
    return list(edges.items())


def _graph(table: LockTable, nodes: dict[str, bool], edges: list[dict[str, Any]], *, truncated: bool) -> dict[str, Any]:
    rows = [
        {"client": client, "waiting": waiting, "keys_held": table.holdings.clients.get(client, 0)}
        for client, waiting in nodes.items()
    ]
    return {"nodes": rows, "edges": edges, "truncated": truncated}


def check(table: LockTable, key: str, token: int) -> dict[str, Any]:
    """Whether `token` belongs to a current holder, and the highest token of the current holders (0 if there are none)."""
    lock = table.locks.get(key)
    tokens = [hold.token for hold in lock.holds()] if lock is not None else []
    return {"valid": token in tokens, "current": max(tokens, default=0)}


def audit(table: LockTable) -> list[dict[str, Any]]:
    """The forced releases, latest first."""
    return [
        {
            "index": forced.index,
            "at_ms": forced.at_ms,
            "key": forced.key,
            "client": forced.client,
            "fencing_token": forced.fencing_token,
            "reason": forced.reason,
            "by": forced.by,
        }
        for forced in reversed(table.forced_releases)
    ]
