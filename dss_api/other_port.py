"""Another port of the HTTP listener, for another protocol over HTTP. Connections, limits, TLS and memory are the listener's.

The web server does not serve such a port: every request is a call, or refused.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from dss_api.caller import Caller
from dss_api.codec import EncodedAnswer
from dss_api.errors import Refused
from dss_api.host_check import WRONG_HOST, HostCheck
from dss_api.http_connection import HttpConnection, Listener
from dss_api.http_request import HttpRequest
from dss_api.proxies import TrustedProxies


class MainPort(Listener, Protocol):
    """The part of the listener that its other ports use."""

    proxies: TrustedProxies
    is_host_allowed: HostCheck


class PortProtocol(Protocol):
    """What answers the requests of such a port."""

    def find(self, request: HttpRequest) -> Any:
        """What takes the place of the request's route. Raises `Refused`."""

    def caller_of(self, request: HttpRequest) -> Caller:
        """Who makes the call now. Raises `Refused`."""

    def encode_refusal(self, refusal: Refused) -> EncodedAnswer:
        """The answer to a request that is refused."""


class OtherPort:
    """The listener, as the connections of the other port see it: implements `dss_api.http_connection.Listener`."""

    def __init__(self, listener: MainPort, protocol: PortProtocol) -> None:
        self._listener = listener
        self._protocol = protocol
        self.loop = listener.loop
        self.limits = listener.limits
        self.turns = listener.turns
        self.input_turns = listener.input_turns
        self.memory = listener.memory
        self.find_node = listener.find_node
        self.https_headers = listener.https_headers
        self.opened = listener.opened
        self.closed = listener.closed
        self.call_begins = listener.call_begins
        self.call_ended = listener.call_ended
        self.caller_of = protocol.caller_of
        self.encode_refusal = protocol.encode_refusal

    @property
    def is_stopping(self) -> bool:
        return self._listener.is_stopping

    def check_head(self, request: HttpRequest) -> EncodedAnswer | None:
        """Check the headers before the body is read, and find out what answers the request."""
        head = request.read_head(self._listener.proxies, self.https_headers)
        request.headers = list(head.headers)
        try:
            if head.host and not self._listener.is_host_allowed(head.host):
                raise WRONG_HOST
            if request.is_upgrade:
                raise Refused("invalid", "this port has no WebSocket")
            if head.length > self.limits.body_bytes_max:
                raise self.limits.too_large
            request.route = self._protocol.find(request)
        except Refused as refusal:
            return self.encode_refusal(refusal)
        return None

    def hand_over(self, connection: HttpConnection, transport: asyncio.Transport, data: bytes, is_websocket: bool) -> None:
        """No request at this port is the web server's: each one has a route, or an answer."""
        raise AssertionError("a request without a route")
