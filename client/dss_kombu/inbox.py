"""How deliveries come from the background thread to the program's thread: a list, and a pipe that an event loop can watch."""

from __future__ import annotations

import contextlib
import os
import select
from collections import deque
from typing import Any


class Inbox:
    """Any thread puts items, one thread takes them."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._is_closed = False

    def fileno(self) -> int:
        """Readable while there may be items."""
        return self._read

    def put(self, items: list[Any]) -> None:
        self._items.extend(items)
        # A full pipe has woken the reader already.
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._write, b".")

    def take(self) -> list[Any]:
        """Take all items."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 65_536)
        found = []
        while self._items:
            found.append(self._items.popleft())
        return found

    def put_back(self, items: list[Any]) -> None:
        """Return items that were taken but not handled."""
        self._items.extendleft(reversed(items))
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._write, b".")

    def remove(self, is_wanted: Any) -> list[Any]:
        """Take those items for which `is_wanted` is true."""
        items = self.take()
        found = [item for item in items if is_wanted(item)]
        self.put_back([item for item in items if not is_wanted(item)])
        return found

    def wait(self, timeout: float | None) -> bool:
        """Wait until there may be items, for `timeout` seconds."""
        poller = select.poll()
        poller.register(self._read, select.POLLIN)
        return bool(poller.poll(None if timeout is None else max(0.0, timeout) * 1000))

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            os.close(self._read)
            os.close(self._write)
