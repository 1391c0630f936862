"""The id of a client's request, with which a call that changes something can be repeated at any node without a second effect.

A client opens a request session, and numbers its requests in it: `request_id` is `SESSION:NUMBER` or `SESSION:NUMBER:ANSWERED`. The
field is added to the requests of all operations that take it here, and nowhere else: a decoder splits it off, so neither the
operations' Structs nor the commands in the log have it.
"""

from __future__ import annotations

from functools import cache
from hashlib import blake2b
from typing import Annotated, Any

import msgspec

from dss_api.errors import Refused

FIELD = "request_id"
#: Between the random part of a session's id and the proof to whom it was given; see `Caller.seal`.
SEAL_MARK = "-"
SEAL_PURPOSE = "request session"
#: Between the random part of a session's id and the token that opened it; not in the id if any caller may use the session.
OWNER_MARK = "_"
#: Numbers that all readers of JSON read exactly.
NUMBER_MAX = 2**53
#: Commands of one request.
PARTS_MAX = 1024
DIGEST_BYTES = 16
SESSION_LENGTH_MAX = 64

RequestSessionId = Annotated[str, msgspec.Meta(min_length=1, max_length=SESSION_LENGTH_MAX, pattern=r"^[A-Za-z0-9_-]*$(?!\n)")]
RequestIdText = Annotated[
    str,
    msgspec.Meta(
        pattern=rf"^[A-Za-z0-9_-]{{1,{SESSION_LENGTH_MAX}}}:[0-9]{{1,16}}(:[0-9]{{1,16}})?$(?!\n)",
        description="SESSION:NUMBER or SESSION:NUMBER:ANSWERED. The call may be repeated with it, at any node: it takes effect once,"
        " and each repeat gets the same answer",
    ),
]


def new_session_id(random: str, owner: str) -> str:
    """The id of a session, without its seal."""
    return f"{random}{OWNER_MARK}{owner}" if owner else random


def owner_of(session: str) -> str:
    """The token that opened a session; "" if any caller may use it."""
    return session.partition(SEAL_MARK)[0].partition(OWNER_MARK)[2]


class RequestId(msgspec.Struct, frozen=True):
    """A request of a client."""

    session: str
    number: int
    #: the client has the answers of all numbers up to this one
    answered: int
    #: of the call and its fields: a number that is used for another call is refused
    digest: bytes
    #: position of a command in a request with several
    part: int = 0


class Identified(msgspec.Struct, frozen=True, gc=False):
    """A decoded request with its id."""

    request: Any
    id: RequestId


@cache
def with_request_id(request: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """The Struct of a request with the field `request_id`."""
    return msgspec.defstruct(
        f"{request.__name__}WithId",
        [(FIELD, RequestIdText | None, None)],
        bases=(request,),
        kw_only=True,
        module=request.__module__,
        namespace={"__doc__": request.__doc__},
    )


def parse(text: str, name: str, request: msgspec.Struct) -> RequestId:
    """The id that `text`, of the form of `RequestIdText`, gives to a call.

    Args:
        name: of the operation.
        request: without the id.

    Raises:
        Refused: `invalid`.
    """
    session, number, *answered = text.split(":")
    found = RequestId(session, int(number), int(answered[0]) if answered else 0, _digest(name, request))
    if not 1 <= found.number <= NUMBER_MAX or found.answered > NUMBER_MAX:
        raise Refused("invalid", f"`{FIELD}`: the number must be 1 to {NUMBER_MAX}", field=FIELD)
    return found


def split(request: Any, request_type: type[msgspec.Struct], name: str) -> Any:
    """Take the id off a request that was decoded as `with_request_id(request_type)`.

    Returns:
        The request, or `Identified` if it has an id.

    Raises:
        Refused: `invalid`.
    """
    plain = request_type(**{field: getattr(request, field) for field in request_type.__struct_fields__})
    return plain if request.request_id is None else Identified(plain, parse(request.request_id, name, plain))


def _digest(name: str, request: msgspec.Struct) -> bytes:
    """Fields with their defaults do not count, so that nodes of two releases compute the same, even if one of them knows more fields."""
    fields = {field: value for field, default in _defaults(type(request)) if (value := getattr(request, field)) != default}
    return blake2b(_encode([name, fields]), digest_size=DIGEST_BYTES).digest()


_encode = msgspec.json.Encoder(order="sorted").encode


@cache
def _defaults(request: type[msgspec.Struct]) -> list[tuple[str, Any]]:
    """Each field and its default."""
    return [
        (field.name, field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory())
        for field in msgspec.structs.fields(request)
    ]
