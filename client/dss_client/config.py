"""The configuration of a client: addresses, token, time limits."""

from __future__ import annotations

import os
import random
import socket
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from dss_client.errors import WrongUrl, WrongUse
from dss_client.tls import default_context
from dss_client.tracing import Tracing

Transport = Literal["websocket", "http"]

_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


@dataclass(frozen=True)
class Node:
    """The address of a node."""

    url: str
    host: str
    port: int
    is_secure: bool

    @classmethod
    def parse(cls, text: str) -> Node:
        """Read "http://127.0.0.1:8101".

        Raises:
            WrongUrl: it is not an address of this kind.
        """
        wrong = WrongUrl(f"an address must be like http://127.0.0.1:8101, not {text!r}")
        try:
            parts = urlsplit(text.strip().rstrip("/"))
            port = parts.port
        except ValueError:
            raise wrong from None
        scheme = _SCHEMES.get(parts.scheme)
        if scheme is None or not parts.hostname or parts.path or parts.query or parts.fragment or parts.username:
            raise wrong
        port = port or (443 if scheme == "https" else 80)
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return cls(f"{scheme}://{host}:{port}", parts.hostname, port, scheme == "https")


@dataclass(frozen=True)
class Config:
    """See `AsyncClient` for the meaning of the fields."""

    nodes: Sequence[Node]
    token: str = field(default="", repr=False)
    name: str = ""
    timeout_s: float = 15.0
    transport: Transport = "websocket"
    #: how long the connection to one node may take
    connect_timeout_s: float = 2.0
    #: With calls in progress and nothing received for this long, the client pings; twice this time later the connection is dead.
    check_s: float = 1.0
    #: makes spans of the calls, if there is one
    tracing: Tracing | None = None
    #: for https addresses
    tls: ssl.SSLContext | None = None

    @classmethod
    def read(
        cls,
        urls: str | Iterable[str] | None,
        token: str | None,
        *,
        name: str | None,
        timeout: float,
        transport: Transport,
        traces: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> Config:
        """Take what is not given from DSS_URLS, DSS_TOKEN and the variables in tls.py.

        Raises:
            WrongUrl, WrongUse: something is not as it must be.
        """
        given = os.environ.get("DSS_URLS", "") if urls is None else urls
        texts = [text for text in (given.split(",") if isinstance(given, str) else given) if text.strip()]
        if not texts:
            raise WrongUrl("no address: give `urls`, or set DSS_URLS, for example to http://127.0.0.1:8101")
        if timeout <= 0:
            raise WrongUse(f"`timeout` is in seconds and more than 0, not {timeout!r}")
        if transport not in ("websocket", "http"):
            raise WrongUse(f'`transport` is "websocket" or "http", not {transport!r}')
        token = os.environ.get("DSS_TOKEN", "") if token is None else token
        if not token.isprintable() or not token.isascii() or " " in token:
            raise WrongUse("`token` has characters that an HTTP header cannot have")
        nodes = list(dict.fromkeys(Node.parse(text) for text in texts))
        tracing = Tracing() if traces else None
        if tls is None and any(node.is_secure for node in nodes):
            tls = default_context()
        return cls(nodes, token, name or socket.gethostname(), timeout, transport, tracing=tracing, tls=tls)


def pause_s(failures: int) -> float:
    """How long to wait after the given number of failures in a row. The first one is followed by another node immediately."""
    if failures <= 1:
        return random.uniform(0.0, 0.01)
    return random.uniform(0.5, 1.0) * min(0.05 * 2.0 ** min(failures - 2, 10), 1.0)
