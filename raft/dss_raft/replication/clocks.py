"""The clocks of a node, and the stamps that the leader gives to entries.

Leases, visibility timeouts and times to live expire in applied time, which is defined by the leaders' stamps. So stamps must
advance at the speed of real time. A wall clock does not: people and NTP set it. If it were set back by an hour, everything would
live an hour longer. If it were set forward, all leases would expire immediately, while their holders still rely on them.

So the stamps of a term start at the wall clock, because every lease gets its full length again then. After that they follow a
steady clock, which is pulled slightly towards the wall clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)

#: Stamps are pulled towards the wall clock by at most this fraction of the elapsed time.
PULL = 0.005


def wall_clock_ms() -> int:
    """Milliseconds since 1970. This clock may be set at any time."""
    return time.time_ns() // 1_000_000


def boot_time() -> float:
    """Seconds of a clock that is never set. It also counts while the machine sleeps, if the system has such a clock."""
    return time.monotonic() if _BOOT_CLOCK is None else time.clock_gettime(_BOOT_CLOCK)


class StampClock:
    """The stamps of a leader. A process has one.

    Args:
        wall_ms: replaces `wall_clock_ms`.
        steady_s: replaces `boot_time`.
    """

    def __init__(self, wall_ms: Callable[[], int] = wall_clock_ms, steady_s: Callable[[], float] = boot_time) -> None:
        self._wall_ms = wall_ms
        self._steady_s = steady_s
        self._term = 0
        self._ms = 0.0
        self._read_at_s = 0.0

    def now_ms(self, term: int, applied_ms: int) -> int:
        """The stamp of an entry that is proposed now, approximately in ms since 1970.

        Args:
            term: the term in which this node leads; the stamps of a new term start at the wall clock.
            applied_ms: applied time; no stamp is earlier.
        """
        wall_ms, steady_s = self._wall_ms(), self._steady_s()
        if term != self._term:
            self._term = term
            self._ms = wall_ms
        else:
            passed_ms = (steady_s - self._read_at_s) * 1000
            pull_ms = passed_ms * PULL
            self._ms += passed_ms
            self._ms += min(pull_ms, max(-pull_ms, wall_ms - self._ms))
        self._read_at_s = steady_s
        self._ms = max(self._ms, applied_ms)
        return int(self._ms)


class AppliedClock:
    """A node's estimate of applied time: the latest stamp it has applied, plus the time since then.

    Args:
        wall_ms, steady_s: as for `StampClock`.
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
