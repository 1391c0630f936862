"""The connection of one transport: an asyncio client in a background thread."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from dss_client.aio import AsyncClient
from dss_client.background import CLOSE_S, Background, within
from dss_client.near import NearCache
from dss_kombu.directory import Directory
from dss_kombu.fetching import Fetcher
from dss_kombu.options import Options
from dss_kombu.publishing import Publisher

T = TypeVar("T")

#: exchanges and queues whose records are kept here
RECORDS_MAX = 2000


class Link(Background):
    """Its methods may be called in any thread but the background thread."""

    def __init__(self, client_options: dict[str, Any], options: Options) -> None:
        near = NearCache(max_items=RECORDS_MAX)
        super().__init__(AsyncClient(near_cache=near, **client_options))
        self.client = self._client
        self.options = options
        self.directory = Directory(self._client, options)
        self.publisher = Publisher(self._client)
        #: of the open channels
        self.fetchers: set[Fetcher] = set()
        #: This is the child of a fork: the messages belong to the parent.
        self.is_inherited = False

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the background thread, and wait for it."""
        return self._run(work)

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine in the background thread."""
        return self._started(work).submit(work)

    def post(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a function in the background thread soon."""
        self._started().post(function, *arguments)

    def check(self, timeout: float) -> None:
        """Ask any node for the leader.

        Raises:
            Unavailable: no node can be reached.
            Refused: a node does not accept this client.
        """
        self.run(self._check(timeout))

    async def _check(self, timeout: float) -> None:
        await self._client._running().once("raft.leader", {}, timeout)

    def close(self) -> None:
        """Publish what is pending, give back what is not acked, and close the connection. At exit, this happens by itself."""
        if self._portal is not None:
            for work in (self.publisher.flush, *(fetcher.close for fetcher in self.fetchers)):
                with contextlib.suppress(Exception):
                    self.run(within(CLOSE_S, work()))
        super().close()

    def _forked(self) -> None:
        super()._forked()
        self.publisher.forked()
        self.fetchers = set()
        self.is_inherited = True
