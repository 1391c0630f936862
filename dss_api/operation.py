"""What an operation is: defined once by a subsystem, offered by every door."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import msgspec

from dss_api.result import Result


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of the contract.

    `handle(node, request)` gets the decoded request and returns a `Result`; it may raise `problems.Refused`.
    It runs in the node's event loop: it awaits, and never blocks, touches the ORM or a session.
    """

    #: "locks.acquire": names it in metrics, logs and the OpenAPI schema
    name: str
    method: str
    #: as in api.md, with a leading slash: "/lock/acquire"
    path: str
    #: the Struct that defines fields, limits and defaults; for GET its fields are the query's parameters
    request: type[msgspec.Struct]
    handle: Callable[[Any, Any], Awaitable[Result]]
    #: the Struct that describes the answer's fields, for OpenAPI
    answer: type[msgspec.Struct]
    #: one line, then the full text in Markdown
    summary: str
    description: str = ""
    #: group in the API docs: "Locks", "Queue", "Cache", "Raft", "Health"
    tag: str = ""
    #: a request that works as it stands: fills the browsable API's form and the docs
    example: dict[str, Any] = field(default_factory=dict)
    #: problem codes this call can answer, beyond those that any call can
    problems: tuple[str, ...] = ()
    #: False for what stays open without a token (/health, /ready)
    guarded: bool = True
    #: gives back what a client got that had gone before its answer could be sent: called with node, request and result
    undo: Callable[[Any, Any, Result], Awaitable[None]] | None = None


class Feed(Protocol):
    """Where a subscription's events go: to one client, in the order pushed."""

    def push(self, event: dict[str, Any] | msgspec.Struct) -> None:
        """Send `event`, soon. Never blocks; a client that does not read loses the subscription (`over_limit`)."""

    async def drained(self) -> None:
        """Wait until the server has taken everything that was pushed."""

    @property
    def backlog(self) -> int:
        """Events that the server has not taken yet."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """Something that goes on for as long as a client listens; on the WebSocket door only.

    `handle(node, request, feed)` is one task of the node's event loop. It pushes events until it returns or raises `Refused`,
    which becomes the call's last answer. When the client cancels it or goes, it is cancelled, and gives back in a `finally`
    what it held.
    """

    #: requests are decoded as a body
    method: ClassVar[str] = "SUBSCRIBE"

    #: "locks.watch": the `op` of a frame
    name: str
    #: the Struct that defines fields, limits and defaults
    request: type[msgspec.Struct]
    handle: Callable[[Any, Any, Feed], Awaitable[Result]]
    #: the Struct that describes what is pushed
    event: type[msgspec.Struct]
    summary: str
    description: str = ""
    tag: str = ""
    example: dict[str, Any] = field(default_factory=dict)
    #: problem codes that can end it, beyond those of any call
    problems: tuple[str, ...] = ()
