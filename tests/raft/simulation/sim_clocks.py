"""The clocks with which a simulated node stamps. They have their own randomness, so that the rest of a seed stays unchanged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

HOUR_MS = 3_600_000
#: far enough from 1970 for any jump
EPOCH_MS = 100 * HOUR_MS
#: after this time no clock is set
LAST_JUMP_US = 1_500_000


class SimClocks:
    """A wall clock, which is set from time to time by up to an hour, and a steady clock. Both outlive the node's process.

    Args:
        now_us: the world's time.
        happened: counts how often the wall clock was set.
    """

    def __init__(self, now_us: Callable[[], int], seed: int, happened: Counter[str]) -> None:
        dice = Random(seed)
        self.now_us = now_us
        self._happened = happened
        self._offset_ms = dice.choice((0, 0, dice.randint(-60_000, 60_000)))
        self._jumps = sorted(
            (dice.randint(0, LAST_JUMP_US), dice.randint(-HOUR_MS, HOUR_MS)) for _ in range(dice.choice((0, 0, 1, 3, 10)))
        )

    def wall_ms(self) -> int:
        while self._jumps and self._jumps[0][0] <= self.now_us():
            self._offset_ms = self._jumps.pop(0)[1]
            self._happened["wall clock set"] += 1
        return EPOCH_MS + self.now_us() // 1000 + self._offset_ms

    def steady_s(self) -> float:
        return self.now_us() / 1e6
