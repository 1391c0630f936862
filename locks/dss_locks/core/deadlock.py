"""Finds the cycle that a waiting request would close.

The nodes of the waits-for graph are clients. A client is one owner, so the clients that it blocks wait until all its own waits are
over. It waits for the holders of a key that it cannot share the key with, and for the waiters ahead of it in a queue.

The search is breadth first from the client whose request has just joined the queues, so the cycle that it finds is a short one.
The graph had no cycle before, so every new one contains that client. A queue of n exclusive requests has n² / 2 edges. The search
reads each waiter and each holder of a key at most twice, once for that client and once for all others. Its cost is linear in the
part of the table that it reaches.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from dss_locks.core.state import Blocker, KeyLock, LockWaiter, Queue


class _Step(NamedTuple):
    """The edge by which the search reached a client."""

    waiter: str
    key: str
    because: str


def _rank(waiter: LockWaiter) -> int:
    return waiter.rank


class _QueuePrefix:
    """The front part of a key's queue, read as far as needed."""

    def __init__(self, lock: KeyLock, key: str) -> None:
        self._key = key
        self._rest = iter(lock.queue or ())
        self._next: LockWaiter | None = next(self._rest, None)
        self.waiters: list[LockWaiter] = []
        #: for each waiter: number of waiters up to and including the last exclusive one before it that does not hold the key
        self.exclusive_before: list[int] = []
        self._exclusive_seen = 0
        #: the search has followed the edges to waiters before this position,
        self.followed = 0
        #: to the holders,
        self.holders_followed = False
        #: and to the upgrades
        self.upgraders_followed = False

    def read_to(self, rank: int) -> int:
        """Read the waiters ahead of `rank`. Returns their number."""
        waiter = self._next
        while waiter is not None and waiter.rank < rank:
            self.exclusive_before.append(self._exclusive_seen)
            self.waiters.append(waiter)
            if waiter.exclusive and self._key not in waiter.depends_on:
                self._exclusive_seen = len(self.waiters)
            waiter = self._next = next(self._rest, None)
        return bisect_left(self.waiters, rank, key=_rank)

    def last_exclusive_ahead(self, count: int) -> int:
        """Number of waiters up to and including the last exclusive one among the first `count`; 0 if there is none."""
        return self.exclusive_before[count] if count < len(self.waiters) else self._exclusive_seen


class _Search:
    def __init__(self, locks: Mapping[str, KeyLock], waits_of: Mapping[str, Queue], client: str) -> None:
        self._locks = locks
        self._waits_of = waits_of
        self._target = client
        #: Prefixes read for all other clients and for the target. They are separate because following an edge for a client skips
        #: that client itself. If the others shared the target's prefixes, they would miss the edges back to the target.
        self._prefixes: tuple[dict[str, _QueuePrefix], dict[str, _QueuePrefix]] = ({}, {})

    def run(self) -> list[dict[str, Any]]:
        target, waits_of = self._target, self._waits_of
        reached_by: dict[str, _Step] = {}
        todo = deque([target])
        while todo:
            client = todo.popleft()
            for waiter in waits_of[client]:
                for key in waiter.keys:
                    for blocker in self._blockers(waiter, key):
                        other = blocker.client
                        if other == target:
                            return _cycle(target, client, _Step(client, key, blocker.because), reached_by)
                        if other not in reached_by and other in waits_of:
                            reached_by[other] = _Step(client, key, blocker.because)
                            todo.append(other)
        return []

    def _blockers(self, waiter: LockWaiter, key: str) -> Iterator[Blocker]:
        """As `KeyLock.blockers`, without the edges that the search has already followed for another client."""
        lock = self._locks[key]
        prefixes = self._prefixes[waiter.client == self._target]
        prefix = prefixes.get(key)
        if prefix is None:
            prefix = prefixes[key] = _QueuePrefix(lock, key)
        if not waiter.exclusive:
            if lock.holder is not None and lock.holder.exclusive and lock.holder.client != waiter.client:
                yield Blocker(lock.holder.client, "holds")
        elif not prefix.holders_followed:
            prefix.holders_followed = True
            for hold in lock.holds():
                if hold.client != waiter.client:
                    yield Blocker(hold.client, "holds")
        if key in waiter.depends_on:
            return
        if lock.upgraders is not None and not prefix.upgraders_followed:
            prefix.upgraders_followed = True
            for other in lock.upgraders:
                if other.client != waiter.client:
                    yield Blocker(other.client, "waits")
        yield from self._ahead(prefix, waiter)

    def _ahead(self, prefix: _QueuePrefix, waiter: LockWaiter) -> Iterator[Blocker]:
        count = prefix.read_to(waiter.rank)
        if waiter.exclusive:
            start, prefix.followed = prefix.followed, max(prefix.followed, count)
            for position in range(start, count):
                other = prefix.waiters[position]
                if other.client != waiter.client:
                    yield Blocker(other.client, "waits")
            return
        # A shared request waits for every exclusive one ahead. Each of these waits for the one before it, so the last is enough.
        # The exceptions are requests of clients that hold the key: these block as holders too, and were followed as such.
        count = prefix.last_exclusive_ahead(count)
        if count:
            other = prefix.waiters[count - 1]
            if other.client != waiter.client:
                yield Blocker(other.client, "waits")


def find_cycle(locks: Mapping[str, KeyLock], waits_of: Mapping[str, Queue], client: str) -> list[dict[str, Any]]:
    """A short cycle through `client`, whose request has just queued; empty if there is none.

    Returns:
        One step for each client in the cycle, beginning with `client`: `client` waits for the key `waits_for`, which `held_by`
        holds (`because`: "holds") or waits for ahead of it (`because`: "waits").
    """
    return _Search(locks, waits_of, client).run()


def _cycle(target: str, last: str, closing: _Step, reached_by: dict[str, _Step]) -> list[dict[str, Any]]:
    steps = [(closing, target)]
    client = last
    while client != target:
        steps.append((reached_by[client], client))
        client = reached_by[client].waiter
    return [
        {"client": step.waiter, "waits_for": step.key, "held_by": held_by, "because": step.because}
        for step, held_by in reversed(steps)
    ]
