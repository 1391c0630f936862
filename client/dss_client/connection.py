"""What the transports have in common: a connection that carries out calls, and how a call can fail without an answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from dss_client.errors import Unencodable

Answer = dict[str, Any]

_encoder = msgspec.json.Encoder()
#: of messages with bytes attached to their JSON; see dss_api/attached.py
ATTACHED_TYPE = "application/vnd.dss.attached"
ATTACHED = "attached"
_decode = msgspec.json.Decoder(Answer).decode
#: Python reads integers of at most so many digits from text.
DIGITS_MAX = 4300


class Bytes:
    """A value of a request that is attached to it. Its field `encoding` is `ATTACHED`."""

    __slots__ = ("data",)

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self.data = data


def encode_attached(value: Any) -> tuple[bytes, list[Any]]:
    """JSON, and what is attached to it.

    Raises:
        Unencodable: the value has no JSON form.
    """
    parts: list[Any] = []

    def attach(value: Any) -> int:
        if type(value) is not Bytes:
            raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")
        parts.append(value.data)
        return memoryview(value.data).nbytes

    return _encode(msgspec.json.Encoder(enc_hook=attach), value), parts


def with_attached(document: bytes, parts: list[Any]) -> bytes:
    """A whole message."""
    return b"".join((b"\0", len(document).to_bytes(4), document, *parts))


def decode(data: bytes) -> Answer:
    """The answer of a node, with the bytes that are attached to it.

    Raises:
        msgspec.MsgspecError: it is not an answer.
    """
    if data[:1] != b"\0":
        return decode_json(data)
    position = 5 + int.from_bytes(data[1:5])
    answer = decode_json(data[5:position])
    # The places where a node has values. A value can be any JSON: it is not searched.
    for place in (answer, *answer.get("items", ()), *(answer.get("event") or {}).get("fetched", ())):
        if place.get("encoding") == ATTACHED:
            end = position + place["value"]
            if end > len(data):
                raise msgspec.DecodeError("fewer bytes are attached than the message says")
            place["value"], position = data[position:end], end
    return answer


def decode_json(data: bytes) -> Answer:
    """A JSON object. Numbers that no float can have are read as infinity, because other programs may store them: JSON allows 1E400.

    Raises:
        msgspec.MsgspecError: this is no JSON object.
    """
    try:
        return _decode(data)
    except msgspec.ValidationError:
        try:
            answer = json.loads(data, parse_int=lambda text: int(text) if len(text) <= DIGITS_MAX else float(text))
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise
        return answer


class NotSent(Exception):
    """The call has not left this machine."""


class NoAnswer(Exception):
    """The connection ended, or the time was over, before the answer came. The call may have taken effect."""


class CannotConnect(Exception):
    """No connection to this node.

    Args:
        is_wrong: something answers, but it is no node.
    """

    def __init__(self, detail: str, *, is_wrong: bool = False) -> None:
        super().__init__(detail)
        self.is_wrong = is_wrong


class Handle:
    """Cancels a call that is in progress, and waits for its answer nevertheless.

    Args:
        on_event: the call is a subscription, and this gets its events.
    """

    def __init__(self, on_event: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.on_event = on_event
        self.is_cancelled = False
        self._connection: Connection | None = None
        self._id = 0

    def sent(self, connection: Connection | None, id: int) -> None:
        """For connections: the call is on its way. None: it has ended."""
        self._connection, self._id = connection, id
        if self.is_cancelled and connection is not None:
            connection.cancel(id)

    def cancel(self) -> None:
        """The call is answered `cancelled`, unless its answer is on its way already. It is not sent again."""
        self.is_cancelled = True
        if self._connection is not None:
            self._connection.cancel(self._id)


class Connection(Protocol):
    """A way to one node."""

    url: str

    @property
    def is_open(self) -> bool:
        """Whether it takes calls."""

    async def call(self, operation: str, fields: Mapping[str, Any], timeout_s: float, handle: Handle | None) -> Answer:
        """One call. The answer has its `status`.

        Raises:
            NotSent, NoAnswer, Unencodable.
        """

    def cancel(self, id: int) -> None:
        """Ask the node to end a call."""

    def retire(self) -> None:
        """Take no more calls. Close when those in progress have ended."""

    def close(self) -> None:
        """Close now. Calls in progress end with `NoAnswer`."""

    def drop(self) -> None:
        """In the child of a fork: close this process's copy of the socket, so that the node sees only what the parent does."""


def encode(value: Any) -> bytes:
    """JSON.

    Raises:
        Unencodable: the value has no JSON form.
    """
    return _encode(_encoder, value)


def _encode(encoder: msgspec.json.Encoder, value: Any) -> bytes:
    try:
        return encoder.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise Unencodable(f"a value cannot be written as JSON: {error}") from error
