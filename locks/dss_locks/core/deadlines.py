"""Deadlines of many items, of which few are ever reached: leases are nearly always released or renewed first.

Items lie in lists, one list for each 1,024 ms, so that a far deadline costs one list slot. Only the earliest list is poured into
an exact heap. Removal and prolongation are lazy: an item that comes up is looked at again, and dropped or filed anew. `timer` on
the item says where its valid entry is; every other entry of it is stale.

When stale entries outnumber live items everything is filed again: the cost stays constant on average, the memory bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import Generic, Protocol, TypeVar

#: `timer` of an item without a deadline
NO_TIMER = -1
#: `timer` of an item in the exact heap
NEAR = -2
#: 1,024 ms a list
SLOT_SHIFT = 10
STALE_ALLOWED = 4096


class Timed(Protocol):
    """Something with a deadline."""

    timer: int


T = TypeVar("T", bound=Timed)


class Deadlines(Generic[T]):
    """Finds the items whose deadline has come.

    Args:
        deadline_of: the present deadline of an item, ms. It may have grown since the item was added.
    """

    def __init__(self, deadline_of: Callable[[T], int]) -> None:
        self._deadline_of = deadline_of
        self._slots: dict[int, list[T]] = {}
        self._slot_numbers: list[int] = []
        self._near: list[tuple[int, int, T]] = []
        #: slots up to this number are in the heap
        self._near_slot = -1
        #: breaks ties in the heap; no order that anyone sees depends on it
        self._count = 0
        #: entries, and those of them that are stale
        self._filed = 0
        self._stale = 0

    def add(self, item: T, deadline_ms: int) -> None:
        """File an item. One that is filed already must have its deadline moved forward (else nothing need be done)."""
        self._filed += 1
        slot = deadline_ms >> SLOT_SHIFT
        if slot <= self._near_slot:
            item.timer = NEAR
            self._count += 1
            heappush(self._near, (deadline_ms, self._count, item))
            return
        item.timer = slot
        items = self._slots.get(slot)
        if items is None:
            self._slots[slot] = [item]
            heappush(self._slot_numbers, slot)
        else:
            items.append(item)

    def discard(self, item: T) -> None:
        """Forget an item."""
        if item.timer != NO_TIMER:
            item.timer = NO_TIMER
            self._has_stale()

    def moved_forward(self, item: T, deadline_ms: int) -> None:
        """The deadline of a filed item is earlier than it was."""
        self.add(item, deadline_ms)
        self._has_stale()

    def rebuild(self, items: Iterable[T]) -> None:
        """Start anew with these items."""
        self._slots, self._slot_numbers, self._near = {}, [], []
        self._near_slot, self._filed, self._stale = -1, 0, 0
        for item in items:
            self.add(item, self._deadline_of(item))

    def next_ms(self) -> int | None:
        """The earliest deadline; None when there is none."""
        near = self._near
        while True:
            while near:
                filed_ms, _, item = near[0]
                if item.timer == NEAR:
                    deadline_ms = self._deadline_of(item)
                    if deadline_ms == filed_ms:
                        return deadline_ms
                    if deadline_ms > filed_ms:
                        self.add(item, deadline_ms)
                else:
                    self._stale -= 1
                heappop(near)
                self._filed -= 1
            if not self._slot_numbers:
                self._near_slot = -1
                return None
            self._pour(heappop(self._slot_numbers))

    def pop_due(self, at_ms: int) -> list[T]:
        """Take out the items whose deadline is <= `at_ms`."""
        due: list[T] = []
        while (deadline_ms := self.next_ms()) is not None and deadline_ms <= at_ms:
            item = heappop(self._near)[2]
            self._filed -= 1
            item.timer = NO_TIMER
            due.append(item)
        return due

    def _pour(self, slot: int) -> None:
        self._near_slot = slot
        items = self._slots.pop(slot)
        self._filed -= len(items)
        for item in items:
            if item.timer == slot:
                self.add(item, self._deadline_of(item))
            else:
                self._stale -= 1

    def _has_stale(self) -> None:
        self._stale += 1
        if self._stale > self._filed // 2 + STALE_ALLOWED:
            self.rebuild(self._valid())

    def _valid(self) -> list[T]:
        """The items with a valid entry, each once."""
        entries = [(NEAR, item) for _, _, item in self._near]
        entries += [(slot, item) for slot, items in self._slots.items() for item in items]
        valid = []
        for timer, item in entries:
            if item.timer == timer:
                item.timer = NO_TIMER
                valid.append(item)
        return valid
