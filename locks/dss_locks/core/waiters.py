"""Waiting requests: their queues, the calls behind them, and the deadlines of those calls."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from itertools import islice
from operator import attrgetter
from typing import Any

from dss_locks.core.account import CALLER_BYTES, PLACE_BYTES, WAITER_BYTES
from dss_locks.core.deadlock import find_cycle
from dss_locks.core.holdings import Holdings
from dss_locks.core.state import Caller, KeyLock, LockWaiter, Queue, remove_waiter
from dss_raft.replication.deadlines import Deadlines
from dss_raft.replication.limits import text_bytes
from dss_raft.replication.machine import Origin


class Waiters:
    """All waiting requests.

    Args:
        holdings: has the table of keys, whose `KeyLock`s contain the queues.
    """

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self.by_origin: dict[Origin, Caller] = {}
        #: client -> its waiters
        self.of_client: dict[str, Queue] = {}
        #: (client, key that it holds) -> its waiters that depend on this hold
        self.dependents: dict[tuple[str, str], Queue] = {}
        self.last_rank = 0
        #: queue entries: a waiter counts once for each of its keys
        self.queued = 0
        self.deadlines: Deadlines[Caller] = Deadlines(attrgetter("deadline_ms"), attrgetter("waiter.rank", "origin"))

    def new(self, client: str, keys: list[str], exclusive: bool) -> LockWaiter:
        """Make a waiter for a new request. It is in no queue yet."""
        depends_on: list[str] = []
        upgrades: list[str] = []
        for key in keys:
            hold = self._holdings.hold_of(key, client)
            if hold is not None:
                depends_on.append(key)
                if exclusive and not hold.exclusive:
                    upgrades.append(key)
        return LockWaiter(self.last_rank + 1, client, exclusive, keys, depends_on or (), upgrades or ())

    def same_as(self, waiter: LockWaiter) -> LockWaiter | None:
        """The waiter of an equal request by the same client."""
        own = self.of_client.get(waiter.client)
        if own is not None:
            for other in own:
                if other.keys == waiter.keys and other.exclusive == waiter.exclusive:
                    return other
        return None

    def over_limit(self, waiter: LockWaiter) -> str:
        """The name of the limit on counts that one more call for `waiter` would exceed; "" if none."""
        limits = self._holdings.limits
        if len(self.by_origin) >= limits.waiters_max:
            return "waiters_max"
        own = self.of_client.get(waiter.client)
        if own is not None and sum(len(p.callers) for p in own) >= limits.waiters_per_client_max:
            return "waiters_per_client_max"
        if not waiter.callers:
            if self.queued + len(waiter.keys) > limits.places_max:
                return "places_max"
            for key in waiter.keys:
                lock = self._holdings.locks.get(key)
                if lock is not None and lock.queue is not None and len(lock.queue) >= limits.waiters_per_key_max:
                    return "waiters_per_key_max"
        return ""

    def may_close_cycle(self, client: str) -> bool:
        """False, the usual case, if no one waits for this client: then it can wait for anything without closing a cycle."""
        return client in self._holdings.contended or client in self.of_client

    def cycle(self, waiter: LockWaiter) -> list[dict[str, Any]]:
        """The cycle that `waiter` would close. It is in no queue afterwards."""
        self._link(waiter)
        cycle = find_cycle(self._holdings.locks, self.of_client, waiter.client)
        self.unlink(waiter)
        return cycle

    def join(self, waiter: LockWaiter) -> None:
        """Append a new waiter to the queues of its keys."""
        self.last_rank = waiter.rank
        self._link(waiter)

    def unlink(self, waiter: LockWaiter) -> None:
        """Remove a waiter from its queues."""
        locks = self._holdings.locks
        for key in waiter.keys:
            lock = locks[key]
            lock.dequeue(waiter, key)
            if lock.queue is None:
                self._holdings.queue_ended(lock)
                if not lock.holder_count():
                    del locks[key]
        self.queued -= len(waiter.keys)
        self._holdings.account.waiters -= waiter.bytes_queued
        _forget(self.of_client, waiter.client, waiter)
        for key in waiter.depends_on:
            _forget(self.dependents, (waiter.client, key), waiter)

    def add_caller(self, caller: Caller) -> None:
        """Add a waiting call."""
        waiter = caller.waiter
        if waiter.callers:
            waiter.callers.append(caller)
        else:
            waiter.callers = [caller]
        self.by_origin[caller.origin] = caller
        self.deadlines.add(caller, caller.deadline_ms)
        self._holdings.account.waiters += CALLER_BYTES + len(caller.session)

    def forget_caller(self, caller: Caller) -> None:
        """Remove a waiting call. Its waiter does not change."""
        del self.by_origin[caller.origin]
        self.deadlines.discard(caller)
        account = self._holdings.account
        account.waiters -= CALLER_BYTES + len(caller.session)
        if caller.meta is not None:
            account.drop_meta(caller.meta)

    def pop_expired(self, at_ms: int) -> list[Caller]:
        """The calls whose wait has timed out, in the order of their deadlines."""
        return self.deadlines.pop_due(at_ms)

    def of_node(self, node: str) -> list[Caller]:
        """The calls made at one node, in an order that is the same on every node."""
        callers = [caller for caller in self.by_origin.values() if caller.origin.node == node]
        callers.sort(key=lambda caller: (caller.waiter.rank, caller.origin))
        return callers

    def is_blocked(self, waiter: LockWaiter) -> bool:
        """Whether `waiter` has to wait at any of its keys: for another client or for a lock delay."""
        locks = self._holdings.locks
        for key in waiter.keys:
            lock = locks.get(key)
            if lock is not None and next(lock.blockers(waiter, key), None) is not None:
                return True
        delays = self._holdings.delays
        return bool(delays.by_key) and any(delays.blocks(key, waiter.exclusive) for key in waiter.keys)

    def front(self, lock: KeyLock, key: str) -> list[LockWaiter]:
        """The waiters at a key that may be grantable: the upgrades, and the queue up to its first exclusive waiter.

        Behind that waiter, only other requests of the same client can be grantable. While the key is held exclusive, only
        requests of the holder can.
        """
        if lock.queue is None:
            return []
        if lock.holder is not None and lock.holder.exclusive:
            return self._of_client_at(lock.holder.client, key)
        front = lock.upgraders[:] if lock.upgraders is not None else []
        for waiter in lock.queue:
            if key not in waiter.upgrades:
                front.append(waiter)
                if waiter.exclusive:
                    if len(self.of_client[waiter.client]) > 1:
                        own = self._of_client_at(waiter.client, key)
                        front += own[own.index(waiter) + 1 :]
                    break
        return front

    def all(self) -> list[LockWaiter]:
        """Every waiter, in order of arrival."""
        waiters = {caller.waiter.rank: caller.waiter for caller in self.by_origin.values()}
        return [waiters[rank] for rank in sorted(waiters)]

    def first(self, calls_max: int) -> list[LockWaiter]:
        """The waiters of the first calls, in the order of these calls, without a look at the others."""
        waiters = {caller.waiter.rank: caller.waiter for caller in islice(self.by_origin.values(), calls_max)}
        return list(waiters.values())

    def restore(self, waiters: list[LockWaiter], last_rank: int) -> None:
        """Replace everything. The holds must have been restored before. The account has the uses of the metadata already."""
        self.by_origin, self.of_client, self.dependents, self.last_rank, self.queued = {}, {}, {}, last_rank, 0
        for waiter in waiters:
            self._link(waiter)
            for caller in waiter.callers:
                self.by_origin[caller.origin] = caller
                self._holdings.account.waiters += CALLER_BYTES + len(caller.session)
        self.deadlines.rebuild(self.by_origin.values())

    def _of_client_at(self, client: str, key: str) -> list[LockWaiter]:
        return [waiter for waiter in self.of_client.get(client, ()) if key in waiter.keys]

    def _link(self, waiter: LockWaiter) -> None:
        locks = self._holdings.locks
        for position, key in enumerate(waiter.keys):
            lock = locks.get(key)
            if lock is None:
                lock = locks[key] = KeyLock()
            else:
                if lock.queue is None:
                    self._holdings.queue_began(lock)
                if lock.holder is not None:
                    # An equal text: one object for all waiters.
                    waiter.keys[position] = lock.holder.key
            lock.enqueue(waiter, key)
        self.queued += len(waiter.keys)
        size = waiter.bytes_queued = waiter_bytes(waiter)
        self._holdings.account.waiters += size
        _add(self.of_client, waiter.client, waiter)
        for key in waiter.depends_on:
            _add(self.dependents, (waiter.client, key), waiter)


class Positions:
    """Positions of waiters in their queues. Each queue is read once, so this is valid until the table changes."""

    def __init__(self, locks: Mapping[str, KeyLock]) -> None:
        self._locks = locks
        self._ranks: dict[str, list[int]] = {}

    def of(self, waiter: LockWaiter) -> int:
        """The position in the queue where it is furthest behind; 1: next."""
        return max(self.at(waiter, key) for key in waiter.keys)

    def at(self, waiter: LockWaiter, key: str) -> int:
        """The position at one key; 0: it does not queue here, because it holds the key."""
        lock = self._locks.get(key)
        if lock is None or lock.queue is None or key in waiter.upgrades:
            return 1
        if key in waiter.depends_on:
            return 0
        if lock.queue[-1].rank < waiter.rank:
            return len(lock.queue) + 1
        ranks = self._ranks.get(key)
        if ranks is None:
            ranks = self._ranks[key] = [other.rank for other in lock.queue]
        return bisect_left(ranks, waiter.rank) + 1


def _add(waiters: dict[Any, Queue], name: Any, waiter: LockWaiter) -> None:
    own = waiters.get(name)
    if own is None:
        waiters[name] = [waiter]
    else:
        own.append(waiter)


def _forget(waiters: dict[Any, Queue], name: Any, waiter: LockWaiter) -> None:
    own = waiters[name]
    remove_waiter(own, waiter)
    if not own:
        del waiters[name]


def waiter_bytes(waiter: LockWaiter) -> int:
    """What a waiting request takes, without its calls.

    The client's name counts for each key, as it does for the locks that the request may be granted.
    """
    size, place_bytes = WAITER_BYTES, PLACE_BYTES + text_bytes(waiter.client)
    for key in waiter.keys:
        size += place_bytes + (len(key) if key.isascii() else len(key.encode()))
    return size
