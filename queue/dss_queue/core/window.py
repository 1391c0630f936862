"""An append-only list of which the front is forgotten: positions count from the very first item and stay valid."""

from __future__ import annotations

#: Fewer forgotten items than this are not worth moving the others.
SLACK_MAX = 256


class Window:
    """Message numbers in order, at the absolute positions `start` to `end - 1`."""

    __slots__ = ("_base", "_items", "start")

    def __init__(self) -> None:
        #: position of the first item that still counts
        self.start = 0
        self._base = 0
        self._items: list[int] = []

    @property
    def end(self) -> int:
        """The position that the next item gets."""
        return self._base + len(self._items)

    def append(self, number: int) -> None:
        self._items.append(number)

    def get(self, position: int) -> int | None:
        """The number at `position`, which must not be before `start`; None at the end."""
        i = position - self._base
        return self._items[i] if i < len(self._items) else None

    def forget_before(self, position: int) -> None:
        """The window starts at `position` now. Constant time on average: memory is freed when half of it is forgotten."""
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
