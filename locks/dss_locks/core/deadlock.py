"""Finds the cycle that a waiting request would close.

The waits-for graph has clients as nodes: a client is one owner, so whoever it blocks waits until everything the client itself
waits for has come. It waits for the holders of a key that it cannot share, and for those ahead of it in a queue.

The search runs breadth first from the client whose request just joined the queues, so the cycle it finds is a short one. As the
graph had no cycle before, every new one passes through that client. A queue of n exclusive requests has n² / 2 edges; the search
reads each place and each holder of a key at most twice, for that client and for all others, so its cost is linear in the part of
the table that it reaches.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from dss_locks.core.state import Blocker, KeyLock, Place


class _Step(NamedTuple):
    """How the search came to a client."""

    waiter: str
    key: str
    because: str


def _rank(place: Place) -> int:
    return place.rank


class _Line:
    """The front part of a key's queue, read as far as it was needed."""

    def __init__(self, lock: KeyLock, key: str) -> None:
        self._key = key
        self._rest = iter((lock.queue or {}).values())
        self._next: Place | None = next(self._rest, None)
        self.places: list[Place] = []
        #: for each place: number of places up to and including the last exclusive one before it that queues here itself
        self.exclusive_before: list[int] = []
        self._exclusive_seen = 0
        #: places before this position were followed for somebody already, and so were
        self.followed = 0
        #: the holders,
        self.holders_followed = False
        #: and those who upgrade
        self.upgraders_followed = False

    def read_to(self, rank: int) -> int:
        """Read the places ahead of `rank`; returns how many there are."""
        place = self._next
        while place is not None and place.rank < rank:
            self.exclusive_before.append(self._exclusive_seen)
            self.places.append(place)
            if place.exclusive and self._key not in place.counts_on:
                self._exclusive_seen = len(self.places)
            place = self._next = next(self._rest, None)
        return bisect_left(self.places, rank, key=_rank)

    def last_exclusive_ahead(self, count: int) -> int:
        """Number of places up to and including the last exclusive one among the first `count`; 0: there is none."""
        return self.exclusive_before[count] if count < len(self.places) else self._exclusive_seen


class _Search:
    def __init__(self, locks: Mapping[str, KeyLock], waits_of: Mapping[str, Mapping[int, Place]], client: str) -> None:
        self._locks = locks
        self._waits_of = waits_of
        self._target = client
        #: Lines that were read for the target, and for all others. They are apart because what was followed for a client passes
        #: over that client itself: the others are done with it then, but it is the target that they look for.
        self._lines: tuple[dict[str, _Line], dict[str, _Line]] = ({}, {})

    def run(self) -> list[dict[str, Any]]:
        target, waits_of = self._target, self._waits_of
        came_by: dict[str, _Step] = {}
        todo = deque([target])
        while todo:
            client = todo.popleft()
            for place in waits_of[client].values():
                for key in place.keys:
                    for blocker in self._blockers(place, key):
                        other = blocker.client
                        if other == target:
                            return _cycle(target, client, _Step(client, key, blocker.because), came_by)
                        if other not in came_by and other in waits_of:
                            came_by[other] = _Step(client, key, blocker.because)
                            todo.append(other)
        return []

    def _blockers(self, place: Place, key: str) -> Iterator[Blocker]:
        """As `KeyLock.blockers`, without what the search has followed already for another client."""
        lock = self._locks[key]
        lines = self._lines[place.client == self._target]
        line = lines.get(key)
        if line is None:
            line = lines[key] = _Line(lock, key)
        if not place.exclusive:
            if lock.holder is not None and lock.holder.exclusive and lock.holder.client != place.client:
                yield Blocker(lock.holder.client, "holds")
        elif not line.holders_followed:
            line.holders_followed = True
            for hold in lock.holds():
                if hold.client != place.client:
                    yield Blocker(hold.client, "holds")
        if key in place.counts_on:
            return
        if lock.upgraders is not None and not line.upgraders_followed:
            line.upgraders_followed = True
            for other in lock.upgraders.values():
                if other.client != place.client:
                    yield Blocker(other.client, "waits")
        yield from self._ahead(line, place)

    def _ahead(self, line: _Line, place: Place) -> Iterator[Blocker]:
        count = line.read_to(place.rank)
        if place.exclusive:
            start, line.followed = line.followed, max(line.followed, count)
            for position in range(start, count):
                other = line.places[position]
                if other.client != place.client:
                    yield Blocker(other.client, "waits")
            return
        # A shared request waits for every exclusive one ahead. Each of these waits for the one before it, so the last is enough;
        # except those that count on a hold: they are in the way as holders, too, and were followed as such.
        count = line.last_exclusive_ahead(count)
        if count:
            other = line.places[count - 1]
            if other.client != place.client:
                yield Blocker(other.client, "waits")


def find_cycle(locks: Mapping[str, KeyLock], waits_of: Mapping[str, Mapping[int, Place]], client: str) -> list[dict[str, Any]]:
    """A short cycle through `client`, who has just queued; empty when there is none.

    Returns:
        One member for each client in it, beginning with `client`: `client` waits for the key `waits_for`, which `held_by` holds
        (`because`: "holds") or waits for ahead of it (`because`: "waits").
    """
    return _Search(locks, waits_of, client).run()


def _cycle(target: str, last: str, closing: _Step, came_by: dict[str, _Step]) -> list[dict[str, Any]]:
    steps = [(closing, target)]
    client = last
    while client != target:
        steps.append((came_by[client], client))
        client = came_by[client].waiter
    return [
        {"client": step.waiter, "waits_for": step.key, "held_by": held_by, "because": step.because}
        for step, held_by in reversed(steps)
    ]
