"""Notices that commits or applying make no progress although something waits for them, or that applying lags behind commits.

Both count ticks, not a clock: a node that was paused has not seen the time in between.
"""

from __future__ import annotations

from collections import deque


class StallWatch:
    """Counts ticks without progress.

    Args:
        ticks_max: so many ticks without progress are a stall.
    """

    def __init__(self, ticks_max: int) -> None:
        self._ticks_max = ticks_max
        self._progress = (0, 0)
        self._ticks = 0

    def tick(self, commit_index: int, applied_index: int, is_pending: bool) -> None:
        """A tick has passed; `is_pending`: entries or calls wait for a commit, or entries to be applied."""
        progress = (commit_index, applied_index)
        if progress != self._progress or not is_pending:
            self._progress = progress
            self._ticks = 0
        else:
            self._ticks += 1

    @property
    def is_stalled(self) -> bool:
        return self._ticks > self._ticks_max


class LagWatch:
    """Compares what is applied with what was known to be committed some ticks ago.

    Under load there are nearly always committed entries that are applied in the next turn of the event loop. They are no reason to
    send calls elsewhere.

    Args:
        ticks_max: a node lags when it has not applied what was committed that many ticks ago.
    """

    def __init__(self, ticks_max: int) -> None:
        #: what was committed at each of the last ticks
        self._committed: deque[int] = deque(maxlen=ticks_max)

    def tick(self, committed: int) -> None:
        """A tick has passed."""
        self._committed.append(committed)

    def is_lagging(self, applied_index: int) -> bool:
        """Whether this node is too far behind to get calls."""
        committed = self._committed
        return len(committed) == committed.maxlen and applied_index < committed[0]
