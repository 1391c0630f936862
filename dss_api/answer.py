"""Base Structs of answers. Each operation has one Struct that declares every field of its answer; nothing else can be sent."""

from __future__ import annotations

from typing import Annotated

import msgspec

#: The last field of every answer to a call that changes something.
RaftIndex = Annotated[int, msgspec.Meta(description="the Raft index at which the call took effect")]


class Part(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Base of what an answer contains: a holder, a message, a cache line.

    A field that may be absent is `T | UnsetType = UNSET`. Answers contain no reference cycles, so the garbage collector need not
    look at them.
    """


class Answer(Part, kw_only=True):
    """Base of every 200 answer, and the answer of a call that has nothing to add. Subclasses are `kw_only` too."""

    ok: Annotated[bool, msgspec.Meta(extra_json_schema={"const": True})] = True
