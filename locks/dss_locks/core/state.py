"""The nouns of the lock table: who holds a key, who stands in its queue, and what blocks whom.

`Hold` and `KeyLock` exist once for each held lock, perhaps a million times. They are kept out of Python's garbage
collector (`gc=False`), so they must never be part of a reference cycle: they name clients, keys and nodes, and point at none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import msgspec

from dss_locks.core.deadlines import NO_TIMER
from dss_raft.replication.machine import Event, Origin

LockEventKind = Literal["queued", "dequeued", "refused", "granted", "released", "lost", "delay_ended"]


class Limits(msgspec.Struct, frozen=True):
    """Upper bounds of the table. They decide what a command does, so they are the same on every node and not a setting."""

    #: keys that are kept back (`lock_delay_ms`) count as held
    holds_max: int = 2_000_000
    holds_per_client_max: int = 100_000
    holders_per_key_max: int = 10_000
    sessions_max: int = 100_000
    sessions_per_client_max: int = 1_000
    waiters_max: int = 100_000
    #: places in queues: a request has one for each of its keys, whether or not somebody holds them
    places_max: int = 1_000_000
    waiters_per_client_max: int = 1_000
    waiters_per_key_max: int = 20_000


class Hold(msgspec.Struct, gc=False):
    """A client holds a key."""

    key: str
    client: str
    exclusive: bool
    #: fencing token: the Raft index of the grant
    token: int
    #: the lease counts from here: the last grant or renewal, ms
    since_ms: int
    #: length of the lease; 0: until released
    ttl_ms: int
    granted_ms: int
    meta: Any
    #: the session it ends with; "": it has a lease of its own
    session: str = ""
    #: the grant can still be cancelled under the name of this request (node, seq); seq 0: its client has acted on it since
    claim_node: str = ""
    claim_seq: int = 0
    #: token of the shared hold that the claim's upgrade took the place of; 0: there was none
    token_before: int = 0
    #: how long the key is kept back when this hold is lost
    lock_delay_ms: int = 0
    timer: int = NO_TIMER


class Place(msgspec.Struct):
    """A request that waits: one place in the queue of each of its keys."""

    #: order of arrival over all keys
    rank: int
    client: str
    exclusive: bool
    keys: list[str]
    #: keys that the client held when it came, and counts on: when one is lost, so is the request
    counts_on: list[str]
    #: those of them that it holds shared and wants exclusive
    upgrades: list[str]
    #: the request, and repeats of it by the same client, in order of arrival; never empty
    callers: list[Caller] = []


class Caller(msgspec.Struct):
    """A waiting call: it is answered when its place is granted, or when its own wait runs out."""

    origin: Origin
    place: Place
    since_ms: int
    deadline_ms: int
    ttl_ms: int
    meta: Any
    session: str = ""
    lock_delay_ms: int = 0
    timer: int = NO_TIMER


Queue = OrderedDict[int, Place]


class KeyLock(msgspec.Struct, gc=False):
    """What is known of one key. A key without holder and queue is not in the table at all."""

    #: the holder when there is exactly one
    holder: Hold | None = None
    #: the holders by client when there are several: all of them shared
    sharers: dict[str, Hold] | None = None
    #: rank -> place, in order of arrival
    queue: Queue | None = None
    #: the places in `queue` that want it exclusive: all that a shared request may have to wait for there
    exclusives: Queue | None = None
    #: the places in `queue` that upgrade this key. They go before the others, who wait for their shared hold anyway.
    upgraders: Queue | None = None

    def hold_of(self, client: str) -> Hold | None:
        """This client's hold."""
        if self.sharers is not None:
            return self.sharers.get(client)
        holder = self.holder
        return holder if holder is not None and holder.client == client else None

    def holds(self) -> list[Hold]:
        """All holds, in the order granted."""
        if self.sharers is not None:
            return list(self.sharers.values())
        return [self.holder] if self.holder is not None else []

    def add(self, hold: Hold) -> None:
        """One more holder."""
        if self.sharers is not None:
            self.sharers[hold.client] = hold
        elif self.holder is None:
            self.holder = hold
        else:
            self.sharers = {self.holder.client: self.holder, hold.client: hold}
            self.holder = None

    def remove(self, hold: Hold) -> None:
        """One holder less."""
        if self.sharers is None:
            self.holder = None
            return
        del self.sharers[hold.client]
        if len(self.sharers) == 1:
            (self.holder,) = self.sharers.values()
            self.sharers = None

    def holder_count(self) -> int:
        if self.sharers is not None:
            return len(self.sharers)
        return 0 if self.holder is None else 1

    def enqueue(self, place: Place, key: str) -> None:
        """Append a place to the queue."""
        if self.queue is None:
            self.queue = OrderedDict()
        self.queue[place.rank] = place
        if place.exclusive:
            if self.exclusives is None:
                self.exclusives = OrderedDict()
            self.exclusives[place.rank] = place
        if key in place.upgrades:
            if self.upgraders is None:
                self.upgraders = OrderedDict()
            self.upgraders[place.rank] = place

    def dequeue(self, place: Place) -> None:
        """Take a place out of the queue."""
        assert self.queue is not None
        del self.queue[place.rank]
        if not self.queue:
            self.queue = self.exclusives = None
        elif place.exclusive:
            assert self.exclusives is not None
            del self.exclusives[place.rank]
            if not self.exclusives:
                self.exclusives = None
        if self.upgraders is not None and place.rank in self.upgraders:
            del self.upgraders[place.rank]
            if not self.upgraders:
                self.upgraders = None

    def blockers(self, place: Place, key: str) -> Iterator[Blocker]:
        """Whom `place` (in the queue, or about to join its end) waits for at this key; nothing: its turn has come here.

        A client never waits for itself. An upgrade waits for holders only. Everybody else also waits for those who upgrade,
        and for earlier places with which they could not share the key.
        """
        client, exclusive = place.client, place.exclusive
        if self.sharers is not None:
            if exclusive:
                for hold in self.sharers.values():
                    if hold.client != client:
                        yield Blocker(hold.client, "holds")
        elif self.holder is not None and (exclusive or self.holder.exclusive) and self.holder.client != client:
            yield Blocker(self.holder.client, "holds")
        if self.queue is None or key in place.counts_on:
            return
        if self.upgraders is not None:
            for other in self.upgraders.values():
                if other.client != client:
                    yield Blocker(other.client, "waits")
        in_the_way = self.queue if exclusive else self.exclusives
        if in_the_way is None:
            return
        for other in in_the_way.values():
            if other.rank >= place.rank:
                return
            if other.client != client:
                yield Blocker(other.client, "waits")


class Blocker(NamedTuple):
    """Somebody in the way."""

    client: str
    #: because it holds the key, or because it waits for it and came first
    because: Literal["holds", "waits"]


class Forced(msgspec.Struct, frozen=True, array_like=True):
    """A line of the audit list: a lock that was taken away."""

    index: int
    at_ms: int
    key: str
    client: str
    fencing_token: int
    reason: str
    by: str


class LockChanged(Event, frozen=True, gc=False, omit_defaults=True):
    """Something happened to a key, for whoever watches it.

    Who holds a key follows from granted, released and lost; who waits for it from queued and dequeued, one pair for each place
    in a queue, whatever becomes of it. A lease that starts anew and a call that is refused at once change neither, with one
    exception: a refused deadlock is told.
    """

    kind: LockEventKind
    key: str
    client: str
    mode: str
    #: of the hold; 0 for a request that waits
    fencing_token: int
    #: of the entry in which it happened
    index: int
    #: the place in the queue, for queued and dequeued: grows with every request that has to wait
    place: int = 0
    #: granted: "", "upgraded", "downgraded" or "cancelled" (an upgrade whose caller went away: shared again);
    #: dequeued: "granted" or the code of the refusal, "cancelled" or "node_restarted" when the caller has gone;
    #: refused: "deadlock"; released: "", "session_closed" or "cancelled"; lost: "expired", "session_lost" or "forced"
    reason: str = ""
    #: what a person gave as the reason of a forced release
    detail: str = ""
    #: how long it was held, for released and lost
    held_ms: int = 0
    #: how long the key is kept back from now on, for lost
    delay_ms: int = 0


class SessionEnded(Event, frozen=True, gc=False):
    """A client's session is over, and with it all its locks."""

    session: str
    client: str
    reason: Literal["expired", "closed"]
    index: int
