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
    """Compares what is applied with what was committed some ticks ago.

    Under load there are nearly always committed entries that are applied in the next turn of the event loop. They are no reason to
    send calls elsewhere. A node lags when it has not caught up since `restart`, or when it has not applied what was committed
    `ticks_max` ticks ago.
    """

    def __init__(self, ticks_max: int) -> None:
        #: the commit index at each of the last ticks
        self._committed: deque[int] = deque(maxlen=ticks_max)
        self._has_caught_up = False

    def restart(self) -> None:
        """From now on the node lags until everything known to be committed is applied."""
        self._committed.clear()
        self._has_caught_up = False

    def tick(self, commit_index: int, applied_index: int) -> None:
        """A tick has passed."""
        self._committed.append(commit_index)
        if applied_index >= commit_index > 0:
            self._has_caught_up = True

    def is_lagging(self, commit_index: int, applied_index: int) -> bool:
        """Whether this node is too far behind to get calls."""
        if applied_index >= commit_index > 0:
            return False
        committed = self._committed
        return not self._has_caught_up or (len(committed) == committed.maxlen and applied_index < committed[0])
