"""The node that runs in this process, and access to its event loop from other threads.

The assembly calls `set_running`; pages and the admin use the rest. The node belongs to the thread of its loop: code in any other
thread reaches it only through `call_in_loop` and `await_in_loop`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from dss_api.errors import Refused

T = TypeVar("T")

#: The loop answers within milliseconds. After this time it is assumed to be gone.
SNAPSHOT_TIMEOUT_S = 5.0

_node: Any = None
_loop: asyncio.AbstractEventLoop | None = None


def set_running(node: Any, loop: asyncio.AbstractEventLoop | None) -> None:
    """Make `node`, which runs in `loop`, the node of this process; `None, None` when it stops."""
    global _node, _loop
    _node, _loop = node, loop


def node() -> Any:
    """The running node.

    Raises:
        Refused: `stopping` when no node runs in this process.
    """
    if _node is None:
        raise Refused("stopping", "this node is not running")
    return _node


def loop() -> asyncio.AbstractEventLoop:
    """The event loop of the running node.

    Raises:
        Refused: `stopping` when no node runs in this process.
    """
    if _loop is None:
        raise Refused("stopping", "this node is not running")
    return _loop


def call_in_loop(function: Callable[[], T]) -> T:
    """Run a short function in the node's loop and return its result.

    Raises:
        Refused: `stopping` when no node runs in this process.
    """
    there = loop()
    if asyncio._get_running_loop() is there:
        return function()
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    there.call_soon_threadsafe(run)
    return future.result(SNAPSHOT_TIMEOUT_S)


def await_in_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the node's loop, wait for it in this thread, and return its result.

    Raises:
        Refused: what the coroutine raises, or `stopping` when no node runs in this process.
    """
    try:
        there = loop()
    except BaseException:
        coroutine.close()
        raise
    return asyncio.run_coroutine_threadsafe(coroutine, there).result()
