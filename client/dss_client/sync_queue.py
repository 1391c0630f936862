"""Topics and workers for programs without asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import signal
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from queue import SimpleQueue
from types import FrameType
from typing import Any

from dss_client.aio import SIGNALS
from dss_client.background import Background
from dss_client.errors import WrongUse
from dss_client.portal import Portal
from dss_client.queue import AsyncMessage, AsyncTopic, Published, Receipt, Releasable, WorkerLoop, WorkerOptions

Handler = Callable[["Message"], object]


class Message:
    """A delivered message."""

    def __init__(self, client: Background, message: AsyncMessage) -> None:
        self._client = client
        self._message = message
        self.topic = message.topic
        self.group = message.group
        self.msg_id = message.msg_id
        self.value = message.value
        self.key = message.key
        self.headers = message.headers
        #: 1 for the first delivery
        self.attempt = message.attempt
        self.published_ms = message.published_ms
        self.delivered_ms = message.delivered_ms
        self.receipt = message.receipt

    def __repr__(self) -> str:
        return repr(self._message)

    @property
    def is_settled(self) -> bool:
        """Whether it was acked or nacked, or another consumer has it."""
        return self._message.is_settled

    @property
    def remaining(self) -> float:
        """For how many seconds no other consumer gets it, by this client's clock."""
        return self._message.remaining

    def ack(self, publish: Iterable[Published] = (), release: Iterable[Releasable] = ()) -> list[Receipt]:
        """The group has finished this message. In the same step, publish further messages and release locks: all of it, or nothing.

        Raises:
            StaleReceipt: another consumer has it now.
            NotHolder: a lock is lost.
        """
        locks = [_Prepared(lock) for lock in release]
        return self._client._run(self._message.ack(list(publish), locks))

    def nack(self, delay: float | None = None, dead: bool = False, silent: bool = False) -> None:
        """The attempt failed. The message is delivered again after `delay` seconds, or after the topic's backoff.

        Args:
            dead: make it a dead letter now.
            silent: the attempt does not count.

        Raises:
            StaleReceipt: another consumer has it now.
        """
        self._client._run(self._message.nack(delay, dead, silent))

    def extend(self, visibility: float) -> None:
        """No other consumer gets it for this many seconds from now. With 0 it is given back now, and the attempt counts.

        Raises:
            StaleReceipt: another consumer has it now.
        """
        self._client._run(self._message.extend(visibility))


class _Prepared:
    """A lock to release, checked in the thread that holds it."""

    def __init__(self, lock: Releasable) -> None:
        self._lock = lock
        self._fields = lock.for_ack()

    def for_ack(self) -> list[dict[str, Any]]:
        return self._fields

    def released(self) -> None:
        self._lock.released()


class Topic:
    """A topic."""

    def __init__(self, client: Background, topic: AsyncTopic) -> None:
        self._client = client
        self._topic = topic
        self.name = topic.name

    def publish(
        self, value: Any, key: str = "", delay: float = 0, dedup_id: str = "", headers: Mapping[str, str] | None = None
    ) -> Receipt:
        """Store a message for every group.

        Args:
            key: messages that share one reach a group in order, one in flight at a time.
            delay: hide it for this many seconds.
            dedup_id: a second message with the same one is not stored, within the topic's window.
        """
        return self._client._run(self._topic.publish(value, key, delay, dedup_id, headers))

    def publish_many(self, values: Iterable[Any], key: str = "", delay: float = 0) -> list[Receipt]:
        """Store a message for each value: all of them, or none."""
        return self._client._run(self._topic.publish_many(list(values), key, delay))

    def consume(
        self, group: str, max_messages: int = 1, wait: float = 0, visibility: float = 15, *, max_per_key: int = 1
    ) -> list[Message]:
        """Take messages and hide them from the rest of the group for `visibility` seconds.

        Args:
            wait: how many seconds to wait for the first one, at most 20.
            max_per_key: how many messages of one key may be among them.
        """
        messages = self._client._run(self._topic.consume(group, max_messages, wait, visibility, max_per_key=max_per_key))
        return [Message(self._client, message) for message in messages]

    def peek(
        self, limit: int = 10, group: str = "", dead: bool = False, *, msg_id: str = "", dedup_id: str = ""
    ) -> list[dict[str, Any]]:
        """Messages of the topic, without taking them; with `group` those that it has not finished, or its dead letters.

        Args:
            msg_id, dedup_id: only this message.
        """
        return self._client._run(self._topic.peek(limit, group, dead, msg_id=msg_id, dedup_id=dedup_id))

    def stats(self) -> dict[str, Any]:
        """See `queue.stats` of the API."""
        return self._client._run(self._topic.stats())


class Worker:
    """A handler with its topic. Call it as the function that it was made from, or `run` it."""

    def __init__(self, client: Background, options: WorkerOptions, handler: Handler) -> None:
        functools.update_wrapper(self, handler)
        self.options = options
        self._client = client
        self._handler = handler
        self._loop: WorkerLoop | None = None
        self._portal: Portal | None = None
        self._is_stopped = False

    def __call__(self, message: Message) -> object:
        return self._handler(message)

    @property
    def done(self) -> int:
        """Handled and acked messages."""
        return self._loop.done if self._loop is not None else 0

    @property
    def failed(self) -> int:
        """Failed attempts."""
        return self._loop.failed if self._loop is not None else 0

    def run(self, *, handle_signals: bool = True) -> None:
        """Work until `stop`, SIGTERM or SIGINT, then let the running handlers finish.

        Args:
            handle_signals: False, or in a thread that is not the main one: only `stop` ends it.
        """
        with _signals(self.stop) if handle_signals else contextlib.nullcontext():
            self._run()

    def stop(self) -> None:
        """Take no more messages. Any thread may call this, and a signal handler."""
        self._is_stopped = True
        if self._loop is not None and self._portal is not None:
            self._portal.post(self._loop.stop)

    def _run(self) -> None:
        client = self._client
        threads = _Threads(self.options.concurrency, f"dss-worker-{self.options.topic}")

        async def handle(message: AsyncMessage) -> None:
            await asyncio.wrap_future(threads.start(self._handle, Message(client, message)))

        self._loop = loop = WorkerLoop(client._client.topic(self.options.topic), self.options, handle)
        self._portal = portal = client._started()
        try:
            if not self._is_stopped:
                portal.call(loop.run())
        finally:
            self._portal = None
            self._is_stopped = False
            threads.end()

    def _handle(self, message: Message) -> None:
        if inspect.iscoroutinefunction(self._handler):
            asyncio.run(self._handler(message))
        else:
            self._handler(message)


class _Threads:
    """Threads for handlers. Unlike those of ThreadPoolExecutor, they do not keep the process from ending."""

    def __init__(self, count: int, name: str) -> None:
        self._work: SimpleQueue[tuple[Future[None], Callable[[Message], None], Message] | None] = SimpleQueue()
        self._count = count
        for number in range(count):
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True).start()

    def start(self, function: Callable[[Message], None], message: Message) -> Future[None]:
        future: Future[None] = Future()
        # The handler sees the context variables of its worker: the current span is one of them.
        context = contextvars.copy_context()
        self._work.put((future, lambda message: context.run(function, message), message))
        return future

    def end(self) -> None:
        """Each thread ends when its function returns."""
        for _ in range(self._count):
            self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            future, function, message = work
            if not future.set_running_or_notify_cancel():
                continue
            try:
                function(message)
                future.set_result(None)
            except Exception as error:
                future.set_exception(error)
            except BaseException as error:
                # It would end the event loop that waits for this.
                future.set_exception(RuntimeError(f"the handler raised {type(error).__name__}"))


def run_workers(workers: Iterable[Worker]) -> None:
    """Run workers, each in a thread, until SIGTERM or SIGINT, or until one of them fails.

    Raises:
        DssError: the cluster refuses a consumer.
    """
    all_of_them = list(workers)
    if not all_of_them:
        raise WrongUse("there is no worker to run")
    errors: list[BaseException] = []

    def stop() -> None:
        for worker in all_of_them:
            worker.stop()

    def run(worker: Worker) -> None:
        try:
            worker.run(handle_signals=False)
        except BaseException as error:
            errors.append(error)
            stop()

    threads = [threading.Thread(target=run, args=(worker,), daemon=True) for worker in all_of_them]
    with _signals(stop):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Any:
    """SIGTERM and SIGINT call `stop`, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        stop()

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
