"""Ids and receipts of the engine's messages, and what its steps answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, Literal, NamedTuple, TypeVar

import msgspec

from dss_queue.answers import Delivered
from dss_queue.core.commands import TopicSettings
from dss_queue.redis_engine.errors import unreadable

T = TypeVar("T")

#: Digits of a message's number.
NUMBER_LENGTH = 16
#: What ids have before the number -> the partition.
_PARTITIONS = {f"r{partition}-": partition for partition in range(1000)}


class QueueSettings(TopicSettings, kw_only=True):
    """The settings of a queue of the SQS endpoint: messages that are too old are dropped, as in the log."""


class Place(NamedTuple):
    """Where a message is."""

    partition: int
    number: str


def message_id(partition: int, number: str) -> str:
    """The `msg_id`: "r<partition>-<number>". Those of the replicated log begin with a digit."""
    return f"r{partition}-{number}"


def place_of(msg_id: str) -> Place | None:
    """Where the message with this id is; None when no message of the engine can have it."""
    partition, number = _PARTITIONS.get(msg_id[:-NUMBER_LENGTH]), msg_id[-NUMBER_LENGTH:]
    return None if partition is None or not (number.isascii() and number.isdigit()) else Place(partition, number)


def serial_of(msg_id: str, receipt: str | None) -> str:
    """What a receipt names: a delivery; empty: the one in flight; "-": none of this message."""
    if receipt is None:
        return ""
    of_id, _, serial = receipt.rpartition(".")
    return serial if of_id == msg_id and serial else "-"


class Named(NamedTuple):
    """Deliveries of one partition that a call names."""

    msg_ids: list[str]
    numbers: list[str]
    #: see `serial_of`
    serials: list[str]

    @property
    def text(self) -> str:
        """The numbers as steps want them."""
        return "".join(self.numbers)

    @property
    def serial(self) -> str | list[str]:
        """The serials as steps want them: one if all are equal."""
        first = self.serials[0]
        return first if self.serials.count(first) == len(self.serials) else self.serials


class Taken(NamedTuple):
    """Messages that one consume got, or that are named without receipts."""

    partition: int
    #: their numbers, one after another
    text: str
    serial: str


def of_one_consume(msg_ids: list[str], receipts: list[str] | None, partitions: int) -> Taken | None:
    """What a call names; None: several deliveries, or ids or receipts that none can have, see `by_partition`.

    Most acks name what one consume got, up to a thousand messages. This is cheaper than `by_partition`.
    """
    prefix = msg_ids[0][:-NUMBER_LENGTH]
    partition = _PARTITIONS.get(prefix)
    numbers = [msg_id[-NUMBER_LENGTH:] for msg_id in msg_ids]
    text = "".join(numbers)
    if partition is None or partition >= partitions or not (text.isascii() and text.isdigit()):
        return None
    if [prefix + number for number in numbers] != msg_ids:
        return None
    if receipts is None:
        return Taken(partition, text, "")
    serial = serial_of(msg_ids[0], receipts[0])
    if [f"{msg_id}.{serial}" for msg_id in msg_ids] != receipts:
        return None
    return Taken(partition, text, serial)


def by_partition(given: Iterable[tuple[str, str | None]], partitions: int) -> dict[int, Named]:
    """Deliveries, each a msg_id and perhaps a receipt, by their partition, without ids that no message of the topic can have."""
    found: dict[int, Named] = {}
    for msg_id, receipt in given:
        partition, number = _PARTITIONS.get(msg_id[:-NUMBER_LENGTH]), msg_id[-NUMBER_LENGTH:]
        if partition is None or partition >= partitions or not (number.isascii() and number.isdigit()):
            continue
        named = found.get(partition)
        if named is None:
            named = found[partition] = Named([], [], [])
        msg_ids, numbers, serials = named
        msg_ids.append(msg_id)
        numbers.append(number)
        serials.append(serial_of(msg_id, receipt))
    return found


class PartitionStats(msgspec.Struct, array_like=True):
    """The answer of `stats`."""

    version: int
    messages: int
    #: of messages, and of dead letters and redriven messages
    bytes: int
    published: int
    expired: int
    #: a number; empty: there is none
    oldest: str
    groups: list[str]
    #: in the last full ten seconds
    published_lately: int
    state: Literal["open", "closed", ""]


class PartitionGroupStats(msgspec.Struct, array_like=True):
    """The answer of `group_stats`."""

    version: int
    ready: int
    delayed: int
    in_flight: int
    dead: int
    oldest: str
    delivered: int
    redelivered: int
    acked: int
    #: reason, count, reason, count, …
    dead_total: list[str | int]
    #: in the last full ten seconds
    delivered_lately: int
    acked_lately: int


class Consumed(NamedTuple):
    """What one step of consuming got from one partition."""

    messages: list[Delivered]
    #: why there are none
    empty_reason: str
    #: until something becomes ready by itself; None: nothing does
    next_in_ms: int | None
    #: there may be more
    more: bool


#: Place, key, headers, attempt and first_ms of a message that has a key, headers or an earlier attempt.
Unusual = tuple[int, str, str, int, int]
#: Why a group gets nothing more: the topic has left the engine, and nothing of the group is left there.
CLOSED = "closed"
#: Before the attempt_ids that the engine makes up; clients cannot send it.
OWN_ATTEMPT = "\x00"
#: Part of each token of a publish with a `request_id`. Tokens that the engine makes do not contain it.
OF_REQUEST = ":"
#: `next_ms` in an answer: nothing becomes ready by itself.
NEVER_MS = 9_000_000_000_000_000

#: What the use of an answer raises that has another form than the library's.
_UNREADABLE = (msgspec.DecodeError, ValueError, TypeError, LookupError, AttributeError)


@contextmanager
def reading(*, changes: bool = False) -> Iterator[None]:
    """Around the use of an answer: one of another form is the server's fault, and refuses the call.

    Args:
        changes: the step may have changed something.

    Raises:
        Refused: `unknown_outcome` if it may, otherwise `engine_away`.
    """
    try:
        yield
    except _UNREADABLE as error:
        raise unreadable(f"{type(error).__name__}: {error}", changes=changes) from None


class Answer(Generic[T]):
    """What a step answers.

    Args:
        changes: see `reading`.
    """

    def __init__(self, decoder: msgspec.msgpack.Decoder[T], *, changes: bool = True) -> None:
        self._decode = decoder.decode
        self._changes = changes

    def decode(self, data: bytes) -> T:
        """
        Raises:
            Refused: see `reading`.
        """
        try:
            return self._decode(data)
        except _UNREADABLE as error:
            raise unreadable(f"{type(error).__name__}: {error}", changes=self._changes) from None


published_answer = Answer(msgspec.msgpack.Decoder(tuple[int, int, list[int]]))
consume_answer = Answer(msgspec.msgpack.Decoder(tuple[int, str, int, int, str, list[str], list[Unusual], str, int, bool, int]))
in_flight_answer = Answer(msgspec.msgpack.Decoder(tuple[int, list[str]]), changes=False)
letters_answer = Answer(msgspec.msgpack.Decoder(tuple[int, str]))
extend_answer = Answer(msgspec.msgpack.Decoder(tuple[int, int, str]))
sweep_answer = Answer(msgspec.msgpack.Decoder(tuple[int, int, bool]))
count_answer = Answer(msgspec.msgpack.Decoder(tuple[int, int]))
counted_answer = Answer(msgspec.msgpack.Decoder(tuple[int, int, bool]))
group_answer = Answer(msgspec.msgpack.Decoder(tuple[int, bool, int]))
open_answer = Answer(msgspec.msgpack.Decoder(tuple[int, str]))
delete_answer = Answer(msgspec.msgpack.Decoder(tuple[int, list[str], bool]))
delete_group_answer = Answer(msgspec.msgpack.Decoder(tuple[int, str, bool]))
due_answer = Answer(msgspec.msgpack.Decoder(tuple[int, int, list[int], int, int, int, int]), changes=False)
stats_answer = Answer(msgspec.msgpack.Decoder(PartitionStats), changes=False)
dead_count_answer = Answer(msgspec.msgpack.Decoder(tuple[int, int]), changes=False)
group_stats_answer = Answer(msgspec.msgpack.Decoder(PartitionGroupStats), changes=False)
lines_answer = Answer(msgspec.msgpack.Decoder(tuple[int, list[list], bool]), changes=False)


def consumed(partition: int, data: bytes) -> Consumed:
    """The answer of `consume`.

    Raises:
        Refused: `unknown_outcome`, see `reading`.
    """
    with reading(changes=True):
        return _consumed(partition, data)


def _consumed(partition: int, data: bytes) -> Consumed:
    _, serial, at_ms, due_ms, numbers, values, others, reason, next_ms, more, _ = consume_answer.decode(data)
    messages = []
    for place, value in enumerate(values):
        number = numbers[NUMBER_LENGTH * place : NUMBER_LENGTH * (place + 1)]
        msg_id = f"r{partition}-{number}"
        messages.append(
            Delivered(
                msg_id=msg_id,
                value=msgspec.Raw(value),  # type: ignore[arg-type]
                key="",
                headers=None,
                partition=partition,
                receipt=f"{msg_id}.{serial}",
                attempt=1,
                first_delivered_ms=at_ms,
                delivered_ms=at_ms,
                visible_until_ms=due_ms,
                published_ms=int(number) // 1000,
            )
        )
    for place, key, headers, attempt, first_ms in others:
        message = messages[place - 1]
        message.key, message.attempt, message.first_delivered_ms = key, attempt, first_ms
        message.headers = msgspec.Raw(headers) if headers else None  # type: ignore[arg-type]
    next_in_ms = None if next_ms >= NEVER_MS else max(0, next_ms - at_ms)
    return Consumed(messages, reason, next_in_ms, more)
