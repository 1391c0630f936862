"""From a thread of Django's to the node's event loop and back. Nothing of the node is touched from any other thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

#: The loop answers within milliseconds; longer means that it is gone.
SNAPSHOT_TIMEOUT_S = 5.0


def call_in_loop(function: Callable[[], T]) -> T:
    """Run a short function in the node's loop and return what it returns.

    Raises:
        Refused: `stopping` when no node runs in this process.
    """
    from dss_project import runtime

    loop = runtime.loop()
    if asyncio._get_running_loop() is loop:
        return function()
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    loop.call_soon_threadsafe(run)
    return future.result(SNAPSHOT_TIMEOUT_S)


def await_in_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the node's loop, wait in this thread for its end, and return its result.

    Raises:
        Refused: what the coroutine raises, or `stopping` when no node runs in this process.
    """
    from dss_project import runtime

    try:
        loop = runtime.loop()
    except BaseException:
        coroutine.close()
        raise
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result()
