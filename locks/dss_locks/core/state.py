"""The records of the lock table: who holds a key, who waits in its queue, and who blocks whom.

There can be a million `Hold`s and `KeyLock`s, one for each held lock. They are kept out of Python's garbage collector (`gc=False`),
so they must never be part of a reference cycle. They refer to clients, other keys and nodes by name only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from dss_locks.core.account import Meta
from dss_raft.replication.deadlines import NO_TIMER
from dss_raft.replication.machine import Event, Origin

LockEventKind = Literal["queued", "dequeued", "refused", "granted", "released", "lost", "delay_ended"]


class LockLimits(msgspec.Struct, frozen=True):
    """Upper bounds on counts. They decide what a command does, so every node has the same ones. They are not settings.

    They protect the time that a step takes. What the table may take of the memory is `lock_bytes_max` (`account.py`).
    """

    #: a key with a lock delay counts as held
    holds_max: int = 2_000_000
    holds_per_client_max: int = 100_000
    holders_per_key_max: int = 10_000
    sessions_max: int = 100_000
    sessions_per_client_max: int = 1_000
    waiters_max: int = 100_000
    #: queue entries: a waiting request has one for each of its keys, held or not
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
    #: start of the lease: the last grant or renewal, ms
    since_ms: int
    #: length of the lease; 0: until released
    ttl_ms: int
    granted_ms: int
    meta: Meta | None
    #: the session whose lease it has; "": a lease of its own
    session: str = ""
    #: the request (node, seq) that can still cancel the grant; seq 0: none, the client has acted on the lock since
    claim_node: str = ""
    claim_seq: int = 0
    #: token of the shared hold before the claim's upgrade; 0: the claim is not an upgrade
    token_before: int = 0
    #: the lock delay of the key after this hold is lost
    lock_delay_ms: int = 0
    timer: int = NO_TIMER


class LockWaiter(msgspec.Struct):
    """A waiting request. It is in the queue of each of its keys."""

    #: order of arrival, over all keys
    rank: int
    client: str
    exclusive: bool
    keys: list[str]
    #: the keys that the client already held when it queued. If it loses one of them, the request is refused.
    depends_on: Sequence[str]
    #: those of them that it holds shared and requests exclusive
    upgrades: Sequence[str]
    #: the call that made the request, and repeats by the same client, in order of arrival; not empty while it is queued
    callers: list[Caller] = []
    #: its part of the account while it is queued, without the calls
    bytes_queued: int = 0


class Caller(msgspec.Struct):
    """A waiting call. It is answered when its request is granted or when its own wait times out."""

    origin: Origin
    waiter: LockWaiter
    since_ms: int
    deadline_ms: int
    ttl_ms: int
    meta: Meta | None
    session: str = ""
    lock_delay_ms: int = 0
    timer: int = NO_TIMER


#: Waiters in order of arrival. There can be a million places in queues, and a list has eight bytes for each. To remove the first of
#: 20,000 waiters (`waiters_per_key_max`) takes about 5 µs.
Queue = list[LockWaiter]


def remove_waiter(queue: Queue, waiter: LockWaiter) -> None:
    """Remove a waiter that is in the queue."""
    del queue[bisect_left(queue, waiter.rank, key=_rank)]


def _rank(waiter: LockWaiter) -> int:
    return waiter.rank


class KeyLock(msgspec.Struct, gc=False):
    """The holders and the queue of one key. A key with neither is not in the table."""

    #: the holder if there is exactly one
    holder: Hold | None = None
    #: the holders by client if there are several, all of them shared
    sharers: dict[str, Hold] | None = None
    queue: Queue | None = None
    #: the waiters in `queue` that request it exclusive: the only ones a shared request may have to wait for. It is the same list until
    #: a shared request joins the queue
    exclusives: Queue | None = None
    #: the waiters in `queue` that upgrade this key. They go first: the others have to wait for their shared hold anyway.
    upgraders: Queue | None = None

    def hold_of(self, client: str) -> Hold | None:
        """This client's hold."""
        if self.sharers is not None:
            return self.sharers.get(client)
        holder = self.holder
        return holder if holder is not None and holder.client == client else None

    def holds(self) -> list[Hold]:
        """All holds, in the order in which they were granted."""
        if self.sharers is not None:
            return list(self.sharers.values())
        return [self.holder] if self.holder is not None else []

    def add(self, hold: Hold) -> None:
        """Add a holder."""
        if self.sharers is not None:
            self.sharers[hold.client] = hold
        elif self.holder is None:
            self.holder = hold
        else:
            self.sharers = {self.holder.client: self.holder, hold.client: hold}
            self.holder = None

    def remove(self, hold: Hold) -> None:
        """Remove a holder."""
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

    def enqueue(self, waiter: LockWaiter, key: str) -> None:
        """Append a waiter to the queue."""
        if self.queue is None:
            self.queue = [waiter]
            self.exclusives = self.queue if waiter.exclusive else None
        else:
            if self.exclusives is self.queue:
                if not waiter.exclusive:
                    self.exclusives = self.queue[:]
            elif waiter.exclusive:
                self.exclusives = _with(self.exclusives, waiter)
            self.queue.append(waiter)
        if key in waiter.upgrades:
            self.upgraders = _with(self.upgraders, waiter)

    def dequeue(self, waiter: LockWaiter, key: str) -> None:
        """Remove a waiter from the queue."""
        is_one_list = self.exclusives is self.queue
        self.queue = _without(self.queue, waiter)
        if is_one_list:
            self.exclusives = self.queue
        elif waiter.exclusive:
            self.exclusives = _without(self.exclusives, waiter)
        if key in waiter.upgrades:
            self.upgraders = _without(self.upgraders, waiter)

    def blockers(self, waiter: LockWaiter, key: str) -> Iterator[Blocker]:
        """The clients that `waiter`, in the queue or about to join its end, waits for at this key. None if it is not blocked here.

        A client never waits for itself. An upgrade waits for holders only. Every other waiter also waits for upgrades and for
        earlier waiters that it cannot share the key with.
        """
        client, exclusive = waiter.client, waiter.exclusive
        if self.sharers is not None:
            if exclusive:
                for hold in self.sharers.values():
                    if hold.client != client:
                        yield Blocker(hold.client, "holds")
        elif self.holder is not None and (exclusive or self.holder.exclusive) and self.holder.client != client:
            yield Blocker(self.holder.client, "holds")
        if self.queue is None or key in waiter.depends_on:
            return
        if self.upgraders is not None:
            for other in self.upgraders:
                if other.client != client:
                    yield Blocker(other.client, "waits")
        earlier = self.queue if exclusive else self.exclusives
        if earlier is None:
            return
        for other in earlier:
            if other.rank >= waiter.rank:
                return
            if other.client != client:
                yield Blocker(other.client, "waits")


def _with(queue: Queue | None, waiter: LockWaiter) -> Queue:
    if queue is None:
        return [waiter]
    queue.append(waiter)
    return queue


def _without(queue: Queue | None, waiter: LockWaiter) -> Queue | None:
    assert queue is not None
    remove_waiter(queue, waiter)
    return queue or None


class Blocker(NamedTuple):
    """A client that another one waits for."""

    client: str
    #: it holds the key, or waits for it and is ahead in the queue
    because: Literal["holds", "waits"]


class ForcedRelease(msgspec.Struct, frozen=True, array_like=True):
    """An entry of the audit list."""

    index: int
    at_ms: int
    key: str
    client: str
    fencing_token: int
    reason: str
    by: str


class RefusedDeadlock(msgspec.Struct, frozen=True):
    """A request that was refused because it would have closed a cycle."""

    index: int
    at_ms: int
    client: str
    keys: tuple[str, ...]
    mode: str
    #: the first steps of the cycle, as in the refusal
    cycle: tuple[dict[str, Any], ...]
    #: how many steps it has
    length: int


class LockChanged(Event, frozen=True, gc=False, omit_defaults=True):
    """A change at a key, for those who watch it.

    The holders of a key follow from granted, released and lost. Its waiters follow from queued and dequeued: one pair for each
    queue entry, however it ends. There is no event for a renewed lease or for a call that is refused immediately, because they
    change neither. The one exception is a refused deadlock.
    """

    kind: LockEventKind
    key: str
    client: str
    mode: str
    #: of the hold; 0 for a waiting request
    fencing_token: int
    #: the log index at which it happened
    index: int
    #: identifies the queue entry, for queued and dequeued; grows with every request that has to wait
    place: int = 0
    #: granted: "", "upgraded", "downgraded" or "cancelled" (an upgrade whose caller disconnected: shared again);
    #: dequeued: "granted" or the code of the refusal, "cancelled" or "node_restarted" if the caller is gone;
    #: refused: "deadlock"; released: "", "session_closed" or "cancelled"; lost: "expired", "session_lost" or "forced"
    reason: str = ""
    #: the reason given for a forced release
    detail: str = ""
    #: how long it was held, for released and lost
    held_ms: int = 0
    #: the lock delay that begins now, for lost
    delay_ms: int = 0


class SessionEnded(Event, frozen=True, gc=False):
    """A client's session ended, and with it all its locks."""

    session: str
    client: str
    reason: Literal["expired", "closed"]
    index: int
