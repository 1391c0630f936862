"""Background tasks that do not end unnoticed.

asyncio keeps the exception of a task until some code awaits the task, which no code does for a background task. So each of them
belongs to a `Tasks`: if one raises, that is logged and counted (`dss_task_failures_total`). Then one of three things happens:

- `spawn`: nothing more. The task did one piece of work for one call or message, and the next one gets a task of its own.
- `keep`: the task serves the node for as long as it runs, so it is started again, after a pause that doubles with each failure.
- `spawn` with `on_failure`: the owner decides, for example that the node must stop because it cannot continue safely.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypeVar, get_args

import structlog
from prometheus_client import Counter

from dss_api.errors import ForOperator

T = TypeVar("T")

log = structlog.get_logger("node")

#: The values of the metric's label.
TaskName = Literal[
    "audit",
    "cache_near",
    "cache_peers",
    "cache_reads",
    "cache_write_back",
    "control",
    "engine",
    "http_call",
    "live",
    "peer_link",
    "raft",
    "snapshot",
    "tick",
    "tokens",
    "users",
    "websocket",
]

FAILURES = Counter("dss_task_failures_total", "Background tasks of this node that failed unexpectedly, by kind.", ["task"])
for _name in get_args(TaskName):
    FAILURES.labels(_name)

PAUSE_S_MIN, PAUSE_S_MAX = 0.1, 10.0
#: A task that has run for this long before it failed is started again after the shortest pause.
SOUND_S = 60.0


def report_failure(task: TaskName, error: BaseException) -> None:
    """Log and count the exception of a background task."""
    FAILURES.labels(task).inc()
    traceback = None if isinstance(error, ForOperator) else error
    log.error("node.task_failed", task=task, error=f"{type(error).__name__}: {error}", exc_info=traceback)


def report_if_failed(name: TaskName, task: asyncio.Task[Any]) -> None:
    """A callback for tasks that their owner holds itself."""
    if not task.cancelled() and (error := task.exception()) is not None:
        report_failure(name, error)


class Tasks:
    """The background tasks of one owner. It holds them, because the event loop does not."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(
        self, name: TaskName, work: Coroutine[Any, Any, T], on_failure: Callable[[BaseException], None] | None = None
    ) -> asyncio.Task[T]:
        """Run `work`. An exception is logged and counted, then given to `on_failure`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)

        def ended(done: asyncio.Task[T]) -> None:
            self._tasks.discard(done)
            if not done.cancelled() and (error := done.exception()) is not None:
                report_failure(name, error)
                if on_failure is not None:
                    on_failure(error)

        task.add_done_callback(ended)
        return task

    def keep(self, name: TaskName, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """Run `work()` until `cancel`, and start it again whenever it ends."""
        return self.spawn(name, _again_and_again(name, work))

    def cancel(self) -> None:
        """Cancel all tasks."""
        for task in list(self._tasks):
            task.cancel()

    async def stop(self) -> None:
        """Cancel all tasks, and wait until they have ended."""
        tasks = list(self._tasks)
        self.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def _again_and_again(name: TaskName, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    loop = asyncio.get_running_loop()
    pause_s = PAUSE_S_MIN
    while True:
        began = loop.time()
        try:
            await work()
            raise RuntimeError("the task has ended, which it should not do by itself")
        except Exception as error:
            report_failure(name, error)
        if loop.time() - began > SOUND_S:
            pause_s = PAUSE_S_MIN
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, PAUSE_S_MAX)
