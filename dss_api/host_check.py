"""The check of the Host header.

Another site can point its own name at 127.0.0.1, so that its pages talk to a node as if the node were that site (DNS rebinding). That
does not work with an IP address, so addresses are always accepted: probes and load balancers use them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from dss_api.errors import Refused

#: Distinct Host headers whose result is cached.
CACHED_MAX = 1024
WRONG_HOST = Refused("invalid", "the Host header does not name this node; see DSS_ALLOWED_HOSTS", field="Host")


class HostCheck:
    """Call it with the bytes of the Host header.

    Args:
        allowed: names in lower case without a port; `*` allows everything, `.example.org` that domain and its subdomains.
    """

    def __init__(self, allowed: Iterable[str]) -> None:
        self._names = frozenset(name.lower() for name in allowed)
        self._domains = tuple(name for name in self._names if name.startswith("."))
        self._results: dict[bytes, bool] = {}

    def __call__(self, header: bytes) -> bool:
        result = self._results.get(header)
        if result is None:
            if len(self._results) >= CACHED_MAX:
                self._results.clear()
            result = self._results[header] = self._check(header.decode("latin-1").lower())
        return result

    def _check(self, host: str) -> bool:
        if "*" in self._names:
            return True
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        # A host name may end with the dot of the DNS root: `localhost.` is localhost.
        name = name.removesuffix(".")
        if name in self._names or any(name.endswith(domain) or name == domain[1:] for domain in self._domains):
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True
