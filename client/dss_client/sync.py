"""The client for programs without asyncio. Any number of threads may share it.

One background thread runs the asyncio client, so that calls of all threads share one connection, and locks are renewed whatever the
program's own threads do. The thread starts with the first call. The child of a fork gets a thread, a connection and a name of its own.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import inspect
import os
import signal
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future
from queue import SimpleQueue
from types import EllipsisType, FrameType, TracebackType
from typing import Any, Self, TypeVar

from dss_client.aio import SIGNALS, AsyncClient
from dss_client.cache import AsyncCache, Entry
from dss_client.config import Transport
from dss_client.errors import ClientClosed, LockNotHeld, LockTimeout, WrongUse
from dss_client.locks import AsyncHeld, LockSpec, acquire, leave_with, locked, wait_of
from dss_client.portal import Portal
from dss_client.queue import AsyncMessage, AsyncTopic, Published, Receipt, Releasable, WorkerLoop, WorkerOptions

T = TypeVar("T")
Handler = Callable[["Message"], object]
CLOSE_S = 3.0


class Client:
    """Locks, topics, workers and the cache, for threads.

    Args:
        urls: the nodes: "http://127.0.0.1:8101,http://127.0.0.1:8102", or several strings. By default from DSS_URLS.
        token: for clusters that ask for one. By default from DSS_TOKEN.
        name: of this program, in the owners of its locks; by default the name of the machine.
        timeout: for how many seconds a call looks for a node that carries it out, beyond the time that the call itself waits.
        transport: "websocket", or "http" where WebSockets do not pass.

    Raises:
        WrongUrl, WrongUse
    """

    def __init__(
        self,
        urls: str | Iterable[str] | None = None,
        token: str | None = None,
        *,
        name: str | None = None,
        timeout: float = 15.0,
        transport: Transport = "websocket",
    ) -> None:
        self._client = AsyncClient(urls, token, name=name, timeout=timeout, transport=transport)
        self._portal: Portal | None = None
        self._starting = threading.Lock()
        self._is_closed = False
        self._local = threading.local()
        self._workers: list[Worker] = []
        self.cache = Cache(self, self._client.cache)
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
            portal.call(_within(CLOSE_S, self._client.aclose()))
        portal.stop(CLOSE_S)

    # ------------------------------------------------------------- locks

    def lock(
        self,
        key: str,
        *,
        ttl: float | None = 30,
        wait: float | None = 10,
        shared: bool = False,
        renew: bool = True,
        lock_delay: float = 0,
        thread_local: bool = True,
    ) -> Lock:
        """A lock, for `with`.

        Args:
            ttl: the lease in seconds; None: held until released, even if this process ends.
            wait: how many seconds to wait for it; None: without a limit.
            shared: several clients may hold it in this mode.
            renew: renew the lease at a third of it.
            lock_delay: if the lock is lost, no client gets the key for this many seconds.
            thread_local: only the thread that acquired it may use it, and each thread acquires it for itself.
        """
        spec = LockSpec([key], is_multiple=False, ttl=ttl, wait=wait, shared=shared, renew=renew, lock_delay=lock_delay)
        return Lock(self, spec, thread_local)

    def locks(
        self,
        keys: Iterable[str],
        *,
        ttl: float | None = 30,
        wait: float | None = 10,
        shared: bool = False,
        renew: bool = True,
        lock_delay: float = 0,
        thread_local: bool = True,
    ) -> Lock:
        """Several locks that are acquired in one step. The arguments are those of `lock`."""
        spec = LockSpec(keys, is_multiple=True, ttl=ttl, wait=wait, shared=shared, renew=renew, lock_delay=lock_delay)
        return Lock(self, spec, thread_local)

    # ------------------------------------------------------------- queue

    def topic(self, name: str) -> Topic:
        """A topic. It need not exist before."""
        return Topic(self, self._client.topic(name))

    def worker(
        self,
        topic: str,
        *,
        group: str,
        concurrency: int = 1,
        visibility: float = 15,
        backoff: float = 1,
        backoff_max: float = 300,
        grace: float = 30,
    ) -> Callable[[Handler], Worker]:
        """Make a function the handler of a topic's messages for a group; `run` of the result works.

        The handler may be a coroutine function. It then runs in an event loop of its own.

        Args:
            concurrency: how many handlers run at a time, each in a thread.
            visibility: for how many seconds a message is hidden; extended while its handler runs.
            backoff: seconds before the second attempt, doubled with each further one up to `backoff_max`.
            grace: how many seconds running handlers have when the worker is stopped.
        """
        options = WorkerOptions(
            topic=topic,
            group=group,
            concurrency=concurrency,
            visibility=visibility,
            backoff=backoff,
            backoff_max=backoff_max,
            grace=grace,
        )

        def make(handler: Handler) -> Worker:
            worker = Worker(self, options, handler)
            self._workers.append(worker)
            return worker

        return make

    def run_workers(self) -> None:
        """Run all workers of this client until SIGTERM or SIGINT."""
        run_workers(self._workers)

    # ------------------------------------------------------------ others

    def call(self, operation: str, **fields: Any) -> dict[str, Any]:
        """Any call of the API by the name of its operation: `dss.call("raft.status")`."""
        return self._run(self._client.call(operation, **fields))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._started(work).call(work)

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


async def _within(seconds: float, work: Awaitable[None]) -> None:
    async with asyncio.timeout(seconds):
        await work


# ----------------------------------------------------------------- locks


class Lost:
    """Set when the lock is lost, like a `threading.Event`."""

    def __init__(self, held: AsyncHeld) -> None:
        self._held = held
        self._event = threading.Event()
        held.on_lost = self._event.set

    def is_set(self) -> bool:
        """Whether the lock is lost. It looks at the clock, so it is right immediately after the process was paused."""
        return self._held.is_lost

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the lock is lost. False: it was not, within `timeout` seconds."""
        return self._held.is_lost or self._event.wait(timeout) or self._held.is_lost


class Held:
    """A lock that this thread holds. `Lock` gives it to `with`.

    Attributes:
        lost: an event; other threads may look at it, too.
    """

    def __init__(self, client: Client, held: AsyncHeld, thread_local: bool) -> None:
        self._client = client
        self._held = held
        self._thread = threading.get_ident() if thread_local else None
        self._pid = os.getpid()
        self.lost = Lost(held)

    def __repr__(self) -> str:
        return repr(self._held)

    @property
    def keys(self) -> tuple[str, ...]:
        return self._held.keys

    @property
    def token(self) -> int:
        """The fencing token. Give it to the resource that the lock protects, and let it refuse smaller ones."""
        return self._held.token

    @property
    def tokens(self) -> Mapping[str, int]:
        """The fencing token of each key."""
        return self._held.tokens

    @property
    def name(self) -> str:
        """The owner, as the cluster shows it."""
        return self._held.name

    @property
    def remaining(self) -> float | None:
        """How many seconds the lease still lasts by this client's clock. None: the lock is held until it is released."""
        return self._held.remaining

    def release(self) -> None:
        """Give the lock back.

        Raises:
            LockNotHeld: it was released already, or another thread or process holds it.
            LockLost: it was lost before.
            DssError: no node answered. The lock ends with its lease.
        """
        self._check()
        self._client._run(self._held.release())

    def extend(self, additional_time: float, replace_ttl: bool = False) -> bool:
        """Make the lease longer by `additional_time` seconds, or exactly that long. Later renewals keep the length."""
        self._check()
        return self._client._run(self._held.extend(additional_time, replace_ttl))

    def reacquire(self) -> bool:
        """Start the lease again with the length that the lock was made with."""
        self._check()
        return self._client._run(self._held.reacquire())

    def owned(self) -> bool:
        """Ask the cluster whether the fencing token is still the holder's."""
        if self._held.is_over:
            return False
        return self._client._run(self._held.owned())

    def for_ack(self) -> list[dict[str, Any]]:
        """For `Message.ack`."""
        self._check()
        return self._held.for_ack()

    def released(self) -> None:
        """For `Message.ack`."""
        self._held.released()

    def _check(self) -> None:
        label = ", ".join(repr(key) for key in self.keys)
        if self._pid != os.getpid():
            raise LockNotHeld(f"the lock {label} is held by the process {self._pid}, from which this one was forked")
        if self._thread is not None and self._thread != threading.get_ident():
            raise LockNotHeld(f"the lock {label} is held by another thread; see `thread_local`")


class Lock:
    """A lock that can be acquired and released, again and again. With `thread_local`, each thread has its own grant.

    The names are those of redis-py. `with` raises `LockTimeout` where `acquire` returns False.
    """

    def __init__(self, client: Client, spec: LockSpec, thread_local: bool) -> None:
        self._client = client
        self._spec = spec
        self._thread_local = thread_local
        self._mine: Any = threading.local() if thread_local else _Shared()

    def __repr__(self) -> str:
        return f"<lock {', '.join(self._spec.keys)}>"

    @property
    def held(self) -> Held | None:
        """What this thread holds."""
        held: Held | None = getattr(self._mine, "held", None)
        return held

    @property
    def token(self) -> int | None:
        """The fencing token; None while it is not held."""
        return self.held.token if self.held is not None else None

    def acquire(self, blocking: bool = True, wait: float | EllipsisType | None = ...) -> bool:
        """Acquire the lock. False: another client holds it.

        Args:
            blocking: False: do not wait.
            wait: seconds, instead of those that the lock was made with.
        """
        try:
            self._acquire(wait_of(self._spec, blocking, wait))
        except LockTimeout:
            return False
        return True

    def release(self) -> None:
        """See `Held.release`."""
        held = self._require()
        self._mine.held = None
        held.release()

    def extend(self, additional_time: float, replace_ttl: bool = False) -> bool:
        """See `Held.extend`."""
        return self._require().extend(additional_time, replace_ttl)

    def reacquire(self) -> bool:
        """See `Held.reacquire`."""
        return self._require().reacquire()

    def owned(self) -> bool:
        """Whether this thread holds the lock, as the cluster knows it."""
        return self.held is not None and self.held.owned()

    def locked(self) -> bool:
        """Whether any client holds the lock (one of the locks)."""
        client = self._client
        return client._run(_locked(client, self._spec.keys))

    def __enter__(self) -> Held:
        return self._acquire(self._spec.wait)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        held, self._mine.held = self.held, None
        if held is not None:
            leave_with(held.release, held._held, error)

    def _acquire(self, wait: float | None) -> Held:
        if self.held is not None and not self.held._held.is_over:
            raise WrongUse(f"this thread holds {self!r} already through this object; make another one with `lock()`")
        owner = self._client._owner()
        held = self._client._run(_acquire(self._client, owner, self._spec, wait))
        self._mine.held = mine = Held(self._client, held, self._thread_local)
        return mine

    def _require(self) -> Held:
        if self.held is None:
            raise LockNotHeld(f"{self!r} is not held by this thread: it was never acquired here, or was released")
        return self.held


class _Shared:
    """What all threads see, in place of `threading.local`."""


async def _acquire(client: Client, owner: str, spec: LockSpec, wait: float | None) -> AsyncHeld:
    return await acquire(client._client._running(), client._client._owners, owner, spec, wait)


async def _locked(client: Client, keys: Iterable[str]) -> bool:
    return await locked(client._client._running(), keys)


# ----------------------------------------------------------------- queue


class Message:
    """A delivered message."""

    def __init__(self, client: Client, message: AsyncMessage) -> None:
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
        """No other consumer gets it for this many seconds from now.

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

    def __init__(self, client: Client, topic: AsyncTopic) -> None:
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

    def consume(self, group: str, max_messages: int = 1, wait: float = 0, visibility: float = 15) -> list[Message]:
        """Take messages and hide them from the rest of the group for `visibility` seconds.

        Args:
            wait: how many seconds to wait for the first one, at most 20.
        """
        messages = self._client._run(self._topic.consume(group, max_messages, wait, visibility))
        return [Message(self._client, message) for message in messages]

    def peek(self, limit: int = 10, group: str = "", dead: bool = False) -> list[dict[str, Any]]:
        """Messages of the topic, without taking them; with `group` those that it has not finished, or its dead letters."""
        return self._client._run(self._topic.peek(limit, group, dead))

    def stats(self) -> dict[str, Any]:
        """See `queue.stats` of the API."""
        return self._client._run(self._topic.stats())


class Worker:
    """A handler with its topic. Call it as the function that it was made from, or `run` it."""

    def __init__(self, client: Client, options: WorkerOptions, handler: Handler) -> None:
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
        self._work.put((future, function, message))
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


# ----------------------------------------------------------------- cache


class Cache:
    """The calls of the cache. `ttl` is in seconds; None: the value stays."""

    def __init__(self, client: Client, cache: AsyncCache) -> None:
        self._client = client
        self._cache = cache

    def put(self, key: str, value: Any, ttl: float | None = None) -> int:
        """Store a value. Returns its version."""
        return self._client._run(self._cache.put(key, value, ttl))

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` if there is none."""
        return self._client._run(self._cache.get(key, default))

    def entry(self, key: str) -> Entry:
        """The value with its version."""
        return self._client._run(self._cache.entry(key))

    def cas(self, key: str, value: Any, version: int, ttl: float | None = None) -> int:
        """Store a value only if the key still has this version; 0: only if it has no value. Returns the new version.

        Raises:
            VersionConflict: it has another `version`.
        """
        return self._client._run(self._cache.cas(key, value, version, ttl))

    def add(self, key: str, value: Any, ttl: float | None = None) -> int:
        """Store a value only if the key has none. Returns its version.

        Raises:
            Exists: it has one.
        """
        return self._client._run(self._cache.add(key, value, ttl))

    def incr(self, key: str, delta: int = 1, ttl: float | None = None) -> int:
        """Add to an integer; a key without a value counts as 0. Returns the sum. With `ttl` None, an earlier one stays."""
        return self._client._run(self._cache.incr(key, delta, ttl))

    def delete(self, key: str, version: int | None = None) -> bool:
        """Delete the value, or only this version of it. False: there was none.

        Raises:
            VersionConflict: it has another `version`.
        """
        return self._client._run(self._cache.delete(key, version))

    def mget(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those keys that have one."""
        return self._client._run(self._cache.mget(keys))

    def mput(self, values: Mapping[str, Any], ttl: float | None = None) -> dict[str, int]:
        """Store values, each independently. Returns their versions.

        Raises:
            Refused: the first refusal; the other values may be stored.
        """
        return self._client._run(self._cache.mput(values, ttl))

    def trace(self, key: str, limit: int = 100) -> list[dict[str, Any]]:
        """The last transitions of the key's lines on every node, latest first."""
        return self._client._run(self._cache.trace(key, limit))


# ------------------------------------------------------------ life cycle

_clients: weakref.WeakSet[Client] = weakref.WeakSet()
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
