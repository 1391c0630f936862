"""Messages and dead letters as Structs, and the format of message ids and receipts."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from dss_raft.replication.machine import Event

#: A message number is a Raft index and a count inside that entry, so numbers grow in publish order.
COUNT_BITS = 24
_COUNT_MASK = (1 << COUNT_BITS) - 1
#: How many ended deliveries of a message are kept: the latest ones.
HISTORY_MAX = 20


def message_id(number: int) -> str:
    """The `msg_id` of a message number: "<index>-<n>"."""
    return f"{number >> COUNT_BITS}-{number & _COUNT_MASK}"


def message_number(msg_id: str) -> int:
    """The number of a `msg_id`; -1 when no message can have that id."""
    index, _, count = msg_id.partition("-")
    try:
        number = int(index) << COUNT_BITS | int(count)
    except ValueError:
        return -1
    return number if message_id(number) == msg_id else -1


def receipt_of(msg_id: str, serial: int) -> str:
    """The receipt of a delivery."""
    return f"{msg_id}.{serial:x}"


_headers = msgspec.json.Decoder(dict[str, str])


def decoded_headers(headers: bytes) -> dict[str, str]:
    """The headers of a message. None, if the log has something else, which no entry point lets through."""
    try:
        return _headers.decode(headers) if headers else {}
    except (msgspec.MsgspecError, RecursionError):
        return {}


class Message(msgspec.Struct, array_like=True, gc=False):
    """A retained message, shared by all groups. It has only scalars, so the garbage collector can skip it (gc=False)."""

    number: int
    #: "" for none
    key: str
    partition: int
    #: JSON
    value: bytes
    #: a JSON object, or empty
    headers: bytes
    published_ms: int
    #: hidden until then; 0: published without a delay
    ready_ms: int
    #: groups that are finished with it
    done: int = 0

    @property
    def size(self) -> int:
        """The bytes that count towards limits."""
        return len(self.value) + len(self.key) + len(self.headers)


#: Replaces the message of a delivery that has ended, because a list of deadlines may keep the delivery for a while.
GONE = Message(-1, "", -1, b"", b"", 0, 0)


class Ending(NamedTuple):
    """How one delivery ended without an ack."""

    attempt: int
    delivered_ms: int
    ended_ms: int
    #: "nack", "timeout", "gone" (the consumer hung up before the answer, or unsubscribed), "silent", "not_received" (a timeout of a
    #: pushed message after which nothing was heard from the client), "rejected" (nack with `dead`)
    reason: str
    #: the node that the consumer called
    node: str


class Dead(msgspec.Struct, array_like=True):
    """A dead letter of a group."""

    number: int
    key: str
    partition: int
    value: bytes
    headers: bytes
    published_ms: int
    dead_ms: int
    attempts: int
    #: "max_attempts", "rejected" (nack with `dead`), "expired" (retention)
    reason: str
    history: tuple[Ending, ...]

    @property
    def size(self) -> int:
        """The bytes that count towards limits."""
        return len(self.value) + len(self.key) + len(self.headers)


class DeadMove(NamedTuple):
    """A dead letter on its way to the dead-letter topic, `target`."""

    message: Message
    topic: str
    group: str
    target: str
    attempts: int
    reason: str


class DeadLettered(Event, frozen=True):
    """A group got another dead letter."""

    topic: str
    group: str
    reason: str


class Rate(msgspec.Struct, array_like=True):
    """Events per second, over the last full ten seconds of applied time."""

    slot: int = 0
    count: int = 0
    before: int = 0

    def add(self, at_ms: int, events: int = 1) -> None:
        slot = at_ms // 10_000
        if slot != self.slot:
            self.before = self.count if slot == self.slot + 1 else 0
            self.slot, self.count = slot, 0
        self.count += events

    def per_second(self, at_ms: int) -> float:
        """The rate as of `at_ms`."""
        behind = at_ms // 10_000 - self.slot
        full = self.before if behind <= 0 else self.count if behind == 1 else 0
        return full / 10
