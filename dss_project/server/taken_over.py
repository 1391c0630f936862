"""A connection that shows a page: a web server has taken it over from the listener."""

from __future__ import annotations

import asyncio

from dss_api.client_memory import Share
from dss_api.http_listener import Client


class PageConnection:
    """See `HandedOver`. Its request was complete when it was taken over, and the answer closes it: there is no further input."""

    def __init__(self, transport: asyncio.Transport, client: Client) -> None:
        self.address = client.address
        self.account = client.account
        self._transport = transport
        self._share = Share(client.account)

    def recount(self) -> None:
        """Measure what the client has not read."""
        self._share.set(self._transport.get_write_buffer_size())

    @property
    def is_closed(self) -> bool:
        """Whether the connection has ended."""
        return self._transport.is_closing() and not self._transport.get_write_buffer_size()

    def close(self) -> None:
        """End the connection after all output has been sent."""
        self._transport.close()

    def abort(self) -> None:
        """End the connection immediately."""
        self._transport.abort()

    def take_input(self, data: bytes) -> None:
        """Ignore it."""

    def pause_input(self) -> None:
        """Do nothing."""

    resume_input = pause_input
