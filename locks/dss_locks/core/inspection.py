"""Answers to "who holds this, who waits, and why am I waiting": read-only views of the table. Pure, as the table is.

Times are relative to `now_ms`, applied time as the asking node knows it.
"""

from __future__ import annotations

from typing import Any

from dss_locks.core.holdings import MODES
from dss_locks.core.state import Hold, KeyLock, Place
from dss_locks.core.table import LockTable
from dss_locks.core.waits import Positions

ROWS_SHOWN_MAX = 1_000
EDGES_SHOWN_MAX = 10_000
CHAIN_SHOWN_MAX = 100


def status(table: LockTable, key: str, now_ms: int, client: str = "", rows_max: int = ROWS_SHOWN_MAX) -> dict[str, Any]:
    """Holders and waiters of a key, in order, the first `rows_max` of each; with `client`, why that one waits."""
    lock = table.locks.get(key)
    holds = lock.holds() if lock is not None else []
    queue = list(lock.queue.values()) if lock is not None and lock.queue is not None else []
    ordered = [p for p in queue if key in p.upgrades] + [p for p in queue if key not in p.upgrades]
    body: dict[str, Any] = {
        "key": key,
        "locked": bool(holds),
        "mode": MODES[holds[0].exclusive] if holds else None,
        "holders": [hold_row(table, hold, now_ms) for hold in holds[:rows_max]],
        "holder_count": len(holds),
        "waiters": [waiter_row(place, number, now_ms) for number, place in enumerate(ordered[:rows_max], 1)],
        "waiter_count": len(queue),
        "delay": delay_row(table, key, now_ms),
    }
    if client:
        body["why"] = why(table, key, client, now_ms)
    return body


def hold_row(table: LockTable, hold: Hold, now_ms: int) -> dict[str, Any]:
    """A holder, as status shows it."""
    return {
        "client": hold.client,
        "mode": MODES[hold.exclusive],
        "fencing_token": hold.token,
        "expires_in_ms": table.holdings.expires_in_ms(hold, now_ms),
        "age_ms": max(0, now_ms - hold.granted_ms),
        "ttl_ms": hold.ttl_ms,
        "lock_delay_ms": hold.lock_delay_ms,
        "session": hold.session,
        "meta": hold.meta,
    }


def delay_row(table: LockTable, key: str, now_ms: int) -> dict[str, Any] | None:
    """Who lost the key, and how long it is still kept back from requests of which mode; None: it is not."""
    delay = table.holdings.delays.by_key.get(key)
    if delay is None:
        return None
    return {
        "lost_by": delay.client,
        "keeps_out": "everybody" if delay.exclusive else "exclusive",
        "left_ms": table.holdings.delays.left_ms(key, now_ms),
        "delay_ms": delay.length_ms,
    }


def waiter_row(place: Place, position: int, now_ms: int) -> dict[str, Any]:
    """A waiter, as status shows it."""
    first = place.callers[0]
    return {
        "position": position,
        "place": place.rank,
        "client": place.client,
        "mode": MODES[place.exclusive],
        "keys": place.keys,
        "upgrade": bool(place.upgrades),
        "age_ms": max(0, now_ms - first.since_ms),
        "gives_up_in_ms": max(0, max(caller.deadline_ms for caller in place.callers) - now_ms),
        "meta": first.meta,
    }


def why(table: LockTable, key: str, client: str, now_ms: int) -> dict[str, Any] | None:
    """Why `client` waits for `key`: its position, who is in the way, how long the key is kept back if that is the reason, and
    the chain from there to one who does not wait.

    None: it does not wait for this key.
    """
    lock = table.locks.get(key)
    place = next((p for p in table.waits.of_client.get(client, {}).values() if key in p.keys), None)
    if lock is None or place is None:
        return None
    return {
        "position": Positions(table.locks).at(place, key) or 1,
        "holders": [hold_row(table, hold, now_ms) for hold in lock.holds()[:ROWS_SHOWN_MAX] if hold.client != client],
        "delay": delay_row(table, key, now_ms) if table.holdings.delays.blocks(key, place.exclusive) else None,
        "chain": chain(table, place),
    }


def chain(table: LockTable, place: Place, steps_max: int = CHAIN_SHOWN_MAX) -> list[dict[str, Any]]:
    """Who waits for whom, from `place` on, following the first in the way each time, up to somebody who does not wait."""
    steps: list[dict[str, Any]] = []
    seen: dict[str, None] = {}
    current: Place | None = place
    while current is not None and current.client not in seen and len(steps) < steps_max:
        seen[current.client] = None
        step = _first_step(table, current)
        if step is None:
            break
        steps.append(step)
        current = next(iter(table.waits.of_client.get(step["held_by"], {}).values()), None)
    return steps


def _first_step(table: LockTable, place: Place) -> dict[str, Any] | None:
    for key in place.keys:
        blocker = next(table.locks[key].blockers(place, key), None)
        if blocker is not None:
            return {"client": place.client, "waits_for": key, "held_by": blocker.client, "because": blocker.because}
    return None


def graph(table: LockTable, edges_max: int = EDGES_SHOWN_MAX) -> dict[str, Any]:
    """The waits-for graph: the clients that wait or are waited for, and who waits for whom.

    In a queue, only the edge to the nearest place in the way is shown: that one leads on to those before it.
    """
    edges: list[dict[str, Any]] = []
    nodes: dict[str, bool] = {}
    nearest: dict[str, dict[int, str]] = {}
    for place in table.waits.places():
        nodes[place.client] = True
        for key in place.keys:
            lock = table.locks[key]
            if key not in nearest:
                nearest[key] = _nearest_places(lock, key)
            for client, because in _in_the_way(lock, place, key, nearest[key][place.rank]):
                nodes.setdefault(client, False)
                if len(edges) >= edges_max:
                    return _graph(table, nodes, edges, truncated=True)
                edges.append({"from": place.client, "to": client, "key": key, "mode": MODES[place.exclusive], "because": because})
    return _graph(table, nodes, edges, truncated=False)


class _Nearest:
    """The client of the place seen last, and of the one seen last of somebody else."""

    def __init__(self) -> None:
        self._client = self._other = ""

    def saw(self, place: Place) -> None:
        if place.client != self._client:
            self._other, self._client = self._client, place.client

    def to(self, place: Place) -> str:
        return self._other if place.client == self._client else self._client


def _nearest_places(lock: KeyLock, key: str) -> dict[int, str]:
    """Rank -> the client of the nearest place that the place of this rank waits for at the key; "": there is none.

    As the last of `KeyLock.blockers`, for the whole queue in one pass.
    """
    any_mode, exclusive, upgrading = _Nearest(), _Nearest(), _Nearest()
    for place in (lock.upgraders or {}).values():
        upgrading.saw(place)
    found: dict[int, str] = {}
    for rank, place in (lock.queue or {}).items():
        ahead = any_mode if place.exclusive else exclusive
        found[rank] = "" if key in place.counts_on else ahead.to(place) or upgrading.to(place)
        any_mode.saw(place)
        if place.exclusive:
            exclusive.saw(place)
    return found


def _in_the_way(lock: KeyLock, place: Place, key: str, nearest: str) -> list[tuple[str, str]]:
    """Holders in the way, and the nearest of the places in the way."""
    edges: dict[str, str] = {}
    for blocker in lock.blockers(place, key):
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
    """Whether `token` is a present holder's, and the highest token of the present holders (0: nobody holds it)."""
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
        for forced in reversed(table.forced)
    ]
