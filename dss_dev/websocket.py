"""WebSockets for tests without an event loop of their own.

websockets has such a client, too. It reads and writes a connection in two threads at the same time, which TLS connections of Python 3.11
cannot bear: about one handshake in 2,000 waited without end. Here, one thread does all reading and writing.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from functools import cache
from types import TracebackType
from typing import Any, Self, TypeVar

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_in_loop

T = TypeVar("T")

OPEN_S = 60.0
_starting = threading.Lock()


class WebSocket:
    """An open connection. Its methods are called by one thread at a time."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    def send(self, message: str | bytes, *, text: bool | None = None) -> None:
        """
        Raises:
            websockets.exceptions.ConnectionClosed
        """
        _run(self._connection.send(message, text=text))

    def recv(self, timeout: float | None = None) -> str | bytes:
        """The next message.

        Args:
            timeout: in seconds.

        Raises:
            TimeoutError: none came in time.
            websockets.exceptions.ConnectionClosed
        """
        return _run(_within(timeout, self._connection.recv()))

    def close(self) -> None:
        _run(self._connection.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def connect(url: str, **options: Any) -> WebSocket:
    """Open a connection.

    Args:
        options: those of `websockets.asyncio.client.connect`.

    Raises:
        websockets.exceptions.InvalidStatus: the server has refused it.
    """
    if "sock" in options:
        options["sock"].setblocking(False)

    async def opened() -> ClientConnection:
        return await connect_in_loop(url, **{"open_timeout": OPEN_S, "proxy": None, **options})

    return WebSocket(_run(opened()))


async def _within(timeout: float | None, work: Coroutine[Any, Any, T]) -> T:
    async with asyncio.timeout(timeout):
        return await work


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run_coroutine_threadsafe(work, _loop()).result()


def _loop() -> asyncio.AbstractEventLoop:
    with _starting:
        return _started_loop()


@cache
def _started_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="websockets", daemon=True).start()
    return loop
