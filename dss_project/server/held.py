"""Counts what a web server keeps of a WebSocket's messages, apart from the buffer of its parser."""

from __future__ import annotations

from collections import deque

#: Counted for each part of a message in addition to its length: the server keeps an object for it.
PIECE_BYTES = 128
#: Counted in addition for each complete message that the application has not received yet.
MESSAGE_BYTES = 512


class HeldMessages:
    """The parts of an unfinished message, and the messages that the application has not received yet."""

    def __init__(self) -> None:
        self._pieces = 0
        self._messages: deque[int] = deque()
        self.bytes = 0

    def add_piece(self, length: int) -> None:
        """A part of the unfinished message has arrived."""
        self._pieces += length + PIECE_BYTES
        self.bytes += length + PIECE_BYTES

    def complete(self) -> None:
        """The message is complete: the application will receive it."""
        self._messages.append(self._pieces + MESSAGE_BYTES)
        self.bytes += MESSAGE_BYTES
        self._pieces = 0

    def take(self) -> None:
        """The application has received a message."""
        if self._messages:
            self.bytes -= self._messages.popleft()

    def forget_unfinished(self) -> None:
        """The rest of the unfinished message will not arrive."""
        self.bytes -= self._pieces
        self._pieces = 0

    def clear(self) -> None:
        """The server no longer keeps anything."""
        self._messages.clear()
        self.bytes = self._pieces = 0
