"""What an operation is: defined once by a subsystem, offered by every entry point."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import msgspec

from dss_api.answer import Answer
from dss_api.liveness import Liveness
from dss_api.request_id import with_request_id
from dss_api.result import Result
from dss_api.rights import OPERATORS, Need, check


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of the contract.

    `handle(node, request)` gets the decoded request; if the client gave it an id, `handle(node, request, id)`. It returns an instance
    of `answer`, or the `Result` of a state machine, whose body must have the fields of `answer`. It may raise `Refused`. It runs in
    the node's event loop: it must not block, and must not use the ORM or a session.
    """

    #: "locks.acquire": names it in metrics, logs and the OpenAPI schema
    name: str
    method: str
    #: as in docs/reference/api.md, with a leading slash: "/lock/acquire"
    path: str
    #: the Struct that defines fields, limits and defaults; for GET its fields are the query's parameters
    request: type[msgspec.Struct]
    handle: Callable[..., Awaitable[Result | Answer]]
    #: the Struct that every 200 answer is made of
    answer: type[Answer]
    #: the right that a caller needs; `OPEN` for calls that never need a token
    needs: Need
    #: one line, then the full text in Markdown
    summary: str
    description: str = ""
    #: group in the API docs: "Locks", "Queue", "Cache", "Raft", "Health"
    tag: str = ""
    #: a request that works unchanged: fills the browsable API's form and the docs
    example: dict[str, Any] = field(default_factory=dict)
    #: problem codes of this call, in addition to those of every call
    problems: tuple[str, ...] = ()
    #: False for a call that works while the node cannot use the replicated state, because an entry could not be applied
    needs_state: bool = True
    #: of an audited call: waits until the node can carry it out, before the call is recorded
    prepare: Callable[[Any], Awaitable[None]] | None = None
    #: fields that are in no record of the call
    secrets: tuple[str, ...] = ()
    #: True for a call that the client may repeat without a second effect: its requests have the field `request_id`
    takes_request_id: bool = False
    #: True for a call whose answers may have values that are bytes; a client may have them attached, see attached.py
    answers_bytes: bool = False
    #: called with node, request and result if the client disconnected before the answer could be sent; gives back what it got
    undo: Callable[[Any, Any, Any], Awaitable[None]] | None = None

    def __post_init__(self) -> None:
        check(self.needs, self.request)
        if self.prepare is not None and not self.is_audited:
            raise ValueError(f"{self.name}: only audited calls are prepared")

    @property
    def guarded(self) -> bool:
        """False for calls that never need a token."""
        return not self.needs.is_open

    @property
    def is_audited(self) -> bool:
        """True for a call of an operator that changes something."""
        return self.method != "GET" and not self.needs.plain_scopes().isdisjoint(OPERATORS)

    @property
    def request_with_id(self) -> type[msgspec.Struct]:
        """The Struct of all fields that a client may send."""
        return with_request_id(self.request) if self.takes_request_id else self.request


def named(operations: Iterable[Operation], name: str) -> Operation:
    """The operation with this name, which must be among them."""
    return next(operation for operation in operations if operation.name == name)


class Feed(Protocol):
    """The events of a subscription on their way to one client, in the order pushed."""

    def push(self, event: msgspec.Struct) -> None:
        """Queue `event` for sending. Never blocks; a client that does not read loses the subscription (`over_limit`)."""

    async def drained(self) -> None:
        """Wait until the server has taken everything that was pushed."""

    @property
    def backlog(self) -> int:
        """Events that the server has not taken yet."""

    @property
    def address(self) -> str:
        """Of the client, as far as it is known."""

    @property
    def liveness(self) -> Liveness:
        """Signs of life of the client."""

    @property
    def last_ping(self) -> int | None:
        """The number in the last ping of the client for this subscription that has arrived here."""

    def on_message(self, receive: Callable[[Any], None]) -> None:
        """Call `receive(request)` for each of the subscription's messages that arrives. Set it before the handler first waits."""

    def count_call(self) -> None:
        """A message makes work like a call: count it in the rates of its address and token.

        Raises:
            Refused: `over_limit`.
        """

    def hold(self, count: int) -> None:
        """The work of a message keeps `count` more bytes in memory; fewer, if it is negative. They count as those of the client."""

    def has_room(self, length: int) -> bool:
        """Whether the client has read enough of what waits for it that an event of `length` bytes may be pushed."""

    async def room(self, length: int) -> None:
        """Wait until `has_room`, or until the connection ends. For events that can wait: others are pushed at once."""

    async def turn(self) -> None:
        """Wait until a call of this client may begin: work that a message started is spread over turns like calls."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a client may send to a subscription. It has no answer: the subscription answers with an event, if at all.

    The request has a field `call`, the id of the subscription. A message that cannot be delivered is refused like a call.
    """

    method: ClassVar[str] = "MESSAGE"

    #: "cache.near.renew": the `op` of a frame
    name: str
    request: type[msgspec.Struct]
    summary: str
    example: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Subscription:
    """A call that sends events until the client cancels it or disconnects; on the WebSocket entry point only.

    `handle(node, request, feed)` is one task of the node's event loop. It pushes events until it returns or raises `Refused`,
    which becomes the call's last answer. When the client cancels the call or disconnects, the task is cancelled; it gives back
    what it held in a `finally`.
    """

    #: requests are decoded as a body
    method: ClassVar[str] = "SUBSCRIBE"

    #: "locks.watch": the `op` of a frame
    name: str
    #: the Struct that defines fields, limits and defaults
    request: type[msgspec.Struct]
    handle: Callable[[Any, Any, Feed], Awaitable[Result | Answer]]
    #: declares every field of what is pushed
    event: type[msgspec.Struct]
    #: the right that a caller needs
    needs: Need
    summary: str
    description: str = ""
    tag: str = ""
    example: dict[str, Any] = field(default_factory=dict)
    #: problem codes that can end it, in addition to those of every call
    problems: tuple[str, ...] = ()
    #: the Struct of its last answer, if it ends without a refusal
    answer: type[Answer] = Answer
    #: what the client may send to it
    messages: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        check(self.needs, self.request)
