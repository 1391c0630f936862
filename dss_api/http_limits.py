"""Limits of the HTTP listener."""

from __future__ import annotations

from dataclasses import dataclass

from dss_api.errors import Refused


@dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """Limits for one connection, for one address, and for all connections."""

    #: size of a body
    body_bytes_max: int
    #: size of request line and headers
    head_bytes_max: int = 32 * 1024
    #: from the connection to the end of its TLS handshake
    handshake_timeout_s: float = 10.0
    #: from a request's first byte to the end of its head
    head_timeout_s: float = 10.0
    #: from the end of a head to the end of its body
    body_timeout_s: float = 30.0
    #: longer than clients' pools keep a connection; otherwise a call would sometimes use one that is being closed
    idle_timeout_s: float = 75.0
    #: how long a client may leave its answers unread
    write_timeout_s: float = 30.0
    #: how long a connection stays open after a refusal, for a client that is still sending
    linger_timeout_s: float = 2.0
    connections_max: int = 10_000
    #: connections from one address
    connections_per_address_max: int = 10_000

    @property
    def too_large(self) -> Refused:
        return Refused("too_large", f"the body is longer than {self.body_bytes_max} bytes")

    @property
    def head_too_large(self) -> Refused:
        return Refused("head_too_large", f"request line and headers are longer than {self.head_bytes_max} bytes")
