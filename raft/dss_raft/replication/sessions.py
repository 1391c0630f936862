"""Raft client sessions: each command takes effect exactly once, even if it is sent twice (Raft paper section 8, thesis 6.3).

A session is one incarnation (one run of the process) of one node. Its commands carry sequence numbers without a gap. A command
is applied only when its number is the next one: a repeat is skipped, and so is everything after a gap, until the node sends what
is missing. Incarnations are random numbers, so that neither an older copy of a directory nor a replaced machine repeats one. The
log orders them: `OpenSession` names the incarnation that it replaces, and has no effect if another one has opened meanwhile.
Commands of any other incarnation than the current one have no effect.

The table keeps each result until the node confirms that it has reached its caller. So a node that received a snapshot instead of
the entries can still answer its callers.

The results have a limit in bytes (`session_bytes_max`). Above it the table drops results: the oldest of the session that has most,
so that a node that does not confirm anything loses its own results and not those of others. A node that needs a dropped result,
which is rare, tells its caller `unknown_outcome`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from dss_api.result import Result
from dss_raft.formats import Format
from dss_raft.replication.commands import OpenSession
from dss_raft.replication.limits import MIB, StateLimit, StateLimits

#: Limit of the results kept for one session. A node that confirms them needs far fewer.
RESULTS_KEPT_MAX = 4096
#: What a result costs in addition to its encoded body: the entries of two dicts, a Struct, and its objects.
RESULT_BYTES = 512
#: What a command that waits costs in its session.
WAITING_BYTES = 128
#: What a session costs in addition to what is in it.
SESSION_BYTES = 1024

#: of the sessions in a snapshot
FORMAT = Format("the state of the sessions in this snapshot", 1, oldest=0)

_encode = msgspec.msgpack.Encoder().encode


class StoredSession(msgspec.Struct):
    """A session as it is stored in a snapshot."""

    incarnation: int = msgspec.field(name="boot")
    last_seq: int = 0
    results: dict[int, Result] = msgspec.field(default_factory=dict)
    waiting: dict[int, None] = msgspec.field(default_factory=dict)
    store: str = ""
    starts: int = 0
    is_over: bool = False


@dataclass(slots=True)
class ClientSession:
    """The state of one node's session."""

    incarnation: int
    #: sequence number of the last command applied
    last_seq: int = 0
    #: results that the node has not confirmed yet, oldest first
    results: dict[int, Result] = field(default_factory=dict)
    #: commands that were applied and still wait: an ordered set, all values are None
    waiting: dict[int, None] = field(default_factory=dict)
    #: the store of this incarnation, and the number of its start with it; see `outdates`
    store: str = ""
    starts: int = 0
    #: the node was removed. The incarnation stays known, so that a late copy of its first command does not open it again
    is_over: bool = False
    #: the bytes of each result, for the account
    sizes: dict[int, int] = field(default_factory=dict)
    #: their sum
    result_bytes: int = 0


class SessionTable:
    """The sessions of all nodes; part of the replicated state."""

    def __init__(self, limits: StateLimits | None = None) -> None:
        self.sessions: dict[str, ClientSession] = {}
        #: the bytes of the results of all sessions
        self.result_bytes = 0
        limits = limits or StateLimits()
        limits.declare(StateLimit("session_bytes_max", 64 * MIB, "bytes", lambda: self.result_bytes))
        self._maxima = limits.maxima

    def get(self, node: str) -> ClientSession | None:
        """The current session of `node`; None if it never had one."""
        return self.sessions.get(node)

    def open(self, node: str, incarnation: int, opening: OpenSession) -> ClientSession | None:
        """The new session of `node`. None: `opening` has no effect, because that incarnation is not the one that it may replace."""
        session = self.sessions.get(node)
        current = 0 if session is None else session.incarnation
        if incarnation <= current if opening.replaces is None else opening.replaces != current:
            return None
        if session is not None:
            self.result_bytes -= session.result_bytes
        session = self.sessions[node] = ClientSession(incarnation, store=opening.store, starts=opening.starts)
        return session

    def end(self, node: str) -> None:
        """The node was removed from the cluster: its session accepts nothing, and keeps nothing."""
        session = self.sessions[node]
        self.forget(session, list(session.results))
        session.waiting.clear()
        session.is_over = True

    def outdates(self, node: str, incarnation: int, store: str, starts: int) -> bool:
        """True if this store of `node` was started more often than the store says now: it was put back to an earlier state."""
        session = self.sessions.get(node)
        return session is not None and session.store == store and session.starts >= starts and session.incarnation != incarnation

    def keep(self, session: ClientSession, seq: int, result: Result) -> None:
        """Remember the result of `seq` until it is confirmed."""
        size = session.sizes[seq] = RESULT_BYTES + len(_encode(result.body))
        session.result_bytes += size
        self.result_bytes += size
        session.results[seq] = result
        if len(session.results) > RESULTS_KEPT_MAX:
            self._drop_oldest(session)
        if self.result_bytes > self._maxima["session_bytes_max"]:
            self._shrink()

    def forget(self, session: ClientSession, seqs: Sequence[int]) -> None:
        """Forget the results of `seqs`, if there are any: they are confirmed, or their callers have gone."""
        results, sizes, freed = session.results, session.sizes, 0
        for seq in seqs:
            if seq in results:
                del results[seq]
                freed += sizes.pop(seq)
        session.result_bytes -= freed
        self.result_bytes -= freed

    def usage(self) -> dict[str, int]:
        """See `HasUsage`."""
        waiting = sum(len(session.waiting) for session in self.sessions.values())
        return {
            "session_results": self.result_bytes,
            "session_others": waiting * WAITING_BYTES + len(self.sessions) * SESSION_BYTES,
        }

    def snapshot(self) -> dict[str, StoredSession]:
        return {
            node: StoredSession(s.incarnation, s.last_seq, s.results, s.waiting, s.store, s.starts, s.is_over)
            for node, s in self.sessions.items()
        }

    def restore(self, state: Any) -> None:
        stored = msgspec.convert(state, dict[str, StoredSession], strict=False)
        self.sessions = {
            node: ClientSession(
                s.incarnation, s.last_seq, s.results, s.waiting, store=s.store, starts=s.starts, is_over=s.is_over
            )
            for node, s in stored.items()
        }
        for session in self.sessions.values():
            session.sizes = {seq: RESULT_BYTES + len(_encode(result.body)) for seq, result in session.results.items()}
            session.result_bytes = sum(session.sizes.values())
        self.result_bytes = sum(session.result_bytes for session in self.sessions.values())

    def _drop_oldest(self, session: ClientSession) -> None:
        self.forget(session, [next(iter(session.results))])

    def _shrink(self) -> None:
        """Drop the oldest results of the largest session until the limit is kept. Of equal sessions, the last node's is taken."""
        maximum = self._maxima["session_bytes_max"]
        while self.result_bytes > maximum:
            node = max(self.sessions, key=lambda node: (self.sessions[node].result_bytes, node))
            self._drop_oldest(self.sessions[node])
