"""The outcome of a command: accepted, or refused with a stable code."""

from __future__ import annotations

from typing import Any

import msgspec


class Result(msgspec.Struct, frozen=True):
    """The outcome of a command.

    `body` holds the fields of the operation's answer Struct except `ok` and `index`, or the members of a problem document, as
    builtins that msgpack can encode. A JSON value is kept as its encoded bytes.
    """

    body: dict[str, Any] = {}
    #: "" when accepted, else the stable problem code of docs/reference/api.md ("held", "not_holder", …)
    code: str = ""
    #: the Raft index at which it took effect; set by the replica
    index: int = 0
