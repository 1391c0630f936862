"""Notices that commits or applying make no progress although something waits for them."""

from __future__ import annotations


class StallWatch:
    """Counts ticks without progress. Ticks, not a clock: a node that was paused has not seen the time in between.

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
