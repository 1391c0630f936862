"""Who may use the lab: the person who reads the terminal of `make run`, with one browser for each link that it prints. Pure.

Pages of other sites must not reach it through the person's browser: the `Host` of every call must be the lab's own (a foreign name that
resolves to 127.0.0.1 is refused), and the `Origin` of every call that changes something, too.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping

#: browsers that may be in the lab at the same time; the oldest one is forgotten
SESSIONS_MAX = 8


class Access:
    """Links, cookies and the checks of a call.

    Args:
        port: where the lab listens.
    """

    def __init__(self, port: int) -> None:
        #: browsers send a cookie to all ports of a host, so two labs need two names
        self.cookie = f"dss_lab_{port}"
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self.url = f"http://127.0.0.1:{port}"
        self._token = secrets.token_urlsafe(24)
        self._sessions: list[str] = []

    @property
    def link(self) -> str:
        """Opens the lab in one browser. The part behind `#` is not sent by browsers, so no log has it."""
        return f"{self.url}/#t={self._token}"

    def enter(self, token: str) -> str:
        """Use the link's token. Returns the value of the cookie; "": the token is wrong, or was used. A new link is made then."""
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            return ""
        self._token = secrets.token_urlsafe(24)
        session = secrets.token_urlsafe(24)
        self._sessions = [*self._sessions[1 - SESSIONS_MAX :], session]
        return session

    def is_known(self, headers: Mapping[str, str]) -> bool:
        """Whether the call has a cookie of this lab."""
        # Not with SimpleCookie, which drops all cookies if another site of this host has one that it cannot read.
        pairs = (each.partition("=") for each in headers.get("cookie", "").split(";"))
        values = [value.strip().encode() for name, _, value in pairs if name.strip() == self.cookie]
        return any(hmac.compare_digest(value, each.encode()) for value in values for each in self._sessions)

    def has_own_host(self, headers: Mapping[str, str]) -> bool:
        return headers.get("host", "").lower() in self._hosts

    def has_own_origin(self, headers: Mapping[str, str]) -> bool:
        return headers.get("origin", "").lower() == f"http://{headers.get('host', '').lower()}"
