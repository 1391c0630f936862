"""A node's side of the protocol: its lines, its lease, its fetches in progress, and what it knows about the other nodes.

Theory of operation. The promise: a get that starts on any node after a put was answered never returns an older value, and no
read returns an older value than a read that ended before it began.

A read is answered from a line or by a fetch.

*From a line*, while the node's lease is valid and the line is readable. Before a newer version was shown to any client, its
writer waited until this node had applied the write (then the line is gone) or was revoked (then its lease had expired before,
and its next lease cannot be used until the node has applied the revocation, which flushes its lines).

*By a fetch*, a command in the log. A fetch returns the version that is current at its place in the log, after the read began.
The version may be used as soon as its pending invalidations are done. The fetch makes the node a sharer, so from then on every
write of the key names this node.

The delicate points, each with a case in the tests:

1. An overtaken fetch. Between the fetch and the arrival of the value from the backing store, another write is applied here. The
   reads that wait for this fetch may have its value (they overlap with the write). It is not installed, and no later read may
   join the fetch.
2. Joining a fetch in progress (one fetch for many readers). It may be ordered before a write that was answered before the
   joining read began. Joining is safe in two cases: the fetch began after the read; or the node holds its lease, because then
   such a write would have been applied here and would have overtaken the fetch. Any other read waits until the fetch has
   ended, and looks again. The second case relies on the fetch having made this node a sharer. It does not hold for a fetch that
   finds no value: then a read that joined because of the lease looks again, too (`serves`).
3. A put returns on the writer's node, and its line (M) is installed, before the other nodes have dropped theirs. The line
   becomes readable when its pending invalidations are done.
4. The writer itself is among the pending invalidations if it held a line: other nodes must not show the new version while the
   writer still reads its old line.
5. A line outlives its lease and may be used again under a new one. A write that this node has not applied was not answered yet,
   or this node was revoked for it; then the new lease cannot be used before the lines are flushed.
6. Programs with a near cache hold values below this node (`near_clients`). What this node reports as applied never passes a write
   that one of them may not have carried out: `_own_stamp` is the only place that decides it.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Generic, TypeVar

from dss_cache.core.directory import FetchRow
from dss_cache.core.events import Cleaned, Fetched, Stamps, Voided, Written
from dss_cache.core.leases import Acknowledgements, HeldLease
from dss_cache.core.lines import EXCLUSIVE, INVALID, MODIFIED, SHARED, Line, Lines
from dss_cache.core.near_clients import NearClient, NearClients

T = TypeVar("T")


class Step(Enum):
    """What a read that missed does next."""

    #: the line can be read now
    HIT = "hit"
    #: wait for the line's pending invalidations, then look again
    COVER = "cover"
    #: there is a line but no lease: renew the lease, then look again
    RENEW = "renew"
    #: begin a fetch
    BEGIN = "begin"
    #: take the result of the fetch in progress
    JOIN = "join"
    #: wait until the fetch in progress has ended, then look again
    AWAIT = "await"


class Flight:
    """A fetch of one key in progress, shared by the reads that wait for it."""

    __slots__ = ("cleaned", "key", "number", "overtaken", "registered", "shared")

    def __init__(self, key: str, number: int) -> None:
        self.key = key
        #: position among the node's flights, from 1
        self.number = number
        #: the fetch has been applied here: this node is a sharer
        self.registered = False
        #: a write was applied after that: use the value once, do not install it
        self.overtaken = False
        #: another node fetched after that
        self.shared = False
        #: the value was written back after that
        self.cleaned = False


class NearCache(Generic[T]):
    """See the module's docstring. T is the type of a waiter for acknowledgements: a future, or a token in tests.

    Args:
        incarnation: of this process. Writes of an earlier incarnation, replayed at start, are not its own.
        clients: the near clients of this node.
    """

    def __init__(
        self, node_id: str, incarnation: int, lines: Lines, lease_s: float, clients: NearClients[Any] | None = None
    ) -> None:
        self.node_id = node_id
        self.incarnation = incarnation
        self.lines = lines
        self.lease = HeldLease(lease_s)
        self.acknowledgements: Acknowledgements[T] = Acknowledgements()
        self.clients: NearClients[Any] = clients if clients is not None else NearClients()
        #: the latest stamp that this node has applied
        self.applied = 0
        #: the log has opened the session of this process. Before that, near clients of the earlier process may hold leases
        self.is_open = False
        self.flights: dict[str, Flight] = {}
        self.flights_begun = 0
        self.invalidations = 0
        #: time of the last read on this node
        self.used_at = 0.0
        #: other nodes wait until this node has applied this stamp; 0: none waits
        self.announcement_due = 0
        #: the same for writes of this node: only a reader on another node may wait, and that node asks
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
        """What a read that missed does next.

        Args:
            begun: `flights_begun` when the read began.
            can_renew: false when a renewal has failed.
        """
        leased = now < self.lease.valid_until
        line = self.lines.get(key)
        if line is not None:
            if leased:
                line.readable = line.readable or self.acknowledgements.covers(line.pending_invalidations)
                return Step.HIT if line.readable else Step.COVER
            if can_renew:
                return Step.RENEW
        flight = self.flights.get(key)
        if flight is None:
            return Step.BEGIN
        return Step.JOIN if leased or flight.number > begun else Step.AWAIT

    def begin(self, key: str) -> Flight:
        """Start a fetch; call it before the command is submitted."""
        self.flights_begun += 1
        flight: Flight = Flight(key, self.flights_begun)
        self.flights[key] = flight
        return flight

    @staticmethod
    def serves(flight: Flight, begun: int, is_absent: bool) -> bool:
        """True if a reader that joined the flight may use its result; if not, it looks again."""
        return flight.number > begun or not is_absent

    def end(self, flight: Flight) -> None:
        """No read can join the flight from now on."""
        if self.flights.get(flight.key) is flight:
            del self.flights[flight.key]

    def install(self, flight: Flight, row: FetchRow, value: bytes, now: float) -> str:
        """Install the fetched value unless it was overtaken. Its pending invalidations are done. Returns the line's state."""
        if flight.overtaken or row.state == INVALID:
            return INVALID
        state = row.state
        if flight.shared:
            state = SHARED
        elif flight.cleaned and state == MODIFIED:
            state = EXCLUSIVE
        line = self.lines.install(flight.key, state, row.version, value, row.pending_invalidations, True, now, "fetched")
        return state if line is not None else INVALID

    # ------------------------------------------- what the directory has applied

    def written(self, event: Written, now: float) -> list[T]:
        """A key has a new version. Returns the waiters that are done."""
        key = event.key
        flight = self.flights.get(key)
        if flight is not None and flight.registered:
            flight.overtaken = True
            del self.flights[key]
        if self.clients.keys:
            self.clients.written(key, event.version, now)
        done = self._own_stamp(event.version)
        is_own = event.node == self.node_id and event.incarnation == self.incarnation
        if is_own and event.value is not None:
            readable = self.acknowledgements.covers(event.pending_invalidations)
            self.lines.install(key, MODIFIED, event.version, event.value, event.pending_invalidations, readable, now, event.why)
        elif self.lines.drop(key, event.why if is_own else f"{event.why} on {event.node}" if event.node else event.why):
            self.invalidations += not is_own
        if self.node_id in event.pending_invalidations:
            if is_own:
                self.announcement_due_later = event.version
            else:
                self.announcement_due = event.version
        return done

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
        return self._own_stamp(event.stamp)

    def cleaned(self, event: Cleaned) -> None:
        """The backing store has these versions."""
        for key, version in event.items:
            flight = self.flights.get(key)
            if flight is not None and flight.registered:
                flight.cleaned = True
            line = self.lines.get(key)
            if line is not None and line.state == MODIFIED and line.version == version:
                self.lines.change(key, line, EXCLUSIVE, "written back")

    def voided(self, event: Voided, now: float) -> list[T]:
        """A node's registrations are void: its earlier lines are gone, or it cannot use them."""
        if event.node == self.node_id:
            self.flush(event.why, now)
            return self._own_stamp(event.stamp)
        return self.acknowledgements.advance(event.node, event.stamp) + self._own_stamp(event.stamp)

    def restored(self, stamp: int, voided: Stamps, now: float) -> list[T]:
        """A snapshot replaced the directory: this node did not see the writes in between."""
        self.flush("restored", now)
        done = self._own_stamp(stamp)
        for node, voided_at in voided.items():
            if node != self.node_id:
                done += self.acknowledgements.advance(node, voided_at)
        self.announcement_due = stamp
        return done

    def acknowledged(self, applied: Stamps) -> list[T]:
        """Another node reports which stamps the nodes have applied."""
        done: list[T] = []
        for node, stamp in applied.items():
            if node != self.node_id:
                done += self.acknowledgements.advance(node, stamp)
        return done

    def flush(self, why: str, now: float) -> None:
        """Drop all lines, the clients' too, the lease, and the right to install the fetches in progress."""
        if self.clients.keys:
            self.clients.flush(self.applied + 1, now)
        self.invalidations += self.lines.flush(why)
        for flight in self.flights.values():
            flight.overtaken = True
        self.flights.clear()
        self.lease.forget()

    # ------------------------------------------------------------- near clients

    def _own_stamp(self, stamp: int) -> list[T]:
        """This node has applied the stamp: report as much of it as the near clients allow. Returns the waiters that are done."""
        if stamp > self.applied:
            self.applied = stamp
        if not self.is_open:
            return []
        clients = self.clients
        return self.acknowledgements.advance(
            self.node_id, clients.reported(self.applied) if clients.unconfirmed else self.applied
        )

    def session_opened(self) -> list[T]:
        """The session of this process is open, so no client of the earlier one holds a lease. Returns the waiters that are done."""
        self.is_open = True
        return self._own_stamp(self.applied)

    def clients_confirmed(self) -> list[T]:
        """Invalidations of near clients are not outstanding any longer. Returns the waiters that are done."""
        return self._own_stamp(self.applied)

    def grant(self, client: NearClient[Any], now: float, lease_s: float) -> int:
        """Grant a client a lease of at most `lease_s`, and no longer than this node's own. In milliseconds; 0: not granted."""
        granted_ms = int(min(lease_s, self.lease.valid_until - now) * 1000)
        if granted_ms <= 0 or client.is_gone:
            return 0
        self.clients.granted(client, now, granted_ms / 1000)
        return granted_ms

    def may_install(self, key: str, version: int, now: float) -> bool:
        """True if a client may hold this version from now on: the node has a readable line of it, and its lease."""
        line = self.lines.get(key)
        if line is None or line.version != version or now >= self.lease.valid_until:
            return False
        return line.readable or self.acknowledgements.covers(line.pending_invalidations)

    # -------------------------------------------------------------------- lease

    def wants_lease(self, now: float) -> bool:
        """True if the node should renew: it is in use, and at most two thirds of its lease are left."""
        lease_s = self.lease.length_s
        in_use = bool(self.lines) or self.clients.count > 0
        return in_use and now - self.used_at < lease_s and self.lease.valid_until - now < lease_s * 2 / 3
