"""Client sessions: one lease for all locks of a client. One keepalive renews them all, and they end together."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import msgspec

from dss_locks.core.account import SESSION_BYTES, Account
from dss_raft.replication.deadlines import NO_TIMER, Deadlines
from dss_raft.replication.limits import text_bytes


class LockSession(msgspec.Struct):
    """A client's session. Its lease works as that of a lock."""

    id: str
    client: str
    ttl_ms: int
    since_ms: int
    #: the keys held in it, as an ordered set
    keys: dict[str, None] = {}
    timer: int = NO_TIMER


class Sessions:
    """The sessions of all clients."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self.by_id: dict[str, LockSession] = {}
        #: when the present leader took over
        self.rearmed_ms = 0
        self.deadlines: Deadlines[LockSession] = Deadlines(self.deadline_ms, attrgetter("id"))
        #: client -> how many sessions it has
        self.of_client: dict[str, int] = {}
        self._last_number = 0

    def deadline_ms(self, session: LockSession) -> int:
        """When the session ends unless it is renewed."""
        return max(session.since_ms, self.rearmed_ms) + session.ttl_ms

    def expires_in_ms(self, session_id: str, at_ms: int) -> int:
        """The remaining time of the session."""
        return max(0, self.deadline_ms(self.by_id[session_id]) - at_ms)

    def start(self, client: str, ttl_ms: int, at_ms: int, index: int) -> LockSession:
        """Start a session. Its id has never been used before."""
        self._last_number += 1
        session = LockSession(f"{index}.{self._last_number}", client, ttl_ms, at_ms)
        self.by_id[session.id] = session
        self.of_client[client] = self.of_client.get(client, 0) + 1
        self.deadlines.add(session, self.deadline_ms(session))
        self._account.sessions += SESSION_BYTES + text_bytes(client)
        return session

    def renew(self, session: LockSession, at_ms: int, ttl_ms: int) -> None:
        """Renew the lease."""
        old_deadline_ms = self.deadline_ms(session)
        session.since_ms, session.ttl_ms = at_ms, ttl_ms
        if self.deadline_ms(session) < old_deadline_ms:
            self.deadlines.moved_forward(session, self.deadline_ms(session))

    def forget(self, session: LockSession) -> None:
        """Remove a session that no longer holds anything."""
        del self.by_id[session.id]
        count_down(self.of_client, session.client)
        self.deadlines.discard(session)
        self._account.sessions -= SESSION_BYTES + text_bytes(session.client)

    def pop_expired(self, at_ms: int) -> list[LockSession]:
        """Take out the deadlines of expired sessions. Returns these sessions in an order that is the same on every node."""
        return self.deadlines.pop_due(at_ms)

    def snapshot(self) -> dict[str, Any]:
        """Everything except the keys, which are in the holds."""
        rows = [[session.id, session.client, session.ttl_ms, session.since_ms] for session in self.by_id.values()]
        return {"rows": rows, "last_number": self._last_number, "rearmed_ms": self.rearmed_ms}

    def restore(self, state: Any) -> None:
        """Replace everything. The account must have been cleared."""
        self.rearmed_ms, self._last_number = state["rearmed_ms"], state["last_number"]
        self.by_id = {row[0]: LockSession(*row) for row in state["rows"]}
        self.of_client = {}
        for session in self.by_id.values():
            self.of_client[session.client] = self.of_client.get(session.client, 0) + 1
            self._account.sessions += SESSION_BYTES + text_bytes(session.client)
        self.deadlines.rebuild(self.by_id.values())


def count_down(counts: dict[str, int], client: str) -> None:
    """Decrement a client's count. A client whose count is zero is not in `counts`."""
    if counts[client] > 1:
        counts[client] -= 1
    else:
        del counts[client]
