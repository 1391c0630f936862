"""The thread of a store: every job of the log store runs in it, one after the other, so the store needs no lock.

A job costs one `SimpleQueue.put` here and one callback of the event loop there. A `ThreadPoolExecutor` does the same with a semaphore, two
conditions and a second future for each job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_Job = tuple[asyncio.Future[Any], Callable[..., Any], tuple[Any, ...]]


class StoreThread:
    """A thread that is started by its first job.

    It does not keep the process alive: what is cut off was not answered yet, as after a power failure.

    Args:
        loop: where the results are delivered.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._closed = False

    def run(self, work: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """Run `work(*args)` after the jobs that were given before. A job whose future is cancelled before it begins is left out.

        Raises:
            RuntimeError: the thread is closed.
        """
        if self._closed:
            raise RuntimeError("the thread of the store is closed")
        if self._thread is None:
            self._thread = Thread(target=self._run_jobs, name="raft-store", daemon=True)
            self._thread.start()
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put((future, work, args))
        return future

    def close(self) -> None:
        """End the thread after the jobs that were given, and wait for it."""
        self._closed = True
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()

    def _run_jobs(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._run(*job)
            del job  # a job can hold megabytes, and the next one may be far away

    def _run(self, future: asyncio.Future[Any], work: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if future.cancelled():
            return
        result, error = None, None
        try:
            result = work(*args)
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop is closed: no one waits
            self._loop.call_soon_threadsafe(_settle, future, result, error)


def _settle(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.done():  # cancelled while the job ran
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
