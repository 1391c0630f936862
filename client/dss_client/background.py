"""What runs the calls of all threads: an asyncio client in one background thread, from the first call to the end of the process.

The child of a fork gets a thread, a connection and a name of its own.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Awaitable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from dss_client.aio import AsyncClient
from dss_client.errors import ClientClosed
from dss_client.portal import Portal

T = TypeVar("T")
CLOSE_S = 3.0


class Background:
    """The base of `Client`: the life of its thread and its connection."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._portal: Portal | None = None
        self._starting = threading.Lock()
        self._is_closed = False
        self._local = threading.local()
        _clients.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the locks that are still held, close the connection and end the thread. At exit, this happens by itself."""
        with self._starting:
            self._is_closed = True
            portal, self._portal = self._portal, None
        if portal is None:
            return
        with contextlib.suppress(Exception):
            portal.call(within(CLOSE_S, self._client.aclose()))
        portal.stop(CLOSE_S)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._started(work).call(work)

    async def _await(self, work: Coroutine[Any, Any, T]) -> T:
        """As `_run`, for a caller in an event loop, which goes on meanwhile."""
        return await asyncio.wrap_future(self._started(work).submit(work))

    def _started(self, work: Coroutine[Any, Any, Any] | None = None) -> Portal:
        portal = self._portal
        if portal is None:
            with self._starting:
                if self._is_closed:
                    if work is not None:
                        work.close()
                    raise ClientClosed("this client is closed")
                if self._portal is None:
                    self._portal = Portal()
                    # A client that is thrown away without `close` leaves no thread behind.
                    weakref.finalize(self, self._portal.finish, self._client.aclose).atexit = False
                portal = self._portal
        return portal

    def _owner(self) -> str:
        """The name of this thread, as an owner of locks."""
        owners = self._client._owners
        if getattr(self._local, "owners", None) is not owners:
            self._local.owners = owners
            self._local.name = owners.make()
        name: str = self._local.name
        return name

    def _forked(self) -> None:
        if self._portal is not None:
            _of_parents.append(self._portal)
        self._portal = None
        self._starting = threading.Lock()


async def within(seconds: float, work: Awaitable[None]) -> None:
    """Wait for `work`, but for at most this long."""
    async with asyncio.timeout(seconds):
        await work


_clients: weakref.WeakSet[Background] = weakref.WeakSet()
_of_parents: list[Any] = []


def _after_fork() -> None:
    for client in list(_clients):
        client._forked()


@atexit.register
def _close_all() -> None:
    for client in list(_clients):
        client.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
