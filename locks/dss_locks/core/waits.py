"""Who waits: places in queues, the calls behind them, and how long they go on waiting."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from dss_locks.core.deadlines import Deadlines
from dss_locks.core.deadlock import find_cycle
from dss_locks.core.holdings import Holdings
from dss_locks.core.state import Caller, KeyLock, Place
from dss_raft.replication.machine import Origin


class Waits:
    """All waiting requests.

    Args:
        holdings: shares its table of keys: a `KeyLock` carries the key's queue.
    """

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self.by_origin: dict[Origin, Caller] = {}
        #: client -> rank -> place, in order of arrival
        self.of_client: dict[str, dict[int, Place]] = {}
        #: (client, key that it holds) -> rank -> its places that count on this hold
        self.dependents: dict[tuple[str, str], dict[int, Place]] = {}
        self.last_rank = 0
        #: places in queues, a request's counted once for each of its keys
        self.queued = 0
        self.deadlines: Deadlines[Caller] = Deadlines(_deadline_ms)

    def place(self, client: str, keys: list[str], exclusive: bool) -> Place:
        """A place for a new request, in no queue yet."""
        counts_on: list[str] = []
        upgrades: list[str] = []
        for key in keys:
            hold = self._holdings.hold_of(key, client)
            if hold is not None:
                counts_on.append(key)
                if exclusive and not hold.exclusive:
                    upgrades.append(key)
        return Place(self.last_rank + 1, client, exclusive, keys, counts_on, upgrades)

    def same_as(self, place: Place) -> Place | None:
        """The place of an equal request of the same client that waits already."""
        own = self.of_client.get(place.client)
        if own is not None:
            for other in own.values():
                if other.keys == place.keys and other.exclusive == place.exclusive:
                    return other
        return None

    def over_limit(self, place: Place) -> str:
        """The name of the limit that one more caller at `place` would break; "" when none."""
        limits = self._holdings.limits
        if len(self.by_origin) >= limits.waiters_max:
            return "waiters_max"
        own = self.of_client.get(place.client)
        if own is not None and sum(len(p.callers) for p in own.values()) >= limits.waiters_per_client_max:
            return "waiters_per_client_max"
        if own is None or place.rank not in own:
            if self.queued + len(place.keys) > limits.places_max:
                return "places_max"
            for key in place.keys:
                lock = self._holdings.locks.get(key)
                if lock is not None and lock.queue is not None and len(lock.queue) >= limits.waiters_per_key_max:
                    return "waiters_per_key_max"
        return ""

    def may_close_cycle(self, client: str) -> bool:
        """False: nobody waits for this client, so it cannot close a cycle whatever it waits for. The usual case."""
        return client in self._holdings.in_demand or client in self.of_client

    def cycle(self, place: Place) -> list[dict[str, Any]]:
        """The cycle that `place` would close; it is in no queue afterwards."""
        self._link(place)
        cycle = find_cycle(self._holdings.locks, self.of_client, place.client)
        self.unlink(place)
        return cycle

    def join(self, place: Place) -> None:
        """Append a new place to the queues of its keys."""
        self.last_rank = place.rank
        self._link(place)

    def unlink(self, place: Place) -> None:
        """Take a place out of its queues."""
        locks = self._holdings.locks
        for key in place.keys:
            lock = locks[key]
            lock.dequeue(place)
            if lock.queue is None:
                self._holdings.queue_ended(lock)
                if not lock.holder_count():
                    del locks[key]
        self.queued -= len(place.keys)
        _forget(self.of_client, place.client, place.rank)
        for key in place.counts_on:
            _forget(self.dependents, (place.client, key), place.rank)

    def add_caller(self, caller: Caller) -> None:
        """One more call waits at its place."""
        caller.place.callers.append(caller)
        self.by_origin[caller.origin] = caller
        self.deadlines.add(caller, caller.deadline_ms)

    def forget_caller(self, caller: Caller) -> None:
        """A call waits no more. Its place stays as it is."""
        del self.by_origin[caller.origin]
        self.deadlines.discard(caller)

    def take_overdue(self, at_ms: int) -> list[Caller]:
        """The callers whose wait has run out, in the order in which it did."""
        callers = self.deadlines.pop_due(at_ms)
        callers.sort(key=lambda caller: (caller.deadline_ms, caller.place.rank, caller.origin))
        return callers

    def of_node(self, node: str) -> list[Caller]:
        """The callers at one node, in an order that is the same everywhere."""
        callers = [caller for caller in self.by_origin.values() if caller.origin.node == node]
        callers.sort(key=lambda caller: (caller.place.rank, caller.origin))
        return callers

    def is_blocked(self, place: Place) -> bool:
        """True while `place` has to wait at any of its keys: for somebody, or because the key is kept back."""
        locks = self._holdings.locks
        for key in place.keys:
            lock = locks.get(key)
            if lock is not None and next(lock.blockers(place, key), None) is not None:
                return True
        delays = self._holdings.delays
        return bool(delays.by_key) and any(delays.blocks(key, place.exclusive) for key in place.keys)

    def front(self, lock: KeyLock, key: str) -> list[Place]:
        """The places at a key whose turn may have come: those who upgrade, and the queue up to its first exclusive one.

        Behind that one only its own client's other requests can be free to go. While somebody holds the key exclusive, only
        the holder's own can.
        """
        if lock.queue is None:
            return []
        if lock.holder is not None and lock.holder.exclusive:
            return self._of_client_at(lock.holder.client, key)
        front = list(lock.upgraders.values()) if lock.upgraders is not None else []
        for place in lock.queue.values():
            if key not in place.upgrades:
                front.append(place)
                if place.exclusive:
                    if len(self.of_client[place.client]) > 1:
                        own = self._of_client_at(place.client, key)
                        front += own[own.index(place) + 1 :]
                    break
        return front

    def places(self) -> list[Place]:
        """Every place, in order of arrival."""
        places = {caller.place.rank: caller.place for caller in self.by_origin.values()}
        return [places[rank] for rank in sorted(places)]

    def restore(self, places: list[Place], last_rank: int) -> None:
        """Replace everything; the keys' holders have been restored before."""
        self.by_origin, self.of_client, self.dependents, self.last_rank, self.queued = {}, {}, {}, last_rank, 0
        for place in places:
            self._link(place)
            for caller in place.callers:
                self.by_origin[caller.origin] = caller
        self.deadlines.rebuild(self.by_origin.values())

    def _of_client_at(self, client: str, key: str) -> list[Place]:
        return [place for place in self.of_client.get(client, {}).values() if key in place.keys]

    def _link(self, place: Place) -> None:
        locks = self._holdings.locks
        for key in place.keys:
            lock = locks.get(key)
            if lock is None:
                lock = locks[key] = KeyLock()
            elif lock.queue is None:
                self._holdings.queue_began(lock)
            lock.enqueue(place, key)
        self.queued += len(place.keys)
        self.of_client.setdefault(place.client, {})[place.rank] = place
        for key in place.counts_on:
            self.dependents.setdefault((place.client, key), {})[place.rank] = place


class Positions:
    """Where places stand in their queues. It reads each queue once, so it is good until the table changes."""

    def __init__(self, locks: Mapping[str, KeyLock]) -> None:
        self._locks = locks
        self._ranks: dict[str, list[int]] = {}

    def of(self, place: Place) -> int:
        """Its position in the longest of its queues; 1: next in turn."""
        return max(self.at(place, key) for key in place.keys)

    def at(self, place: Place, key: str) -> int:
        """Its position at one key; 0: it need not queue here, for it counts on what it holds."""
        lock = self._locks.get(key)
        if lock is None or lock.queue is None or key in place.upgrades:
            return 1
        if key in place.counts_on:
            return 0
        if next(reversed(lock.queue)) < place.rank:
            return len(lock.queue) + 1
        ranks = self._ranks.get(key)
        if ranks is None:
            ranks = self._ranks[key] = list(lock.queue)
        return bisect_left(ranks, place.rank) + 1


def _forget(places: dict[Any, dict[int, Place]], name: Any, rank: int) -> None:
    own = places[name]
    del own[rank]
    if not own:
        del places[name]


def _deadline_ms(caller: Caller) -> int:
    return caller.deadline_ms
