"""Tickets: how a page opens a WebSocket on a closed node.

A browser cannot send `Authorization` with a WebSocket. So a page that the user may read gets a ticket (`GET /ui/ticket`) and offers it as a
subprotocol: `dss, dss.ticket.<text>`. A ticket is good for one connection, at the node that gave it, for half a minute. The connection
can only subscribe to what the page shows (`SUBSCRIPTION`), and ends after some minutes: the page then gets another ticket, if the session
still exists. A token gets no ticket, because a connection of a ticket would have neither its quotas nor its end: its bearer can send
`Authorization` with the WebSocket.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable

from dss_api.caller import Caller
from dss_api.errors import Refused
from dss_api.rights import READ, Access
from dss_api.routes import require_possible

#: A ticket must be used within this time.
TICKET_S = 30.0
#: Tickets that are not used yet; above it, the oldest ends.
TICKETS_MAX = 1_000
#: A connection that was opened with a ticket ends after this time.
CONNECTION_S = 300.0
PROTOCOL = "dss"
PREFIX = f"{PROTOCOL}.ticket."
NOT_VALID = "the ticket is not valid"
NOT_FOR_TOKENS = "tickets are for browsers: send the header Authorization with the WebSocket"
#: all that a connection that was opened with a ticket may subscribe to; it may make no calls
SUBSCRIPTION = "cluster.watch"
_READS = Access(("read",))


class Tickets:
    """The tickets that this node has given and that are not used yet.

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: in the order given
        self._unused: dict[str, tuple[float, str]] = {}

    def give(self, caller: Caller) -> str:
        """A ticket for this caller.

        Raises:
            Refused: `forbidden`: the caller may not read, or has a token.
        """
        if caller.is_token:
            raise Refused("forbidden", NOT_FOR_TOKENS)
        require_possible(READ, caller)
        if len(self._unused) >= TICKETS_MAX:
            del self._unused[next(iter(self._unused))]
        text = secrets.token_urlsafe(24)
        self._unused[text] = self._clock() + TICKET_S, caller.name
        return text

    def take(self, subprotocols: Iterable[str]) -> Caller | None:
        """Whom the ticket among these was given to; None if there is none. It cannot be used again.

        Raises:
            Refused: `unauthenticated`.
        """
        text = next((one.removeprefix(PREFIX) for one in subprotocols if one.startswith(PREFIX)), None)
        if text is None:
            return None
        ends_s, name = self._unused.pop(text, (0.0, ""))
        if self._clock() > ends_s:
            raise Refused("unauthenticated", NOT_VALID)
        return Caller(name, _READS)


_shared = Tickets()


def shared() -> Tickets:
    """The tickets of this process."""
    return _shared
