"""A broker behind an imitation of the log, for tests and benchmarks."""

from __future__ import annotations

from typing import Any

import msgspec

from dss_api.result import Result
from dss_queue.core.broker import Broker
from dss_queue.core.commands import Ack, Consume, ConsumeRuns, Extend, Nack, NewMessage, Publish, Purge, Redrive, SetTopic
from dss_queue.core.engines import ConsumeAfterEngine
from dss_queue.core.partitions import ring
from dss_queue.core.records import DeadLettered
from dss_queue.core.topic_commands import DeleteGroup, PutGroup
from dss_raft.replication.commands import Command
from dss_raft.replication.limits import StateLimits
from dss_raft.replication.machine import Origin, Resolved

VISIBILITY_MS = 15_000


class Desk:
    """Applies one entry per call, as the replica would, and records the answers.

    `at_ms` changes only when a test moves it; the index grows with every entry.
    """

    def __init__(self, topic: str = "t", group: str = "g") -> None:
        self.broker = Broker()
        self.topic, self.group = topic, group
        self.index = 0
        self.at_ms = 1_000_000
        self.seq = 0
        #: origin of the last command
        self.origin = Origin("", 0, 0)
        #: answers to consumes that waited
        self.answers: dict[Origin, Result] = {}
        self.dead: list[DeadLettered] = []

    def entry(self, *commands: Command, node: str = "n1") -> list[Result | None]:
        """One entry with several commands, through the log's encoding. None: the command waits."""
        self.index += 1
        self.broker.expire(self.at_ms, self.index)
        results = []
        for command in commands:
            self.seq += 1
            self.origin = Origin(node, 1, self.seq)
            logged = msgspec.msgpack.decode(msgspec.msgpack.encode(command), type=type(command))
            results.append(self.broker.apply(logged, self.at_ms, self.index, self.origin))
        self.collect()
        return results

    def collect(self) -> None:
        """Take the broker's events."""
        for event in self.broker.take_events():
            if isinstance(event, Resolved):
                if event.waiter in self.answers:
                    raise AssertionError(f"{event.waiter} is answered twice")
                self.answers[event.waiter] = event.result
            elif isinstance(event, DeadLettered):
                self.dead.append(event)

    def pass_ms(self, duration_ms: int) -> None:
        """Let time pass, as stamped by the leader."""
        self.at_ms += duration_ms
        self.entry()

    def restart(self) -> None:
        """Replace the broker with one that is restored from its snapshot."""
        state = msgspec.msgpack.decode(msgspec.msgpack.encode(self.broker.snapshot()))
        limits = StateLimits(dict(self.broker.limits.maxima))
        limits.cluster_version = self.broker.limits.cluster_version
        self.broker = Broker(limits=limits)
        self.broker.restore(state)

    # ---------------------------------------------------------------- commands

    def do(self, command: Command, node: str = "n1") -> Result:
        """Apply a command that is answered immediately."""
        result = self.entry(command, node=node)[0]
        if result is None:
            raise AssertionError(f"{command} waits")
        return result

    def message(self, value: Any = 0, key: str = "", **fields: Any) -> NewMessage:
        """A message as an operation would create it."""
        return NewMessage(
            fields.get("topic", self.topic),
            msgspec.json.encode(value),
            key,
            ring(64).partition_of(key) if key else -1,
            fields.get("delay_ms", 0),
            fields.get("dedup_id", ""),
            fields.get("headers", b""),
        )

    def publish(self, *values: Any, key: str = "", **fields: Any) -> list[str]:
        """Publish values in one command; their msg_ids."""
        result = self.do(Publish(messages=[self.message(value, key, **fields) for value in values]))
        if result.code:
            raise AssertionError(result)
        return [one["msg_id"] for one in result.body["messages"]]

    def consume(self, count: int = 1, node: str = "n1", **fields: Any) -> Result | None:
        """A consume; None when it waits. It does not wait unless `timeout_ms` is given."""
        defaults = {"topic": self.topic, "group": self.group, "timeout_ms": 0, "visibility_ms": VISIBILITY_MS}
        command: type[Consume] = ConsumeRuns if "max_per_key" in fields else Consume
        if "incarnation" in fields:
            command, defaults["max_per_key"] = ConsumeAfterEngine, 1
        return self.entry(command(**{**defaults, "max_messages": count, **fields}), node=node)[0]

    def take(self, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
        """The messages that a consume gets now."""
        result = self.consume(count, **fields)
        if result is None:
            raise AssertionError("it waits")
        messages: list[dict[str, Any]] = result.body["messages"]
        return messages

    def values(self, count: int = 1, **fields: Any) -> list[Any]:
        """The values of the messages that a consume gets now."""
        return [msgspec.json.decode(message["value"]) for message in self.take(count, **fields)]

    def why_empty(self, **fields: Any) -> str:
        """The reason that an empty consume gives."""
        result = self.consume(**fields)
        if result is None or result.body["messages"]:
            raise AssertionError(result)
        reason: str = result.body["empty_reason"]
        return reason

    def ack(self, msg_id: str, receipt: str | None = None, **fields: Any) -> Result:
        return self.do(Ack(**{"topic": self.topic, "group": self.group, "msg_id": msg_id, "receipt": receipt, **fields}))

    def nack(self, msg_id: str, receipt: str | None = None, **fields: Any) -> Result:
        return self.do(Nack(**{"topic": self.topic, "group": self.group, "msg_id": msg_id, "receipt": receipt, **fields}))

    def extend(self, msg_id: str, visibility_ms: int, receipt: str | None = None) -> Result:
        return self.do(Extend(topic=self.topic, group=self.group, msg_id=msg_id, receipt=receipt, visibility_ms=visibility_ms))

    def settings(self, **fields: Any) -> Result:
        return self.do(SetTopic(**{"topic": self.topic, **fields}))

    def redrive(self, **fields: Any) -> Result:
        return self.do(Redrive(**{"topic": self.topic, "group": self.group, **fields}))

    def purge(self, **fields: Any) -> Result:
        return self.do(Purge(topic=self.topic, **fields))

    def put_group(self, group: str, **fields: Any) -> Result:
        return self.do(PutGroup(topic=self.topic, group=group, **fields))

    def delete_group(self, group: str) -> Result:
        return self.do(DeleteGroup(topic=self.topic, group=group))

    def cancel(self, origin: Origin) -> None:
        """The caller with this origin has disconnected."""
        self.index += 1
        self.broker.expire(self.at_ms, self.index)
        self.broker.cancel(origin, self.at_ms, self.index)
        self.collect()
