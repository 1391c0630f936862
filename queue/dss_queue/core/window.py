"""An append-only list whose front is dropped. Positions count from the first item ever appended, so they stay valid."""

from __future__ import annotations

from bisect import bisect_left

#: Up to this many dropped items are kept in memory, because moving the others would cost more.
SLACK_MAX = 256


class Window:
    """Message numbers in order, at the absolute positions `start` to `end - 1`."""

    __slots__ = ("_base", "_items", "start")

    def __init__(self) -> None:
        #: position of the first item that has not been dropped
        self.start = 0
        self._base = 0
        self._items: list[int] = []

    @property
    def end(self) -> int:
        """The position of the next item to be appended."""
        return self._base + len(self._items)

    def append(self, number: int) -> None:
        self._items.append(number)

    def get(self, position: int) -> int | None:
        """The number at `position`, which must be `start` or later; None at the end."""
        i = position - self._base
        return self._items[i] if i < len(self._items) else None

    def position_of(self, number: int) -> int:
        """The position of the first item that is `number` or greater."""
        return self._base + bisect_left(self._items, number, self.start - self._base)

    def forget_before(self, position: int) -> None:
        """Drop the items before `position`. Constant time on average: memory is freed once half of it is unused."""
        self.start = position
        slack = position - self._base
        if slack > SLACK_MAX and slack * 2 > len(self._items):
            del self._items[:slack]
            self._base = position

    def following(self, position: int, limit: int) -> list[int]:
        """Up to `limit` numbers from `position` on."""
        i = position - self._base
        return self._items[i : i + limit]


class Chain(Window):
    """The retained messages of one routing key."""

    __slots__ = ("key",)

    def __init__(self, key: str) -> None:
        super().__init__()
        #: the one copy of the key that all its messages share
        self.key = key
