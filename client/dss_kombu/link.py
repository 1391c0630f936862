"""The link to a cluster: an asyncio client in a background thread.

Connections of kombu with the same options share a link: Celery opens one for each thread that publishes, and what they publish at the same
time then goes out in one call.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Hashable, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

import msgspec

from dss_client.aio import AsyncClient
from dss_client.background import CLOSE_S, Background, within
from dss_client.connection import encode
from dss_client.errors import ClientClosed, WrongUse
from dss_client.near import NearCache
from dss_kombu.directory import Directory
from dss_kombu.fetching import Fetcher
from dss_kombu.options import Options
from dss_kombu.publishing import Publication, Publisher, TransientPublisher

T = TypeVar("T")

#: exchanges and queues whose records are kept here
RECORDS_MAX = 2000
#: how often a thread that waits for room looks whether its link is closed
ROOM_S = 1.0


class Link(Background):
    """Its methods may be called in any thread but the background thread. `shared` makes it."""

    def __init__(self, client_options: dict[str, Any], options: Options) -> None:
        near = NearCache(max_items=RECORDS_MAX)
        super().__init__(AsyncClient(near_cache=near, **client_options))
        self.client = self._client
        self.options = options
        self.directory = Directory(self._client, options)
        self._publisher = Publisher(self._client)
        self._transient = TransientPublisher(self._client)
        #: of the open channels
        self.fetchers: set[Fetcher] = set()
        #: This is the child of a fork: the messages belong to the parent.
        self.is_inherited = False
        #: the connections that have it
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the background thread, and wait for it."""
        return self._run(work)

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine in the background thread."""
        return self._started(work).submit(work)

    def post(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a function in the background thread soon."""
        self._started().post(function, *arguments)

    def publish(self, topic: str, value: Any, key: str = "") -> None:
        """Publish a message, and wait until it is stored.

        Raises:
            DssError: it is not, or it may not be.
        """
        encoded = encode(value)
        fields = {"value": msgspec.Raw(encoded), "key": key} if key else {"value": msgspec.Raw(encoded)}
        publication = Publication(topic, fields, len(encoded))
        portal = self._started()
        if portal.is_here:
            raise WrongUse("the background thread would wait for itself")
        self._publisher.expect(publication)
        try:
            portal.post(self._publisher.add, publication)
            publication.stored.result()
        except BaseException:
            publication.stored.cancel()
            raise
        finally:
            self._publisher.forget(publication)

    def publish_transient(self, topic: str, value: Any) -> None:
        """Publish a message soon. It waits only while too many wait to be published.

        Raises:
            Unencodable: it has no JSON form.
        """
        # Encoded here: the program may change it meanwhile.
        encoded = encode(value)
        while not self._transient.room.acquire(timeout=ROOM_S):
            if self._is_closed:
                raise ClientClosed("this client is closed")
        self.post(self._transient.add, topic, msgspec.Raw(encoded), len(encoded))

    def check(self, timeout: float) -> None:
        """Ask any node for the leader.

        Raises:
            Unavailable: no node can be reached.
            Refused: a node does not accept this client.
        """
        self.run(self._check(timeout))

    async def _check(self, timeout: float) -> None:
        await self._client._running().once("raft.leader", {}, timeout)

    def end(self, fetchers: Iterable[Fetcher]) -> None:
        """Take no more messages for channels that cannot be closed, and give back what is not acked."""
        for fetcher in self.fetchers.intersection(fetchers):
            self._run_at_end(fetcher.close)
            self.fetchers.discard(fetcher)

    def close(self) -> None:
        """Publish what is pending, give back what is not acked, and close the connection. At exit, this happens by itself."""
        if self._portal is not None:
            for work in (self._publisher.flush, self._transient.flush, *(fetcher.close for fetcher in self.fetchers)):
                self._run_at_end(work)
        super().close()
        self._publisher.abandon()

    def _run_at_end(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with contextlib.suppress(Exception):
            self.run(within(CLOSE_S, work()))

    def _forked(self) -> None:
        super()._forked()
        self._publisher.forked()
        self._transient.forked()
        self.fetchers = set()
        self.is_inherited = True


#: A link whose connections were thrown away without being closed is not kept.
_links: weakref.WeakValueDictionary[Hashable, Link] = weakref.WeakValueDictionary()
_sharing = threading.Lock()


def shared(key: Hashable, connection: object, make: Callable[[], Link]) -> Link:
    """The link of all connections with this key."""
    with _sharing:
        link = _links.get(key)
        if link is None:
            link = _links[key] = make()
        link.users.add(connection)
        return link


def release(link: Link, connection: object) -> None:
    """A connection no longer needs the link. The last one closes it."""
    with _sharing:
        link.users.discard(connection)
        if link.users:
            return
        for key in [key for key, one in _links.items() if one is link]:
            del _links[key]
    link.close()


def _after_fork() -> None:
    """In the child: connections from the parent keep their links, and new ones get new links."""
    global _sharing
    _sharing = threading.Lock()
    _links.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
