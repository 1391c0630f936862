"""Deadlines, of which few are ever reached: a heap whose outdated entries are skipped, and swept when they are too many."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Generic, Protocol, TypeVar

#: Outdated entries beyond the number of valid ones before the heap is swept.
OUTDATED_ALLOWED = 4096


class Timed(Protocol):
    """Something with a deadline."""

    #: applied time in ms at which it is due; 0: not at all
    due_ms: int
    #: unique in the broker: orders what is due at the same time
    serial: int


T = TypeVar("T", bound=Timed)


class Timers(Generic[T]):
    """Finds the items that are due. An entry counts only while it shows its item's own `due_ms`."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, T]] = []
        self._armed = 0

    def arm(self, item: T, due_ms: int) -> None:
        """Set or move the deadline of an item."""
        if item.due_ms == due_ms:
            return
        if not item.due_ms:
            self._armed += 1
        item.due_ms = due_ms
        heappush(self._heap, (due_ms, item.serial, item))
        if len(self._heap) > 2 * self._armed + OUTDATED_ALLOWED:
            self._sweep()

    def disarm(self, item: T) -> None:
        """Drop the deadline of an item."""
        if item.due_ms:
            item.due_ms = 0
            self._armed -= 1

    def next_ms(self) -> int | None:
        """The earliest deadline; None when there is none."""
        heap = self._heap
        while heap:
            due_ms, _, item = heap[0]
            if item.due_ms == due_ms:
                return due_ms
            heappop(heap)
        return None

    def pop_due(self, at_ms: int) -> T | None:
        """Take out the first item that is due at `at_ms`, by deadline, then serial number; None when no more is.

        One at a time: what is done about an item may disarm the next.
        """
        due_ms = self.next_ms()
        if due_ms is None or due_ms > at_ms:
            return None
        item = heappop(self._heap)[2]
        self.disarm(item)
        return item

    def _sweep(self) -> None:
        self._heap = [entry for entry in self._heap if entry[2].due_ms == entry[0]]
        heapify(self._heap)
