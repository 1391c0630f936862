"""The background thread of `Client`: an event loop that carries out the calls of all other threads."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from dss_client.errors import ClientClosed, WrongUse

T = TypeVar("T")


class Portal:
    """One thread with one event loop."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="dss-client", daemon=True)
        self._thread.start()

    @property
    def is_here(self) -> bool:
        """Whether this is the background thread."""
        return threading.current_thread() is self._thread

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine in the background.

        Raises:
            WrongUse: this is the background thread, which may not wait for itself.
            ClientClosed
        """
        if self.is_here:
            work.close()
            raise WrongUse("a coroutine that runs in the thread of `Client` cannot call `Client`; use AsyncClient there")
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise ClientClosed("this client is closed") from None

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the background, and wait for it. If this thread is interrupted, the coroutine is cancelled.

        Raises:
            WrongUse, ClientClosed: see `submit`.
        """
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def post(self, function: Any, *arguments: Any) -> None:
        """Call a function in the background soon.

        Raises:
            ClientClosed
        """
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            raise ClientClosed("this client is closed") from None

    def finish(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a last coroutine, then end the thread. Returns immediately."""

        async def run() -> None:
            try:
                await work()
            finally:
                self._loop.stop()

        if self._pid == os.getpid() and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(lambda: asyncio.ensure_future(run()))

    def stop(self, timeout_s: float) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            if tasks:
                self._loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()
