"""Raft client sessions: each command takes effect exactly once, even if it is sent twice (Raft paper section 8, thesis 6.3).

A session is one incarnation (one run of the process) of one node. Its commands carry sequence numbers without a gap. A command
is applied only when its number is the next one: a repeat is skipped, and so is everything after a gap, until the node sends what
is missing. A new incarnation closes the session of the previous one.

The table keeps each result until the node confirms that it has reached its caller. So a node that received a snapshot instead of
the entries can still answer its callers.

The results have a limit in bytes (`session_bytes_max`). Above it the table drops results: the oldest of the session that has most,
so that a node that does not confirm anything loses its own results and not those of others. A node that needs a dropped result,
which is rare, tells its caller `unknown_outcome`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dss_api.result import Result
from dss_raft.replication.limits import MIB, StateLimit, StateLimits

#: Limit of the results kept for one session. A node that confirms them needs far fewer.
RESULTS_KEPT_MAX = 4096
#: What a result costs in addition to its encoded body and code: the entries of two dicts, a Struct, and its objects.
RESULT_BYTES = 512
#: What a command that waits costs in its session.
WAITING_BYTES = 128
#: What a session costs in addition to what is in it.
SESSION_BYTES = 1024

_encoder = msgspec.msgpack.Encoder()


class ClientSession(msgspec.Struct):
    """The state of one node's session."""

    incarnation: int = msgspec.field(name="boot")  # the name in stored snapshots
    #: sequence number of the last command applied
    last_seq: int = 0
    #: results that the node has not confirmed yet, oldest first
    results: dict[int, Result] = msgspec.field(default_factory=dict)
    #: commands that were applied and still wait: an ordered set, all values are None
    waiting: dict[int, None] = msgspec.field(default_factory=dict)


class _Account:
    """The bytes of one session's results."""

    __slots__ = ("of_result", "total")

    def __init__(self) -> None:
        self.of_result: dict[int, int] = {}
        self.total = 0


class SessionTable:
    """The sessions of all nodes; part of the replicated state."""

    def __init__(self, limits: StateLimits | None = None) -> None:
        self.sessions: dict[str, ClientSession] = {}
        #: the bytes of the results of all sessions
        self.result_bytes = 0
        self._accounts: dict[str, _Account] = {}
        self._buffer = bytearray()
        limits = limits or StateLimits()
        limits.declare(StateLimit("session_bytes_max", 64 * MIB, "bytes", lambda: self.result_bytes))
        self._maxima = limits.maxima

    def get(self, node: str) -> ClientSession | None:
        """The current session of `node`; None if it never had one."""
        return self.sessions.get(node)

    def open(self, node: str, incarnation: int) -> tuple[ClientSession | None, bool]:
        """The session for (`node`, `incarnation`), and whether it is new. None: that incarnation is over."""
        session = self.sessions.get(node)
        if session is None or incarnation > session.incarnation:
            session = self.sessions[node] = ClientSession(incarnation)
            if node in self._accounts:
                self.result_bytes -= self._accounts[node].total
            self._accounts[node] = _Account()
            return session, True
        if incarnation < session.incarnation:
            return None, False
        return session, False

    def keep(self, node: str, seq: int, result: Result) -> None:
        """Remember the result of `seq` in the session of `node` until it is confirmed."""
        results, account = self.sessions[node].results, self._accounts[node]
        self._encode(result)
        size = account.of_result[seq] = RESULT_BYTES + len(self._buffer)
        account.total += size
        self.result_bytes += size
        results[seq] = result
        if len(results) > RESULTS_KEPT_MAX:
            self.drop(node, next(iter(results)))
        if self.result_bytes > self._maxima["session_bytes_max"]:
            self._shrink()

    def drop(self, node: str, seq: int) -> None:
        """Forget the result of `seq`, if there is one: it is confirmed, or its caller has gone."""
        if self.sessions[node].results.pop(seq, None) is not None:
            account = self._accounts[node]
            size = account.of_result.pop(seq)
            account.total -= size
            self.result_bytes -= size

    def usage(self) -> dict[str, int]:
        """See `HasUsage`."""
        waiting = sum(len(session.waiting) for session in self.sessions.values())
        return {
            "session_results": self.result_bytes,
            "session_others": waiting * WAITING_BYTES + len(self.sessions) * SESSION_BYTES,
        }

    def snapshot(self) -> dict[str, ClientSession]:
        return self.sessions

    def restore(self, state: Any) -> None:
        self.sessions = msgspec.convert(state, dict[str, ClientSession], strict=False)
        self.result_bytes, self._accounts = 0, {}
        for node, session in self.sessions.items():
            account = self._accounts[node] = _Account()
            for seq, result in session.results.items():
                self._encode(result)
                account.of_result[seq] = RESULT_BYTES + len(self._buffer)
            account.total = sum(account.of_result.values())
            self.result_bytes += account.total

    def _encode(self, result: Result) -> None:
        """Encode into the buffer, which keeps its memory."""
        _encoder.encode_into(result, self._buffer)

    def _shrink(self) -> None:
        """Drop the oldest results of the largest session until the limit is kept. The order of equals is that of the ids."""
        maximum = self._maxima["session_bytes_max"]
        while self.result_bytes > maximum:
            node = max(self._accounts, key=lambda node: (self._accounts[node].total, node))
            self.drop(node, next(iter(self.sessions[node].results)))
