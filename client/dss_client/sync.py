"""The client for programs without asyncio. Any number of threads may share it.

One background thread runs the asyncio client, so that calls of all threads share one connection, and locks are renewed whatever the
program's own threads do. The thread starts with the first call. The child of a fork gets a thread, a connection and a name of its own.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from typing import Any

from dss_client.aio import AsyncClient
from dss_client.background import Background
from dss_client.config import Transport
from dss_client.lock_spec import LockSpec
from dss_client.near import NearCache
from dss_client.queue import WorkerOptions
from dss_client.semaphore import SemaphoreSpec
from dss_client.sync_cache import Cache
from dss_client.sync_locks import Lock
from dss_client.sync_queue import Handler, Topic, Worker, run_workers
from dss_client.sync_recipes import Barrier, DoubleBarrier, Election, RateLimit, Semaphore


class Client(Background):
    """Locks, topics, workers and the cache, for threads.

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
        super().__init__(
            AsyncClient(
                urls, token, name=name, timeout=timeout, transport=transport, traces=traces, tls=tls, near_cache=near_cache
            )
        )
        self._workers: list[Worker] = []
        self.cache = Cache(self, self._client.cache)
        #: None: there is no near cache
        self.near_cache = self._client.near_cache

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

    # ----------------------------------------------------------- recipes

    def election(self, name: str, *, ttl: float = 10, wait: float | None = None, value: str = "") -> Election:
        """An election, for `with`: the block runs while this candidate leads.

        Args:
            ttl: if the leader crashes, the next candidate is elected after this many seconds.
            wait: how many seconds to wait; None: without a limit.
            value: what `leader` shows to others, for example an address.
        """
        return Election(self, self._client.election(name, ttl=ttl, wait=wait, value=value))

    def semaphore(self, name: str, permits: int, *, ttl: float = 30, wait: float | None = 10) -> Semaphore:
        """A semaphore, for `with`: at most `permits` holders at a time.

        Args:
            ttl: if a holder crashes, its permit is free after this many seconds.
            wait: how many seconds to wait for a permit; None: without a limit.
        """
        return Semaphore(self, SemaphoreSpec(name, permits, ttl=ttl, wait=wait))

    def barrier(self, name: str, parties: int, *, ttl: float = 10, wait: float | None = None) -> Barrier:
        """A barrier: `wait` returns when `parties` threads or processes have called it.

        Args:
            ttl: a party that crashes while it waits counts for this many seconds at most.
            wait: how many seconds to wait for the others; None: without a limit.
        """
        return Barrier(self, self._client.barrier(name, parties, ttl=ttl, wait=wait))

    def double_barrier(self, name: str, parties: int, *, ttl: float = 10, wait: float | None = None) -> DoubleBarrier:
        """A barrier at the beginning and the end of a block, for `with`. The arguments are those of `barrier`."""
        return DoubleBarrier(self, self._client.double_barrier(name, parties, ttl=ttl, wait=wait))

    def rate_limit(
        self, name: str, rate: float, *, per: float = 1, burst: int | None = None, wait: float | None = 10
    ) -> RateLimit:
        """A rate limit: `rate` calls in `per` seconds, from all processes together.

        Args:
            burst: how many calls may come at once after a pause; by default `rate`.
            wait: for how many seconds `acquire` waits at most; None: without a limit.
        """
        return RateLimit(self, self._client.rate_limit(name, rate, per=per, burst=burst, wait=wait))

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
