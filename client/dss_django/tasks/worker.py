"""Running tasks: each in a thread, while the event loop of the client takes messages, extends them and settles them."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from traceback import format_exception
from typing import Any

from django.db import close_old_connections

from dss_client import TooLarge
from dss_client.queue import AsyncMessage, WorkerLoop, WorkerOptions
from dss_client.sync_queue import _Threads
from dss_django.tasks.backend import DSSBackend, seconds_until
from dss_django.tasks.compat import TaskContext, normalize_json, task_finished, task_started
from dss_django.tasks.names import GROUP, TaskId, segment_of
from dss_django.tasks.options import DURATION_S_MAX
from dss_django.tasks.records import (
    FAILED,
    READY,
    SUCCESSFUL,
    Call,
    Failure,
    Known,
    ResultTooLarge,
    from_text,
)
from dss_django.tasks.store import decoded_call
from dss_django.tasks.topics import TaskTopics

log = logging.getLogger("dss_django.tasks")

#: how long a process that is ending tries to give its tasks back
LEAVE_S = 3.0


class TaskLoop(WorkerLoop):
    """A `WorkerLoop` that takes by priority, and can be ended before its tasks."""

    def __init__(self, worker: TaskWorker, options: WorkerOptions, topics: TaskTopics) -> None:
        super().__init__(topics, options, worker._handle)  # type: ignore[arg-type]
        self._topics = topics
        self._leaving = asyncio.Event()

    @property
    def is_busy(self) -> bool:
        return bool(self._running)

    def stop(self) -> None:
        super().stop()
        self._topics.cancel()

    def leave(self) -> None:
        """End now: tasks that are running go back to the queue. That is no attempt."""
        self.stop()
        self._leaving.set()

    async def _drain(self) -> None:
        drained = asyncio.ensure_future(super()._drain())
        leaving = asyncio.ensure_future(self._leaving.wait())
        await asyncio.wait({drained, leaving}, return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not drained.done():
            for task in list(self._running):
                task.cancel()
        await drained


class TaskWorker:
    """Runs the tasks of some queues.

    Args:
        queues: their names; among tasks of the same level, the first queue comes first.
        concurrency: how many tasks run at a time, each in a thread.
        is_batch: end when no task is ready.
        max_tasks: end after this many.
        worker_id: of at most 40 characters, unique.
        grace: how many seconds running tasks have when the worker is stopped.
    """

    def __init__(
        self,
        backend: DSSBackend,
        queues: Sequence[str],
        worker_id: str,
        concurrency: int = 1,
        is_batch: bool = False,
        max_tasks: int | None = None,
        grace: float = 30.0,
    ) -> None:
        settings = backend.settings
        self._backend = backend
        self._store = backend.store
        self.worker_id = worker_id
        self._queues = queues
        self._options = WorkerOptions(
            topic=f"{settings.namespace}/tasks",
            group=GROUP,
            concurrency=concurrency,
            visibility=settings.visibility,
            backoff=settings.backoff,
            backoff_max=settings.backoff_max,
            grace=grace,
        )
        self._topics = [
            self._store.topic(segment_of(queue), level) for level in reversed(settings.priorities) for queue in queues
        ]
        self._is_batch = is_batch
        self._max_tasks = max_tasks
        self._loop: TaskLoop | None = None
        self._threads: Any = None
        self._running: Future[None] | None = None
        self._is_stopped = False

    # ---------------------------------------------------------------- life

    def run(self) -> None:
        """Work until `stop`, and let the running tasks finish within the grace period.

        Raises:
            DssError: the cluster refuses this worker.
        """
        log.info("Starting worker worker_id=%s queues=%s", self.worker_id, ",".join(self._queues))
        self._threads = _Threads(self._options.concurrency, "dss-task")
        portal = self._backend.client._started()
        atexit.register(self._leave_at_exit)
        try:
            self._running = portal.submit(self._run())
            self._running.result()
        finally:
            if self._running is not None:
                self._running.cancel()
            atexit.unregister(self._leave_at_exit)
            self._threads.end()

    def stop(self) -> None:
        """Take no more tasks. Any thread may call this, and a signal handler."""
        self._is_stopped = True
        self._post("stop")

    def leave(self) -> None:
        """Give the running tasks back, too."""
        self._is_stopped = True
        self._post("leave")

    def _post(self, name: str) -> None:
        loop, portal = self._loop, self._backend.client._portal
        if loop is not None and portal is not None:
            portal.post(getattr(loop, name))

    def _leave_at_exit(self) -> None:
        """The process ends in the middle of tasks, as the autoreloader does it."""
        self.leave()
        if self._running is not None:
            with contextlib.suppress(Exception):
                self._running.result(LEAVE_S)

    async def _run(self) -> None:
        await self._store.prepare_results()
        await self._store.prepare(*self._topics, strict=True)
        topics = TaskTopics(
            self._options.topic,
            self._topics,
            self._store.ready,
            self.worker_id,
            self._is_batch,
            self._max_tasks,
            is_busy=lambda: loop.is_busy,
            on_end=self._ended,
        )
        self._loop = loop = TaskLoop(self, self._options, topics)
        if self._is_stopped:
            loop.stop()
        try:
            await loop.run()
        finally:
            self._loop = None

    def _ended(self, why: str) -> None:
        log.info("%s for worker_id=%s - exiting gracefully.", why, self.worker_id)
        assert self._loop is not None
        self._loop.stop()

    # --------------------------------------------------------------- tasks

    async def _handle(self, message: AsyncMessage) -> None:
        """Run a task, and settle its message."""
        call = decoded_call(message.value)
        if call is None:
            log.error("%s is not a task, and becomes a dead letter", message)
            await message.nack(dead=True)
            return
        early_s = _early(call)
        if early_s:
            await message.nack(early_s, silent=True)
            return
        known = await self._begun(message, call)
        error = await asyncio.wrap_future(self._in_thread(message, lambda: self._execute(known)))
        known.finished_ms = time.time_ns() // 1_000_000
        if error is None:
            try:
                if not await self._store.succeed(message, known):
                    log.warning("the result of task %s is dropped, because its message is gone", known.id)
            except TooLarge as too_large:
                error = ResultTooLarge(f"the cluster does not take the result with the task's arguments: {too_large}")
        if error is not None:
            await self._failed(message, known, error)
        if known.status in (SUCCESSFUL, FAILED):
            await asyncio.wrap_future(self._in_thread(message, lambda: self._announce(known, error)))

    async def _begun(self, message: AsyncMessage, call: Call) -> Known:
        segment, _, level = message.topic.rpartition("/")
        id = TaskId(segment.rpartition("/")[2], int(level), message.msg_id, call.secret)
        # What earlier attempts left is asked for only if there were any.
        known = await self._store.find(id) if message.attempt > 1 else None
        if known is None or known.status != "RUNNING":
            known = Known(str(id), call)
            known.begin(self.worker_id, message.delivered_ms)
        return known

    async def _failed(self, message: AsyncMessage, known: Known, error: BaseException) -> None:
        text = "".join(format_exception(error))
        known.errors = [*known.errors, Failure.of(type(error), _end_of(text, self._backend.settings.traceback_bytes_max))]
        known.value = None
        is_last = message.attempt >= self._backend.settings.max_attempts or isinstance(error, ResultTooLarge)
        known.status = FAILED if is_last else READY
        delay_s = None if is_last else self._options.delay_s(message.attempt)
        if delay_s is not None:
            log.warning(
                "Task id=%s path=%s attempt=%d failed; next one in %.1f s: %r",
                known.id,
                known.call.path,
                message.attempt,
                delay_s,
                error,
            )
        await self._store.fail(message, known, delay_s)

    def _in_thread(self, message: AsyncMessage, function: Callable[[], Any]) -> Future[Any]:
        results: list[Any] = []
        done: Future[Any] = Future()
        started = self._threads.start(lambda _: results.append(function()), message)

        def ended(future: Future[None]) -> None:
            if not done.set_running_or_notify_cancel():
                return
            failure = future.exception()
            if failure is not None:
                done.set_exception(failure)
            else:
                done.set_result(results[0])

        started.add_done_callback(ended)
        return done

    def _execute(self, known: Known) -> BaseException | None:
        """In a thread: run the task. Returns its error."""
        with _connections():
            try:
                result = self._backend.result_of(known)
                task = result.task
                task_started.send(sender=type(self._backend), task_result=result)
                context = (TaskContext(task_result=result),) if task.takes_context else ()
                value = normalize_json(task.call(*context, *result.args, **result.kwargs))
                size = len(json.dumps(value, ensure_ascii=False).encode())
                bytes_max = self._backend.settings.result_bytes_max
                if size > bytes_max:
                    raise ResultTooLarge(f"the return value has {size} bytes as JSON; `result_bytes_max` is {bytes_max}")
            except BaseException as error:
                return error
            known.value, known.status = value, SUCCESSFUL
            return None

    def _announce(self, known: Known, error: BaseException | None) -> None:
        """In a thread: tell the receivers of `task_finished`."""
        with _connections():
            try:
                result = self._backend.result_of(known)
            except Exception as no_task:
                log.error("Task id=%s path=%s state=%s: %s", known.id, known.call.path, known.status, no_task)
                return
            try:
                if error is not None:
                    raise error
                task_finished.send(sender=type(self._backend), task_result=result)
            except BaseException as raised:
                if raised is not error:
                    log.exception("a receiver of task_finished failed")
                    return
                # The receivers find the error as the current exception, as with Django's own backend.
                task_finished.send_robust(sender=type(self._backend), task_result=result)


def _early(call: Call) -> float:
    """For a task that runs later than a message can be hidden: the seconds that are left."""
    run_after, enqueued_at = from_text(call.run_after), from_text(call.enqueued_at)
    if run_after is None or enqueued_at is None or run_after.tzinfo is None or enqueued_at.tzinfo is None:
        return 0.0
    return seconds_until(run_after) if (run_after - enqueued_at).total_seconds() > DURATION_S_MAX else 0.0


def _end_of(text: str, bytes_max: int) -> str:
    """The last bytes of a text; the error itself is at the end of a traceback. What UTF-8 does not have is replaced."""
    encoded = text.encode(errors="replace")
    return encoded.decode() if len(encoded) <= bytes_max else "…" + encoded[-bytes_max:].decode(errors="ignore")


@contextlib.contextmanager
def _connections() -> Iterator[None]:
    """As around a request: connections to the database that are too old, or broken, are closed."""
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()
