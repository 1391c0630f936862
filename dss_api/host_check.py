"""Which Host headers this node answers to.

A page of another site may point its own name at 127.0.0.1 and then talk to a node as if it were that site (DNS rebinding). It
cannot do so under an IP address, so those are always welcome: probes and balancers use them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from dss_api.errors import Refused

#: Distinct Host headers whose verdict is remembered.
REMEMBERED_MAX = 1024
WRONG_HOST = Refused("invalid", "the Host header does not name this node; see DSS_ALLOWED_HOSTS", field="Host")


class HostCheck:
    """Call it with the Host header's bytes.

    Args:
        allowed: names in lower case without a port; `*` allows everything, `.example.org` that domain and what is below it.
    """

    def __init__(self, allowed: Iterable[str]) -> None:
        self._names = frozenset(name.lower() for name in allowed)
        self._domains = tuple(name for name in self._names if name.startswith("."))
        self._verdicts: dict[bytes, bool] = {}

    def __call__(self, header: bytes) -> bool:
        verdict = self._verdicts.get(header)
        if verdict is None:
            if len(self._verdicts) >= REMEMBERED_MAX:
                self._verdicts.clear()
            verdict = self._verdicts[header] = self._judge(header.decode("latin-1").lower())
        return verdict

    def _judge(self, host: str) -> bool:
        if "*" in self._names:
            return True
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        # The root of DNS may be written: `localhost.` is localhost.
        name = name.removesuffix(".")
        if name in self._names or any(name.endswith(domain) or name == domain[1:] for domain in self._domains):
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True
