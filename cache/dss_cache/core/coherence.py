"""A node's side of the protocol: its lines, its lease, its fetches in flight, and what it knows of the others.

Theory of operation. The promise: a get that starts, on any node, after a put was answered never returns an older value, and no
read returns an older value than a read that ended before it began.

A read is answered from a line, or by a fetch.

*From a line* while the node's lease holds and the line is readable. Whoever wrote a newer version, and showed it to anybody,
has waited until this node applied that write (then the line is gone), or until it was revoked (then its lease had run out
before, and the next one is of no use until the node has applied the revocation and so has flushed its lines).

*By a fetch*, a command in the log. What it finds is what everybody agreed on after the read began; it may be used as soon as
the nodes in the version's `must` have dropped their older lines. The node is a sharer from then on, so from the same moment on
it will hear of writes.

The delicate points, each with a case in the tests:

1. A fill that is overtaken. Between the fetch and the value's arrival from the memory another write is applied here. The reads
   that wait for this fill may have it (they overlap with the write); it is not installed, and no later read may join it.
2. Joining a fetch that is under way (one fetch for many readers). It may have been ordered before a write that was answered before
   the joiner began. Two cases are safe: the fetch was begun after the joiner; or the joiner's node holds its lease, for then
   such a write would have been applied here and would have overtaken the fetch. Any other reader waits until that fetch is over, and
   looks again. The second case rests on the fetch having made this node a sharer, so it does not hold for a fetch that
   finds no value: who joined by virtue of the lease then looks again, too (`serves`).
3. A put returns on the writer's node, and its line (M) is there, before the others have dropped theirs: it becomes readable
   when `must` is covered.
4. The writer itself is in `must` if it held a line: others must not show the new version while the writer still reads its old
   line.
5. A line without a lease stays, and may be used again under a new lease: writes that were not answered yet are in the log
   behind it.
"""

from __future__ import annotations

from enum import Enum
from typing import Generic, TypeVar

from dss_cache.core.directory import Cleaned, Fetch1, Fetched, Stamps, Voided, Written
from dss_cache.core.leases import Acknowledgements, HeldLease
from dss_cache.core.lines import EXCLUSIVE, INVALID, MODIFIED, SHARED, Line, Lines

T = TypeVar("T")


class Step(Enum):
    """What a read that did not hit does next."""

    #: a line is there now
    HIT = "hit"
    #: wait until the line's `must` is covered, look again
    COVER = "cover"
    #: there is a line and no lease: renew it, look again
    RENEW = "renew"
    #: begin a fetch
    BEGIN = "begin"
    #: take the answer of the fetch under way
    JOIN = "join"
    #: wait for the end of the fetch under way, look again
    AWAIT = "await"


class Flight:
    """A fetch of one key under way, and the reads that wait for it."""

    __slots__ = ("cleaned", "key", "number", "overtaken", "registered", "shared")

    def __init__(self, key: str, number: int) -> None:
        self.key = key
        #: counts the node's flights
        self.number = number
        #: the fetch was applied here: this node is a sharer
        self.registered = False
        #: a write came after that: use once, do not install
        self.overtaken = False
        #: another node fetched after that
        self.shared = False
        #: the value was written back after that
        self.cleaned = False


class NearCache(Generic[T]):
    """See the module. T is what waits for acknowledgements: a future, or a test's token.

    Args:
        incarnation: of this node: writes of an earlier one, replayed at start, are not its own.
    """

    def __init__(self, node_id: str, incarnation: int, lines: Lines, lease_s: float) -> None:
        self.node_id = node_id
        self.incarnation = incarnation
        self.lines = lines
        self.lease = HeldLease(lease_s)
        self.acknowledgements: Acknowledgements[T] = Acknowledgements()
        self.flights: dict[str, Flight] = {}
        self.flights_begun = 0
        self.invalidations = 0
        #: when a client last read here
        self.used_at = 0.0
        #: the stamp that others wait to see applied here; 0: nobody waits
        self.announcement_due = 0
        #: the same, for writes of this node: only a reader elsewhere may wait, and asks if it does
        self.announcement_due_later = 0

    # ------------------------------------------------------------------ reading

    def hit(self, key: str, now: float) -> Line | None:
        """The line if it may be read now. Counts as a use. Nothing here waits: this is the path of most reads."""
        line = self.lines.by_key.get(key)
        if line is not None and line.readable and now < self.lease.valid_until:
            self.lines.used(key)
            self.used_at = now
            return line
        return None

    def step(self, key: str, now: float, begun: int, can_renew: bool) -> Step:
        """What a read does that did not hit.

        Args:
            begun: `flights_begun` when the read began.
            can_renew: false when a renewal was tried in vain.
        """
        leased = now < self.lease.valid_until
        line = self.lines.get(key)
        if line is not None:
            if leased:
                line.readable = line.readable or self.acknowledgements.covers(line.must)
                return Step.HIT if line.readable else Step.COVER
            if can_renew:
                return Step.RENEW
        flight = self.flights.get(key)
        if flight is None:
            return Step.BEGIN
        return Step.JOIN if leased or flight.number > begun else Step.AWAIT

    def begin(self, key: str) -> Flight:
        """A fetch is proposed now."""
        self.flights_begun += 1
        flight: Flight = Flight(key, self.flights_begun)
        self.flights[key] = flight
        return flight

    @staticmethod
    def serves(flight: Flight, begun: int, is_absent: bool) -> bool:
        """True when a reader that joined the flight may have what it found; else it looks again."""
        return flight.number > begun or not is_absent

    def end(self, flight: Flight) -> None:
        """Nobody can join the flight any more."""
        if self.flights.get(flight.key) is flight:
            del self.flights[flight.key]

    def land(self, flight: Flight, row: Fetch1, value: bytes, now: float) -> str:
        """The value is here and its `must` is covered: install it unless it was overtaken. Returns the line's state."""
        if flight.overtaken or row.state == INVALID:
            return INVALID
        state = row.state
        if flight.shared:
            state = SHARED
        elif flight.cleaned and state == MODIFIED:
            state = EXCLUSIVE
        line = self.lines.install(flight.key, state, row.version, value, row.must, True, now, "fetched")
        return state if line is not None else INVALID

    # ------------------------------------------- what the directory has applied

    def written(self, event: Written, now: float) -> list[T]:
        """A key has a new version. Returns whose wait for acknowledgements is over."""
        key = event.key
        flight = self.flights.get(key)
        if flight is not None and flight.registered:
            flight.overtaken = True
            del self.flights[key]
        over = self.acknowledgements.advance(self.node_id, event.version)
        is_own = event.node == self.node_id and event.incarnation == self.incarnation
        if is_own and event.value is not None:
            readable = self.acknowledgements.covers(event.must)
            self.lines.install(key, MODIFIED, event.version, event.value, event.must, readable, now, event.why)
        elif self.lines.drop(key, event.why if is_own else f"{event.why} on {event.node}" if event.node else event.why):
            self.invalidations += not is_own
        if self.node_id in event.must:
            if is_own:
                self.announcement_due_later = event.version
            else:
                self.announcement_due = event.version
        return over

    def fetched(self, event: Fetched) -> list[T]:
        """A node has become a sharer."""
        flight = self.flights.get(event.key)
        if event.node == self.node_id:
            if flight is not None and event.incarnation == self.incarnation:
                flight.registered = True
        else:
            if flight is not None and flight.registered:
                flight.shared = True
            line = self.lines.get(event.key)
            if line is not None:
                self.lines.change(event.key, line, SHARED, f"fetched by {event.node}")
        return self.acknowledgements.advance(self.node_id, event.stamp)

    def cleaned(self, event: Cleaned) -> None:
        """Values are at rest in the memory."""
        for key, version in event.items:
            flight = self.flights.get(key)
            if flight is not None and flight.registered:
                flight.cleaned = True
            line = self.lines.get(key)
            if line is not None and line.state == MODIFIED and line.version == version:
                self.lines.change(key, line, EXCLUSIVE, "written back")

    def voided(self, event: Voided) -> list[T]:
        """A node's registrations are void: what it held before is gone, or of no use to it."""
        if event.node == self.node_id:
            self.flush(event.why)
        over = self.acknowledgements.advance(event.node, event.stamp)
        if event.node != self.node_id:
            over += self.acknowledgements.advance(self.node_id, event.stamp)
        return over

    def restored(self, stamp: int, voided: Stamps) -> list[T]:
        """A snapshot took the place of the directory: whatever was written in between was not heard of here."""
        self.flush("restored")
        over = self.acknowledgements.advance(self.node_id, stamp)
        for node, voided_at in voided.items():
            over += self.acknowledgements.advance(node, voided_at)
        self.announcement_due = stamp
        return over

    def acknowledged(self, applied: Stamps) -> list[T]:
        """News of who has applied what, from another node."""
        over: list[T] = []
        for node, stamp in applied.items():
            if node != self.node_id:
                over += self.acknowledgements.advance(node, stamp)
        return over

    def flush(self, why: str) -> None:
        """Give up all lines, the lease, and the right to install what is under way."""
        self.invalidations += self.lines.flush(why)
        for flight in self.flights.values():
            flight.overtaken = True
        self.flights.clear()
        self.lease.forget()

    # -------------------------------------------------------------------- lease

    def wants_lease(self, now: float) -> bool:
        """True when a node that is in use should renew: two thirds of its lease are left at most."""
        lease_s = self.lease.length_s
        return bool(self.lines) and now - self.used_at < lease_s and self.lease.valid_until - now < lease_s * 2 / 3
