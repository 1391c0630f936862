"""The client for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import signal
import ssl
import weakref
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Self

from dss_client.barrier import AsyncBarrier, AsyncDoubleBarrier, BarrierSpec
from dss_client.cache import AsyncCache
from dss_client.config import Config, Transport
from dss_client.core import Core, Repeat, http_connection
from dss_client.election import AsyncElection, election_spec
from dss_client.errors import ClientClosed, WrongUse
from dss_client.lock_owners import Owners
from dss_client.lock_spec import LockSpec
from dss_client.locks import AsyncLock
from dss_client.near import NearCache
from dss_client.near_client import Near
from dss_client.operations import NOT_NUMBERED, OPERATIONS, is_read
from dss_client.queue import AsyncMessage, AsyncTopic, WorkerLoop, WorkerOptions
from dss_client.rate_limit import AsyncRateLimit, ClusterClock, RateSpec
from dss_client.semaphore import AsyncSemaphore, SemaphoreSpec

AsyncHandler = Callable[[AsyncMessage], Awaitable[object]]
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class AsyncClient:
    """Locks, topics, workers and the cache, for asyncio.

    Args:
        urls: the nodes: "http://127.0.0.1:8101,http://127.0.0.1:8102", or several strings. By default from DSS_URLS.
        token: for clusters that ask for one. By default from DSS_TOKEN.
        name: of this program, in the owners of its locks; by default the name of the machine.
        timeout: for how many seconds a call looks for a node that carries it out, beyond the time that the call itself waits.
        transport: "websocket", or "http" where WebSockets do not pass.
        traces: make OpenTelemetry spans of calls and of handled messages. It needs the extra `[otel]`.
        tls: for https addresses: whom to trust, and this program's certificate. By default the authorities of the system and of
            DSS_CA_FILE, and the certificate in DSS_CLIENT_CERT_FILE with its key in DSS_CLIENT_KEY_FILE.
        near_cache: keep values in this process that were read: True, or a `NearCache` with its size. A read is never stale; see the
            reference. It needs the transport "websocket".

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
        traces: bool = False,
        tls: ssl.SSLContext | None = None,
        near_cache: NearCache | bool = False,
    ) -> None:
        self._config = Config.read(urls, token, name=name, timeout=timeout, transport=transport, traces=traces, tls=tls)
        if transport == "http":
            http_connection()  # now, and not in the event loop
        self._core: Core | None = None
        self._is_closed = False
        self._owners = Owners(self._config.name)
        self._clock = ClusterClock()
        settings = NearCache.read(near_cache)
        if settings is not None and transport != "websocket":
            raise WrongUse('a near cache needs `transport="websocket"`')
        #: None: there is no near cache
        self.near_cache = None if settings is None else Near(settings)
        self.cache = AsyncCache(self._running, self.near_cache)
        #: of what all programs write all the time: a copy would only make the writers wait
        self._written_cache = AsyncCache(self._running)
        _clients.add(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Release the locks that are still held, and close the connection. A second call does nothing."""
        self._is_closed = True
        if self.near_cache is not None:
            self.near_cache.end()
        core, self._core = self._core, None
        if core is None:
            return
        for held in {held for one in self._owners.held.values() for held in one}:
            with contextlib.suppress(Exception):
                await held.release()
        await core.close()

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
    ) -> AsyncLock:
        """A lock, for `async with`.

        Args:
            ttl: the lease in seconds; None: held until released, even if this process ends.
            wait: how many seconds to wait for it; None: without a limit.
            shared: several clients may hold it in this mode.
            renew: renew the lease at a third of it.
            lock_delay: if the lock is lost, no client gets the key for this many seconds.
        """
        spec = LockSpec([key], is_multiple=False, ttl=ttl, wait=wait, shared=shared, renew=renew, lock_delay=lock_delay)
        return AsyncLock(self._running, lambda: self._owners, spec)

    def locks(
        self,
        keys: Iterable[str],
        *,
        ttl: float | None = 30,
        wait: float | None = 10,
        shared: bool = False,
        renew: bool = True,
        lock_delay: float = 0,
    ) -> AsyncLock:
        """Several locks that are acquired in one step. The arguments are those of `lock`."""
        spec = LockSpec(keys, is_multiple=True, ttl=ttl, wait=wait, shared=shared, renew=renew, lock_delay=lock_delay)
        return AsyncLock(self._running, lambda: self._owners, spec)

    # ----------------------------------------------------------- recipes

    def election(self, name: str, *, ttl: float = 10, wait: float | None = None, value: str = "") -> AsyncElection:
        """An election, for `async with`: the block runs while this candidate leads.

        Args:
            ttl: if the leader crashes, the next candidate is elected after this many seconds.
            wait: how many seconds to wait; None: without a limit.
            value: what `leader` shows to others, for example an address.
        """
        spec = election_spec(name, ttl=ttl, wait=wait, value=value)
        return AsyncElection(self._running, lambda: self._owners, spec)

    def semaphore(self, name: str, permits: int, *, ttl: float = 30, wait: float | None = 10) -> AsyncSemaphore:
        """A semaphore, for `async with`: at most `permits` holders at a time.

        Args:
            ttl: if a holder crashes, its permit is free after this many seconds.
            wait: how many seconds to wait for a permit; None: without a limit.
        """
        return AsyncSemaphore(self._running, lambda: self._owners, SemaphoreSpec(name, permits, ttl=ttl, wait=wait))

    def barrier(self, name: str, parties: int, *, ttl: float = 10, wait: float | None = None) -> AsyncBarrier:
        """A barrier: `wait` returns when `parties` tasks or processes have called it.

        Args:
            ttl: a party that crashes while it waits counts for this many seconds at most.
            wait: how many seconds to wait for the others; None: without a limit.
        """
        spec = BarrierSpec(name, parties, ttl=ttl, wait=wait)
        return AsyncBarrier(self._running, self._written_cache, lambda: self._owners, spec)

    def double_barrier(self, name: str, parties: int, *, ttl: float = 10, wait: float | None = None) -> AsyncDoubleBarrier:
        """A barrier at the beginning and the end of a block, for `async with`. The arguments are those of `barrier`."""
        return AsyncDoubleBarrier(self.barrier(name, parties, ttl=ttl, wait=wait))

    def rate_limit(
        self, name: str, rate: float, *, per: float = 1, burst: int | None = None, wait: float | None = 10
    ) -> AsyncRateLimit:
        """A rate limit: `rate` calls in `per` seconds, from all processes together.

        Args:
            burst: how many calls may come at once after a pause; by default `rate`.
            wait: for how many seconds `acquire` waits at most; None: without a limit.
        """
        spec = RateSpec(name, rate, per=per, burst=burst, wait=wait)
        return AsyncRateLimit(self._running, self._written_cache, self._clock, spec)

    # ------------------------------------------------------------- queue

    def topic(self, name: str) -> AsyncTopic:
        """A topic. It need not exist before."""
        return AsyncTopic(self._running, name)

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
    ) -> Callable[[AsyncHandler], AsyncWorker]:
        """Make a coroutine function the handler of a topic's messages for a group; `run` of the result works.

        Args:
            concurrency: how many handlers run at a time.
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
        return lambda handler: AsyncWorker(self, options, handler)

    # ------------------------------------------------------------ others

    async def call(self, operation: str, **fields: Any) -> dict[str, Any]:
        """Any call of the API by the name of its operation: `await dss.call("raft.status")`."""
        if operation not in OPERATIONS:
            raise WrongUse(f"there is no operation {operation!r}")
        repeat = Repeat.READ if is_read(operation) else Repeat.NUMBERED
        wait_s = max(fields.get("wait_ms") or 0, fields.get("timeout_ms") or 0) / 1000
        return await self._running().call(operation, fields, repeat, wait_s=wait_s, is_numbered=operation not in NOT_NUMBERED)

    def _running(self) -> Core:
        core = self._core
        if core is not None and core.loop is not asyncio.get_running_loop():
            if not core.loop.is_closed():
                raise WrongUse("this client belongs to another event loop; make one for each loop")
            # `asyncio.run` was called again.
            core = None
        if core is None:
            if self._is_closed:
                raise ClientClosed("this client is closed")
            core = self._core = Core(self._config)
        return core

    def _forked(self) -> None:
        """This is the child of a fork: the parent goes on with the connection, the locks and the name."""
        core, self._core = self._core, None
        if self.near_cache is not None:
            _of_parents.append(self.near_cache.forked())
        for held in {held for one in self._owners.held.values() for held in one}:
            held.lose_in_child()
        self._owners = Owners(self._config.name)
        if core is not None:
            core.drop()
            # Its event loop belongs to the parent. Not even its destructors may run here.
            _of_parents.append(core)


class AsyncWorker:
    """A handler with its topic. Call it as the function that it was made from, or `run` it."""

    def __init__(self, client: AsyncClient, options: WorkerOptions, handler: AsyncHandler) -> None:
        if not inspect.iscoroutinefunction(handler):
            raise WrongUse("a handler of AsyncClient is a coroutine function: `async def`")
        functools.update_wrapper(self, handler)
        self.options = options
        self._client = client
        self._handler = handler
        self._loop: WorkerLoop | None = None

    async def __call__(self, message: AsyncMessage) -> object:
        return await self._handler(message)

    @property
    def done(self) -> int:
        """Handled and acked messages."""
        return self._loop.done if self._loop is not None else 0

    @property
    def failed(self) -> int:
        """Failed attempts."""
        return self._loop.failed if self._loop is not None else 0

    async def run(self, *, handle_signals: bool = True) -> None:
        """Work until `stop`, SIGTERM or SIGINT, then let the running handlers finish.

        Args:
            handle_signals: False: only `stop` ends it.
        """

        async def handle(message: AsyncMessage) -> None:
            await self._handler(message)

        self._loop = WorkerLoop(self._client.topic(self.options.topic), self.options, handle)
        handled = []
        loop = asyncio.get_running_loop()
        if handle_signals:
            for number in SIGNALS:
                with contextlib.suppress(RuntimeError, ValueError, NotImplementedError):
                    loop.add_signal_handler(number, self.stop)
                    handled.append(number)
        try:
            await self._loop.run()
        finally:
            for number in handled:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Take no more messages."""
        if self._loop is not None:
            self._loop.stop()


_clients: weakref.WeakSet[AsyncClient] = weakref.WeakSet()
_of_parents: list[Any] = []


def _after_fork() -> None:
    for client in list(_clients):
        client._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
