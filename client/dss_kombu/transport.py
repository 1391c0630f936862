"""The transport `dss://`: a connection of kombu to a cluster."""

from __future__ import annotations

import os
from collections import Counter
from importlib.metadata import version
from typing import Any

import msgspec
from kombu.transport import virtual
from msgspec import structs

from dss_client.clock import now
from dss_client.dss_url import CONNECTING, PORT_DEFAULT, DssUrl
from dss_client.errors import ClientClosed, DssError, InternalError, OverLimit, Unavailable, UnknownOutcome
from dss_kombu.channel import Channel
from dss_kombu.fetching import Fetcher
from dss_kombu.inbox import Inbox
from dss_kombu.link import Link, release, shared
from dss_kombu.options import Options


class Transport(virtual.Transport):
    """One connection. Its channels share its link and its inbox of deliveries."""

    Channel = Channel
    can_parse_url = True
    driver_type = "dss"
    driver_name = "dss-client"
    polling_interval = None
    connection_errors = (*virtual.Transport.connection_errors, Unavailable, UnknownOutcome, ClientClosed, OSError)
    channel_errors = (*virtual.Transport.channel_errors, OverLimit, InternalError)
    # kombu repeats what failed with one of these. A publish that may have taken effect must not be repeated: it would be there twice.
    recoverable_connection_errors = (*virtual.Transport.connection_errors, Unavailable, ClientClosed, OSError)
    recoverable_channel_errors = (*virtual.Transport.channel_errors, OverLimit)
    implements = virtual.Transport.implements.extend(
        asynchronous=True, exchange_type=frozenset(["direct", "topic", "fanout"]), heartbeats=False
    )

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)
        given = client.transport_options or {}
        url = _url_of(client)
        self.options = Options.read(url, given)
        connecting = {name: given[name] for name in CONNECTING if name in given}
        if client.ssl and "tls" not in connecting:
            connecting["tls"] = True
        self._client_options = url.client_options(connecting)
        environment = [item for item in os.environ.items() if item[0].startswith("DSS_")]
        #: what decides whether two connections can share a link
        self._key = (msgspec.json.encode(url), self.options, *sorted(connecting.items()), *sorted(environment))
        self._link: Link | None = None
        #: Made with the connection, before the background thread can use it.
        self._inbox: Inbox | None = None
        self._loop: Any = None
        #: of the open channels
        self.fetchers: set[Fetcher] = set()

    @property
    def link(self) -> Link:
        if self._link is None:
            self._link = shared(self._key, self, lambda: Link(self._client_options, self.options))
        return self._link

    @property
    def inbox(self) -> Inbox:
        if self._inbox is None:
            raise ClientClosed("this connection is closed")
        return self._inbox

    def driver_version(self) -> str:
        return version("dss-client")

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        return uri if include_password else DssUrl.parse(uri).without_token(mask)

    def establish_connection(self) -> Any:
        try:
            self.link.check(self.client.connect_timeout or 5.0)
        except DssError:
            self._end_link()
            raise
        if self._inbox is None:
            self._inbox = Inbox()
        return super().establish_connection()

    def close_connection(self, connection: Any) -> None:
        if self._loop is not None and self._inbox is not None:
            self._loop.remove_reader(self._inbox.fileno())
            self._loop = None
        try:
            super().close_connection(connection)
        finally:
            self._end_link()

    def _end_link(self) -> None:
        link, self._link = self._link, None
        fetchers, self.fetchers = self.fetchers, set()
        if link is not None:
            link.end(fetchers)
            release(link, self)
        inbox, self._inbox = self._inbox, None
        if inbox is not None:
            inbox.close()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        self._loop = loop
        loop.add_reader(self.inbox.fileno(), self._deliver_all)

    def unregister_from_event_loop(self, connection: Any, loop: Any) -> None:
        if self._inbox is not None:
            loop.remove_reader(self._inbox.fileno())
        self._loop = None

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        """Wait for messages, and pass on all that are here.

        Raises:
            TimeoutError: there was none in `timeout` seconds.
        """
        until = None if timeout is None else now() + timeout
        while not self._deliver_all():
            left_s = None if until is None else until - now()
            if (left_s is not None and left_s < 0) or not self.inbox.wait(left_s):
                raise TimeoutError("timed out")

    def _deliver_all(self) -> int:
        """Returns how many messages were passed on."""
        items = self.inbox.take()
        for channel, count in Counter(channel for channel, _ in items).items():
            channel.seen(count)
        for place, (channel, delivery) in enumerate(items):
            try:
                channel.receive(delivery)
            except BaseException:
                self.inbox.put_back(items[place + 1 :])
                raise
        return len(items)


def _url_of(client: Any) -> DssUrl:
    """kombu passes a URL unchanged, except an alternative one after a failure: that comes in parts.

    Raises:
        WrongUrl
    """
    host = client.hostname or ""
    if "://" in host:
        return DssUrl.parse(host)
    token = client.password or client.userid
    found = DssUrl.parse(f"dss://{host}:{client.port or PORT_DEFAULT}")
    return structs.replace(found, token=token or None, path=(client.virtual_host or "").strip("/"))
