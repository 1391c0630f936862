"""A value in the cache with its version, as a read finds it."""

from __future__ import annotations

import base64
from typing import Any

import msgspec


class Entry(msgspec.Struct, frozen=True):
    """What a read found."""

    key: str
    #: None: there is none, or it is null; see `found`
    value: Any = None
    found: bool = False
    #: pass it to `cas`; 0: there is no value
    version: int = 0
    #: answered from this process's near cache, or from the node's own line
    hit: bool = False
    #: of the node's line: "M", "E", "S" or "I"
    state: str = "I"


def found_value(answer: dict[str, Any]) -> Any:
    """The value in an answer of a node."""
    # Attached bytes are there already. A node gives Base64 to a client that cannot take them.
    return base64.b64decode(answer["value"]) if answer.get("encoding") == "base64" else answer["value"]
