"""What a call comes to: an answer, or a refusal with a stable code."""

from __future__ import annotations

from typing import Any

import msgspec


class Result(msgspec.Struct, frozen=True):
    """The outcome of a command.

    `body` holds the answer's fields, in msgpack-able builtins. A JSON value travels as its encoded bytes. The entry point adds
    `ok` and `index`.
    """

    body: dict[str, Any] = {}
    #: "" when accepted, else the stable problem code of api.md ("held", "not_holder", …)
    code: str = ""
    #: the Raft index at which it took effect; set by the replica
    index: int = 0
