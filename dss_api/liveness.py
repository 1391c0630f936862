"""Signs of life of a WebSocket's client: everything that arrives from it counts, including answers to pings.

A host that vanishes (power, network) closes no connection. The server detects that with `ping`, which sends a ping frame (RFC 6455)
that every WebSocket library answers by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Line(Protocol):
    """The web server's WebSocket. Its methods have no effect after the connection was lost."""

    def ping(self) -> None:
        """Send a ping frame."""

    def watch(self, on_data: Callable[[], None]) -> None:
        """Call `on_data` whenever something arrives. From now on, the input is taken in turns (see `turns`)."""

    def send_now(self, data: bytes, is_text: bool) -> bool:
        """Send a message without waiting. False: nothing was sent, because the client has to read first, or there is no such way."""

    def message_taken(self) -> None:
        """The application has received a message: the server no longer keeps it."""

    def abort(self) -> None:
        """End the connection immediately, and free what is kept for it."""


class NoLine:
    """Stands for the connection when the server gives no access to it."""

    def ping(self) -> None:
        """Do nothing."""

    def watch(self, on_data: Callable[[], None]) -> None:
        """Do nothing."""

    def send_now(self, data: bytes, is_text: bool) -> bool:
        """Send nothing."""
        return False

    message_taken = abort = ping


class Liveness:
    """See the module.

    Args:
        line: the connection. None or `NoLine`: the server gives no access to it, and clients count as alive.
    """

    def __init__(self, line: Line | None = None) -> None:
        self._line = line = None if isinstance(line, NoLine) else line
        self._waiting: dict[Callable[[], None], None] = {}
        #: grows with each sign
        self.signs = 0
        if line is not None:
            line.watch(self.heard)

    @property
    def can_ping(self) -> bool:
        """Whether a silent client can be distinguished from one that has gone."""
        return self._line is not None

    def ping(self) -> None:
        """Ask for a sign."""
        if self._line is not None:
            self._line.ping()

    def heard(self) -> None:
        """Something has arrived."""
        self.signs += 1
        if self._waiting:
            waiting, self._waiting = self._waiting, {}
            for callback in waiting:
                callback()

    def when_heard(self, callback: Callable[[], None]) -> None:
        """Call back once, at the next sign."""
        self._waiting[callback] = None

    def forget(self, callback: Callable[[], None]) -> None:
        """Do not call back."""
        self._waiting.pop(callback, None)
