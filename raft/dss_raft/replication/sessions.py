"""Raft client sessions: each command takes effect exactly once, even if it is sent twice (Raft paper section 8, thesis 6.3).

A session is one incarnation (one run of the process) of one node. Its commands carry sequence numbers without a gap. A command
is applied only when its number is the next one: a repeat is skipped, and so is everything after a gap, until the node sends what
is missing. A new incarnation closes the session of the previous one.

The table keeps each result until the node confirms that it has reached its caller. So a node that received a snapshot instead of
the entries can still answer its callers.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dss_api.result import Result

#: Limit of the results kept for one session. A node that confirms them needs far fewer.
RESULTS_KEPT_MAX = 4096


class ClientSession(msgspec.Struct):
    """The state of one node's session."""

    incarnation: int = msgspec.field(name="boot")  # the name in stored snapshots
    #: sequence number of the last command applied
    last_seq: int = 0
    #: results that the node has not confirmed yet, oldest first
    results: dict[int, Result] = msgspec.field(default_factory=dict)
    #: commands that were applied and still wait: an ordered set, all values are None
    waiting: dict[int, None] = msgspec.field(default_factory=dict)

    def keep(self, seq: int, result: Result) -> None:
        """Remember the result of `seq` until it is confirmed."""
        results = self.results
        results[seq] = result
        if len(results) > RESULTS_KEPT_MAX:
            del results[next(iter(results))]


class SessionTable:
    """The sessions of all nodes; part of the replicated state."""

    def __init__(self) -> None:
        self.sessions: dict[str, ClientSession] = {}

    def get(self, node: str) -> ClientSession | None:
        """The current session of `node`; None if it never had one."""
        return self.sessions.get(node)

    def open(self, node: str, incarnation: int) -> tuple[ClientSession | None, bool]:
        """The session for (`node`, `incarnation`), and whether it is new. None: that incarnation is over."""
        session = self.sessions.get(node)
        if session is None or incarnation > session.incarnation:
            session = self.sessions[node] = ClientSession(incarnation)
            return session, True
        if incarnation < session.incarnation:
            return None, False
        return session, False

    def snapshot(self) -> dict[str, ClientSession]:
        return self.sessions

    def restore(self, state: Any) -> None:
        self.sessions = msgspec.convert(state, dict[str, ClientSession], strict=False)
