"""What trusted proxies say about the client of a request: its address, its scheme and the host that it asked for.

Only a peer in DSS_TRUSTED_PROXIES is believed; the same headers from anyone else have no effect. In `X-Forwarded-For`, each proxy adds the
address that it got the request from at the end. So the list is read from its end, and the first address that is no trusted proxy is the
client: everything before it was sent by that client, who can write there what it likes. Of `X-Forwarded-Proto` and `X-Forwarded-Host`, the
last value counts, which the nearest proxy has set.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

Headers = Sequence[tuple[bytes, bytes]]

#: So many addresses at the end of `X-Forwarded-For` are read.
HOPS_MAX = 16
#: An address with a port in brackets is not longer. Anything longer is no address.
ADDRESS_CHARACTERS_MAX = 64
#: Distinct peers whose result is cached.
CACHED_MAX = 1024


class Origin(NamedTuple):
    """Where a request comes from."""

    address: str
    #: "http" or "https"; "": no proxy said it
    scheme: str = ""
    #: b"": no proxy said it
    host: bytes = b""


class TrustedProxies:
    """See the module.

    Args:
        networks: addresses and networks, "10.0.0.5" or "10.0.0.0/8".

    Raises:
        ValueError: one of them is neither.
    """

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = tuple(ipaddress.ip_network(network, strict=False) for network in networks)
        self._results: dict[str, bool] = {}

    def trusts(self, peer: str) -> bool:
        """Whether this address is a trusted proxy's."""
        if not self._networks:
            return False
        result = self._results.get(peer)
        if result is None:
            if len(self._results) >= CACHED_MAX:
                self._results.clear()
            address = _address(peer)
            result = self._results[peer] = address is not None and self._contains(address)
        return result

    def origin(self, peer: str, headers: Headers) -> Origin:
        """Where a request comes from that arrived from `peer`."""
        if not self.trusts(peer):
            return Origin(peer)
        forwarded_for: list[bytes] = []
        scheme = host = b""
        for name, value in headers:
            if name == b"x-forwarded-for":
                forwarded_for.append(value)
            elif name == b"x-forwarded-proto":
                scheme = value
            elif name == b"x-forwarded-host":
                host = value
        scheme = _last(scheme).lower()
        return Origin(
            self._client(peer, b",".join(forwarded_for)),
            scheme.decode() if scheme in (b"http", b"https") else "",
            _last(host),
        )

    def _client(self, peer: str, forwarded_for: bytes) -> str:
        client = peer
        for hop in reversed(forwarded_for.rsplit(b",", HOPS_MAX)[-HOPS_MAX:]):
            address = _address(hop.decode("latin-1").strip())
            if address is None:
                break
            client = str(address)
            if not self._contains(address):
                break
        return client

    def _contains(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        return any(address in network for network in self._networks)

    def scope(self, scope: dict[str, Any]) -> dict[str, Any]:
        """The ASGI scope of a request as its client made it. It is `scope` itself unless the peer is a trusted proxy."""
        client = scope.get("client")
        if not client or not self.trusts(client[0]):
            return scope
        origin = self.origin(client[0], scope["headers"])
        secure, plain = ("wss", "ws") if scope["type"] == "websocket" else ("https", "http")
        scheme = {"https": secure, "http": plain}.get(origin.scheme, scope.get("scheme", plain))
        return {**scope, "client": (origin.address, 0), "scheme": scheme, "headers": with_host(scope["headers"], origin.host)}


NO_PROXIES = TrustedProxies()


def with_host(headers: Headers, host: bytes) -> Headers:
    """The headers with another Host; b"": the same headers."""
    if not host:
        return headers
    return [*(header for header in headers if header[0] != b"host"), (b"host", host)]


def _last(value: bytes) -> bytes:
    return value.rpartition(b",")[2].strip()


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address in "1.2.3.4", "1.2.3.4:5678", "::1", "[::1]" or "[::1]:5678"; None if it is something else."""
    if len(text) > ADDRESS_CHARACTERS_MAX or "%" in text:
        return None
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped) or address
