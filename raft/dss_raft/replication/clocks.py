"""The clocks of a node, and the stamps that the leader gives to entries.

Leases, visibility timeouts, delays, retention and times to live end in applied time, which is defined by the leaders' stamps. So
stamps must advance at the speed of real time, and no wall clock does that reliably: people and NTP set it, and it may be wrong by
days.

So the stamps of a new leader go on from applied time, and follow a steady clock. That clock is pulled slightly towards the wall
clock on which a majority of the voters agree. One wrong wall clock among three has no influence, whichever node it belongs to.

Only a time without a leader is not measured by a steady clock. If applied time is behind the majority's wall clock after that, a
new leader proposes one `AdvanceTime` (see `proposals`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)

#: Stamps are pulled towards the majority's wall clock by at most this fraction of the elapsed time.
PULL = 0.005
#: Wall clocks agree when they differ by this at most. A clock, or applied time, that is off by more is reported or corrected.
AGREE_MS = 60_000
#: A member's wall clock counts for this time after it was heard of.
HEARD_FOR_S = 10.0
#: The first stamp of a cluster waits this long for a majority's wall clocks.
FIRST_STAMP_WAIT_S = 2.0


def wall_clock_ms() -> int:
    """Milliseconds since 1970. This clock may be set at any time."""
    return time.time_ns() // 1_000_000


def boot_time() -> float:
    """Seconds of a clock that is never set. It also counts while the machine sleeps, if the system has such a clock."""
    return time.monotonic() if _BOOT_CLOCK is None else time.clock_gettime(_BOOT_CLOCK)


class Agreement(msgspec.Struct, frozen=True):
    """A majority of the voters has wall clocks that differ by `AGREE_MS` at most."""

    #: the middle one of these clocks, as its distance from this node's steady clock
    offset_ms: float
    #: whose clocks agree, sorted by id
    nodes: tuple[str, ...]


def agreement(offsets_ms: dict[str, float], majority: int) -> Agreement | None:
    """The largest group of clocks that agree, if it is a majority; among groups of equal size, the closest one."""
    ordered = sorted((offset_ms, node_id) for node_id, offset_ms in offsets_ms.items())
    best: list[tuple[float, str]] = []
    first = 0
    for end in range(1, len(ordered) + 1):
        while ordered[end - 1][0] - ordered[first][0] > AGREE_MS:
            first += 1
        group = ordered[first:end]
        if len(group) > len(best) or (len(group) == len(best) and _spread(group) < _spread(best)):
            best = group
    if not best or len(best) < majority:
        return None
    return Agreement(best[(len(best) - 1) // 2][0], tuple(sorted(node_id for _, node_id in best)))


def _spread(group: list[tuple[float, str]]) -> float:
    return group[-1][0] - group[0][0]


class MemberClocks:
    """The wall clocks of the voters as this node knows them, and what a majority of them agrees on.

    A clock is kept as its distance from this node's steady clock, so it goes on between two messages. A message that was
    delayed makes a clock look slower than it is, never faster.

    Args:
        node_id: this node.
        wall_ms: replaces `wall_clock_ms`.
        steady_s: replaces `boot_time`.
    """

    def __init__(
        self, node_id: str, wall_ms: Callable[[], int] = wall_clock_ms, steady_s: Callable[[], float] = boot_time
    ) -> None:
        self.node_id = node_id
        #: None: no majority agrees, or its clocks are not known
        self.agreement: Agreement | None = None
        #: voter -> its clock as distance from this node's steady clock
        self.offsets_ms: dict[str, float] = {}
        #: this node's own wall clock, in the same way
        self.own_offset_ms = 0.0
        self.wall_ms = wall_ms
        self._steady_s = steady_s
        #: peer -> (its clock in the same way, when it was heard of)
        self._heard: dict[str, tuple[float, float]] = {}

    def heard(self, peer: str, wall_ms: int) -> None:
        """`peer` has just said what its wall clock shows."""
        steady_s = self._steady_s()
        self._heard[peer] = (wall_ms - steady_s * 1000, steady_s)

    def look(self, voters: Sequence[str]) -> None:
        """Find out again what a majority agrees on."""
        steady_s = self._steady_s()
        self.own_offset_ms = self.wall_ms() - steady_s * 1000
        self._heard = {peer: heard for peer, heard in self._heard.items() if steady_s - heard[1] <= HEARD_FOR_S}
        self.offsets_ms = {peer: self._heard[peer][0] for peer in voters if peer in self._heard}
        if self.node_id in voters:
            self.offsets_ms[self.node_id] = self.own_offset_ms
        self.agreement = agreement(self.offsets_ms, len(voters) // 2 + 1)

    def agreed_ms(self) -> float | None:
        """The majority's wall clock now; None if no majority agrees."""
        return None if self.agreement is None else self.agreement.offset_ms + self._steady_s() * 1000

    @property
    def off_by_ms(self) -> int | None:
        """How far this node's wall clock is ahead of the majority's; None if no majority agrees."""
        return None if self.agreement is None else int(self.own_offset_ms - self.agreement.offset_ms)

    def latest_ms(self) -> float:
        """The wall clock that is ahead of all others that are known."""
        return max([self.own_offset_ms, *self.offsets_ms.values()]) + self._steady_s() * 1000


class AppliedClock:
    """A node's estimate of applied time: the latest stamp it has applied, plus the time since then.

    It is never ahead of real time, because a stamp is applied later than it was made.

    Args:
        wall_ms: replaces `wall_clock_ms`.
        steady_s: replaces `boot_time`.
    """

    def __init__(self, wall_ms: Callable[[], int] = wall_clock_ms, steady_s: Callable[[], float] = boot_time) -> None:
        self._wall_ms = wall_ms
        self._steady_s = steady_s
        self._applied_ms = 0
        self._applied_at_s = 0.0

    def applied(self, at_ms: int) -> None:
        """Applied time is `at_ms`. Repeated calls with the same value have no effect."""
        if at_ms != self._applied_ms:
            self._applied_ms, self._applied_at_s = at_ms, self._steady_s()

    def now_ms(self) -> int:
        """Approximately milliseconds since 1970; the wall clock until something is applied."""
        if not self._applied_ms:
            return self._wall_ms()
        return self._applied_ms + int((self._steady_s() - self._applied_at_s) * 1000)


class StampClock:
    """The stamps of a leader. A process has one.

    Args:
        members: the wall clocks that pull the stamps.
        applied: where the stamps of a new leader go on.
        steady_s: replaces `boot_time`.
        first_wait_s: how long the first stamp of a cluster waits for a majority's wall clocks.
    """

    def __init__(
        self,
        members: MemberClocks,
        applied: AppliedClock,
        steady_s: Callable[[], float] = boot_time,
        first_wait_s: float = FIRST_STAMP_WAIT_S,
    ) -> None:
        self.members = members
        self._applied = applied
        self._steady_s = steady_s
        self._first_wait_s = first_wait_s
        self._term = 0
        self._ms = 0.0
        self._read_at_s = 0.0
        self._waits_since_s: float | None = None

    def may_begin(self) -> bool:
        """Whether the first stamp of a cluster may be made: a majority agrees, or did not in time."""
        if self.members.agreement is not None:
            return True
        if self._waits_since_s is None:
            self._waits_since_s = self._steady_s()
        return self._steady_s() - self._waits_since_s >= self._first_wait_s

    def now_ms(self, term: int, applied_ms: int) -> int:
        """The stamp of an entry that is proposed now, approximately in ms since 1970.

        Args:
            term: the term in which this node leads; the stamps of a new term go on from the estimate of applied time.
            applied_ms: applied time, 0 before the first stamp of the cluster; no stamp is earlier.
        """
        steady_s = self._steady_s()
        agreed_ms = self.members.agreed_ms()
        if term != self._term:
            self._term = term
            self._ms = self._go_on(applied_ms) if applied_ms else self._first_ms(agreed_ms)
        else:
            passed_ms = (steady_s - self._read_at_s) * 1000
            self._ms += passed_ms
            if agreed_ms is not None:
                pull_ms = passed_ms * PULL
                self._ms += min(pull_ms, max(-pull_ms, agreed_ms - self._ms))
        self._read_at_s = steady_s
        self._ms = max(self._ms, applied_ms)
        return int(self._ms)

    def _go_on(self, applied_ms: int) -> float:
        self._applied.applied(applied_ms)
        return self._applied.now_ms()

    def _first_ms(self, agreed_ms: float | None) -> float:
        """Nothing can be early or late yet. The latest clock is best: to advance time later would end what was begun meanwhile."""
        return self.members.latest_ms() if agreed_ms is None else agreed_ms
