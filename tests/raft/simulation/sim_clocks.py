"""The clocks of the simulated nodes. They have their own randomness, so that the rest of a seed stays unchanged.

In most seeds one clock is wrong by days and set again and again, and all others are right within seconds. In the other seeds any
clock may be set. When all nodes are down at the same time, a day may pass: wall clocks show it, and no process has measured it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

DAY_MS = 24 * 3_600_000
#: a clock is wrong by this at most
WRONG_MS_MAX = 10 * DAY_MS
#: a right clock is off by this at most
RIGHT_MS_MAX = 20_000
#: right clocks of a majority agree within this; stated here again, so that a planted bug in the original does not change it
AGREE_MS = 60_000
#: far enough from 1970 for any jump
EPOCH_MS = 1000 * DAY_MS
#: after this time no clock is set
LAST_JUMP_US = 1_500_000


class SimTime:
    """Real time, and the clocks of all nodes.

    Args:
        now_us: the world's time, which all steady clocks show.
        happened: counts how often a wall clock was set, and how often a day has passed.
    """

    def __init__(self, now_us: Callable[[], int], seed: int, voters: int, happened: Counter[str]) -> None:
        self._dice = Random(seed)
        self.now_us = now_us
        self.happened = happened
        self.clocks: dict[str, SimClocks] = {}
        #: the only node whose clock is wrong; None: any clock may be wrong
        self.wrong_node = self._dice.choice((chr(97 + self._dice.randrange(voters)),) * 3 + (None,))
        #: the time that has passed while no process ran
        self.down_ms = 0

    def clocks_of(self, node_id: str) -> SimClocks:
        """The clocks of a new node."""
        clocks = self.clocks[node_id] = SimClocks(self, self._dice.getrandbits(32), self.wrong_node in (None, node_id))
        return clocks

    def all_are_down(self) -> None:
        """No process runs at this moment. A day may pass."""
        if self._dice.random() < 0.5:
            self.down_ms += DAY_MS
            self.happened["day passed"] += 1

    def true_ms(self) -> int:
        return EPOCH_MS + self.now_us() // 1000 + self.down_ms

    def chance(self, probability: float) -> bool:
        return self._dice.random() < probability

    def delay_us(self, longest_us: int) -> int:
        return self._dice.randint(0, longest_us)


class SimClocks:
    """A wall clock and a steady clock. Both outlive the node's process."""

    def __init__(self, time: SimTime, seed: int, may_be_wrong: bool) -> None:
        dice = Random(seed)
        self.time = time
        #: all offsets that the wall clock has had until now, the present one last
        self.offsets_ms = [dice.randint(-RIGHT_MS_MAX, RIGHT_MS_MAX)]
        self._jumps: list[tuple[int, int]] = []
        if may_be_wrong:
            self.offsets_ms = [dice.choice((0, 8 * DAY_MS, -8 * DAY_MS, dice.randint(-WRONG_MS_MAX, WRONG_MS_MAX)))]
            times_us = sorted(dice.randint(0, LAST_JUMP_US) for _ in range(dice.choice((0, 1, 3, 10))))
            self._jumps = [(at_us, dice.randint(-WRONG_MS_MAX, WRONG_MS_MAX)) for at_us in times_us]

    def wall_ms(self) -> int:
        while self._jumps and self._jumps[0][0] <= self.time.now_us():
            self.offsets_ms.append(self._jumps.pop(0)[1])
            self.time.happened["wall clock set"] += 1
        return self.time.true_ms() + self.offsets_ms[-1]

    def has_shown(self, wall_ms: int, tolerance_ms: int) -> bool:
        """Whether this clock would show about this time now, as it is set or as it was set before."""
        self.wall_ms()
        return any(abs(self.time.true_ms() + offset_ms - wall_ms) <= tolerance_ms for offset_ms in self.offsets_ms)

    def steady_s(self) -> float:
        return self.time.now_us() / 1e6
