"""A connection that shows a page: a web server has taken it over from the listener."""

from __future__ import annotations

import asyncio

from dss_api.client_memory import Share
from dss_api.http_listener import Client


class PageConnection:
    """See `HandedOver`. The answer closes it: there is no further input."""

    def __init__(self, transport: asyncio.Transport, client: Client) -> None:
        self.closed = client.closed
        self._transport = transport
        self._share = Share(client.account)

    def recount(self) -> None:
        """Measure what the client has not read."""
        self._share.set(self._transport.get_write_buffer_size())

    def close(self) -> None:
        """End the connection after all output has been sent."""
        self._transport.close()

    def abort(self) -> None:
        """End the connection immediately."""
        self._transport.abort()
