"""The clocks of a node, and the time that its leader stamps on entries.

Leases, visibility timeouts and times to live end in applied time, which is what the leaders' stamps say: so these have to flow as
time does. A wall clock does not; people set it, and NTP does. Set back by an hour it would keep everything alive for an hour. Set
forward it would end all leases at once, while their holders, who count on clocks of their own, rely on them.

So a wall clock says where a leadership begins, for all leases begin anew there, and pulls a little while it lasts. What counts in
between is a steady clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)

#: Stamps are pulled towards the wall clock by this part of the time that passes.
PULL = 0.005


def wall_clock_ms() -> int:
    """Milliseconds since 1970. It may be set at any time."""
    return time.time_ns() // 1_000_000


def boot_time() -> float:
    """Seconds on a clock that also counts while the machine sleeps, where there is one; nothing ever sets it."""
    return time.monotonic() if _BOOT_CLOCK is None else time.clock_gettime(_BOOT_CLOCK)


class StampClock:
    """A leader's stamps. One for each process.

    Args:
        wall_ms: in place of `wall_clock_ms`.
        steady_s: in place of `boot_time`.
    """

    def __init__(self, wall_ms: Callable[[], int] = wall_clock_ms, steady_s: Callable[[], float] = boot_time) -> None:
        self._wall_ms = wall_ms
        self._steady_s = steady_s
        self._term = 0
        self._ms = 0.0
        self._read_at_s = 0.0

    def now_ms(self, term: int, applied_ms: int) -> int:
        """The stamp of an entry that is proposed now, in ms since 1970, about.

        Args:
            term: in which this node leads; a new one begins at the wall clock.
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
    """Applied time as of now, as well as a node can tell that does not stamp: the latest stamp it has applied, and what has passed since.

    Args:
        wall_ms, steady_s: as for `StampClock`.
    """

    def __init__(self, wall_ms: Callable[[], int] = wall_clock_ms, steady_s: Callable[[], float] = boot_time) -> None:
        self._wall_ms = wall_ms
        self._steady_s = steady_s
        self._applied_ms = 0
        self._applied_at_s = 0.0

    def applied(self, at_ms: int) -> None:
        """Applied time is `at_ms`; told again, it changes nothing."""
        if at_ms != self._applied_ms:
            self._applied_ms, self._applied_at_s = at_ms, self._steady_s()

    def now_ms(self) -> int:
        """Milliseconds since 1970, about; the wall clock's before anything was applied."""
        if not self._applied_ms:
            return self._wall_ms()
        return self._applied_ms + int((self._steady_s() - self._applied_at_s) * 1000)
