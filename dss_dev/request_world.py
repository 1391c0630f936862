"""A replica with a request session and callers at two nodes; for tests of requests that are repeated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dss_api.result import Result
from dss_dev.sum_machine import Sum, with_sessions
from dss_raft.core.messages import Entry, EntryKind
from dss_raft.replication.batch import encode_batch, encode_command, encode_group
from dss_raft.replication.client_requests import OpenRequestSession
from dss_raft.replication.commands import Command, Once, OpenSession, SetClusterVersion
from dss_raft.replication.limits import LimitsMachine, StateLimits
from dss_raft.replication.machine import StateMachine
from dss_raft.replication.replica import Replica
from dss_raft.replication.state_hash import state_hashes
from dss_raft.versions import LATEST

DIGEST = b"d" * 16
TTL_MS = 60_000


def sum_machine() -> list[StateMachine]:
    return [Sum(), LimitsMachine(StateLimits())]


def once(number: int, command: Command, **fields: Any) -> Once:
    """A command of the request `number` of the session "s"."""
    return Once(**{"session": "s", "number": number, "digest": DIGEST, "command": encode_command(command), **fields})


class RequestWorld:
    """A replica with the request session "s", and callers at the nodes a and b. Each step is an entry.

    Args:
        limits: replaces maxima.
        machines: makes the state machines.
    """

    def __init__(
        self,
        *,
        version: int = LATEST,
        limits: dict[str, int] | None = None,
        machines: Callable[[], Sequence[StateMachine]] = sum_machine,
    ) -> None:
        self._machines = machines
        self.replica = self._new_replica()
        self.replica.limits.maxima.update(limits or {})
        with_sessions(self.replica)
        self.seqs = dict.fromkeys("ab", 0)
        self.incarnations = dict.fromkeys("ab", 1)
        self.index = self.at_ms = 0
        self.term = 1
        if version > 1:
            self.entry(own=[SetClusterVersion(version=version)])
        if version == LATEST:
            self.run(OpenRequestSession(session="s", ttl_ms=TTL_MS))

    def _new_replica(self) -> Replica:
        return Replica("a", self._machines())

    def entry(self, *groups: bytes, own: list[Command] | None = None, later_ms: int = 0) -> None:
        self.index += 1
        self.at_ms += later_ms
        data = encode_batch(self.at_ms, [encode_command(one) for one in own or []], groups)
        self.replica.apply(Entry(self.index, self.term, EntryKind.COMMANDS, data))
        self.replica.take_outcomes()
        self.replica.take_faults()

    def send(self, command: Command, node: str = "a", later_ms: int = 0) -> int:
        """Apply a command, and return its sequence number."""
        self.seqs[node] = seq = self.seqs[node] + 1
        self.entry(encode_group(node, self.incarnations[node], seq, [], [encode_command(command)]), later_ms=later_ms)
        return seq

    def answer(self, seq: int, node: str = "a") -> Result | None:
        """None: it waits, or was cancelled."""
        session = self.replica.sessions.get(node)
        assert session is not None
        return session.results.get(seq)

    def run(self, command: Command, node: str = "a", later_ms: int = 0) -> Result:
        found = self.answer(self.send(command, node, later_ms), node)
        assert found is not None
        return found

    def restart(self, node: str) -> None:
        opening = OpenSession(replaces=self.incarnations[node])
        self.incarnations[node] += 1
        self.seqs[node] = 0
        self.send(opening, node)

    def restore(self) -> None:
        """Go on with a replica that was restored from a snapshot. Both have the same account and hashes."""
        old = self.replica
        data = old.snapshot()
        self.replica = self._new_replica()
        self.replica.restore(data)
        assert self.replica.snapshot() == data
        assert self.replica.usage() == old.usage()
        assert state_hashes(self.replica) == state_hashes(old)
        assert self.replica.next_deadline_ms() == old.next_deadline_ms()

    @property
    def machine(self) -> Any:
        """The first state machine."""
        return next(iter(self.replica.machines.values()))

    @property
    def total(self) -> int:
        return self.machine.total  # type: ignore[no-any-return]

    @property
    def waiters(self) -> int:
        return len(self.machine.waiters)
