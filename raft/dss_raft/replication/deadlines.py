"""Deadlines of many items, few of which are ever reached: most leases and visibility timeouts are renewed or ended first.

Items are in lists, one list for each 1,024 ms, so that a far deadline costs one list slot. Only the earliest list is moved into an
exact heap. Removals and extensions are lazy: an item that comes up is checked, and dropped or filed again. `timer` on the item says
where its valid entry is; all other entries of it are stale.

When stale entries outnumber the others, everything is filed again: the cost stays constant on average, and the memory bounded.

The order of the items that are due at one stamp depends on the items only, not on when and how they were filed. So it is the same on
every node, even after a restore from a snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from typing import Any, Generic, Protocol, TypeVar

#: `timer` of an item without a deadline
NO_TIMER = -1
#: `timer` of an item in the exact heap
NEAR = -2
#: 1,024 ms per list
SLOT_SHIFT = 10
STALE_ALLOWED = 512


class Timed(Protocol):
    """Something with a deadline."""

    #: maintained by `Deadlines`; not part of the replicated state
    timer: int


T = TypeVar("T", bound=Timed)


class Deadlines(Generic[T]):
    """Finds the items whose deadline has come.

    Args:
        deadline_of: the current deadline of an item, in ms. It may be later than when the item was added.
        order_of: orders items that have the same deadline; unique, and the same on every node.
    """

    def __init__(self, deadline_of: Callable[[T], int], order_of: Callable[[T], Any]) -> None:
        self._deadline_of = deadline_of
        self._order_of = order_of
        self._slots: dict[int, list[T]] = {}
        self._slot_numbers: list[int] = []
        self._near: list[tuple[int, int, T]] = []
        #: slots up to this number are in the heap
        self._near_slot = -1
        #: breaks ties in the heap; `pop_due` orders them
        self._count = 0
        #: entries, and those of them that are stale
        self._filed = 0
        self._stale = 0

    def __len__(self) -> int:
        """Number of entries, stale ones included."""
        return self._filed

    def add(self, item: T, deadline_ms: int) -> None:
        """File an item that has no deadline yet."""
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

    def add_all(self, items: Sequence[T], deadline_ms: int) -> None:
        """File several items that have no deadline yet."""
        slot = deadline_ms >> SLOT_SHIFT
        if slot <= self._near_slot:
            for item in items:
                self.add(item, deadline_ms)
            return
        for item in items:
            item.timer = slot
        self._filed += len(items)
        others = self._slots.get(slot)
        if others is None:
            self._slots[slot] = list(items)
            heappush(self._slot_numbers, slot)
        else:
            others.extend(items)

    def discard(self, item: T) -> None:
        """Forget an item. No effect if it is not filed."""
        if item.timer != NO_TIMER:
            item.timer = NO_TIMER
            self._has_stale()

    def discard_all(self, items: Iterable[T]) -> None:
        """Forget several items."""
        count = 0
        for item in items:
            if item.timer != NO_TIMER:
                item.timer = NO_TIMER
                count += 1
        self._has_stale(count)

    def moved_forward(self, item: T, deadline_ms: int) -> None:
        """The deadline of a filed item is earlier than before. A later one needs no call."""
        self.add(item, deadline_ms)
        self._has_stale()

    def rebuild(self, items: Iterable[T]) -> None:
        """Replace everything by these items."""
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
        """Take out the items whose deadline is <= `at_ms`, ordered by deadline, then by `order_of`."""
        due: list[T] = []
        while (deadline_ms := self.next_ms()) is not None and deadline_ms <= at_ms:
            due += self._pop_at(deadline_ms)
        return due

    def _pop_at(self, deadline_ms: int) -> list[T]:
        items: list[T] = []
        while self.next_ms() == deadline_ms:
            item = heappop(self._near)[2]
            self._filed -= 1
            item.timer = NO_TIMER
            items.append(item)
        if len(items) > 1:
            items.sort(key=self._order_of)
        return items

    def _pour(self, slot: int) -> None:
        self._near_slot = slot
        items = self._slots.pop(slot)
        self._filed -= len(items)
        for item in items:
            if item.timer == slot:
                self.add(item, self._deadline_of(item))
            else:
                self._stale -= 1

    def _has_stale(self, count: int = 1) -> None:
        self._stale += count
        if self._stale > self._filed // 2 + STALE_ALLOWED:
            self.rebuild(self._valid())

    def _valid(self) -> list[T]:
        """The items with a valid entry, each once."""
        lists = [(NEAR, [item for _, _, item in self._near]), *self._slots.items()]
        valid = []
        for timer, items in lists:
            for item in items:
                if item.timer == timer:
                    item.timer = NO_TIMER
                    valid.append(item)
        return valid
