"""Writes entries for a replica with all state machines, like a leader; for tests."""

from __future__ import annotations

from typing import Any

from dss_cache.core.commands import Put
from dss_cache.core.directory import Directory
from dss_locks.core.commands import Acquire, StartSession
from dss_locks.core.table import LockTable
from dss_queue.core.broker import Broker
from dss_queue.core.commands import Consume, NewMessage, Publish
from dss_raft.core.messages import Entry, EntryKind
from dss_raft.replication.batch import encode_batch, encode_command, encode_group
from dss_raft.replication.commands import Command, OpenSession
from dss_raft.replication.limits import LimitsMachine, StateLimits
from dss_raft.replication.replica import Replica

START_MS = 1_795_581_789_119


def new_replica() -> Replica:
    """With the state machines of a node."""
    limits = StateLimits()
    table = LockTable(state_limits=limits)
    return Replica("node-1", [table, Broker(table), Directory(limits), LimitsMachine(limits)])


class ReplicaLog:
    """A replica, and the calls of clients. Each call is an entry of its own."""

    def __init__(self, replica: Replica | None = None, term: int = 1, incarnation: int = 1) -> None:
        self.replica = replica or new_replica()
        self.entries: list[Entry] = []
        self.at_ms = START_MS
        self._term = term
        self._incarnation = incarnation
        self._seqs: dict[str, int] = {}

    def send(self, *commands: Command, node: str = "node-1") -> list[dict[str, Any]]:
        """The answers that there are. The first call of a node opens its session."""
        if node not in self._seqs:
            self._seqs[node] = 0
            self.send(OpenSession(), node=node)
        first = self._seqs[node] + 1
        self._seqs[node] = first + len(commands) - 1
        group = encode_group(node, self._incarnation, first, [], [encode_command(command) for command in commands])
        entry = Entry(self.replica.applied_index + 1, self._term, EntryKind.COMMANDS, encode_batch(self.at_ms, [], [group]))
        self.entries.append(entry)
        self.replica.apply(entry)
        return [result.body for _, _, result in self.replica.take_outcomes()]

    def acquire(self, key: str, client: str, node: str = "node-1", **fields: Any) -> list[dict[str, Any]]:
        return self.send(Acquire(key=key, client=client, **fields), node=node)

    def publish(self, value: bytes = b"1") -> str:
        message = NewMessage("t", value, "", -1, 0, "", b"")
        msg_id: str = self.send(Publish(messages=[message]))[0]["messages"][0]["msg_id"]
        return msg_id

    def consume(self, timeout_ms: int = 0) -> list[dict[str, Any]]:
        answers = self.send(Consume(topic="t", group="g", visibility_ms=1000, timeout_ms=timeout_ms))
        return list(answers[0]["messages"]) if answers else []

    def put(self, key: str, value: bytes = b"1") -> int:
        version: int = self.send(Put(key=key, value=value))[0]["version"]
        return version

    def numbers(self, name: str) -> dict[str, set[Any]]:
        """Five of each kind of number that clients are given."""
        found: dict[str, set[Any]] = {kind: set() for kind in ("token", "message", "receipt", "version", "session")}
        for number in range(5):
            found["token"].add(self.acquire(f"{name}{number}", name)[0]["fencing_token"])
            found["message"].add(tuple(map(int, self.publish().split("-"))))
            found["receipt"].update(message["receipt"] for message in self.consume())
            found["version"].add(self.put(f"{name}{number}"))
            found["session"].add(self.send(StartSession(client=name))[0]["session"])
        return found
