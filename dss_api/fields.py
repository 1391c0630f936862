"""The fields of requests: their base Struct, and the field types with their limits."""

from __future__ import annotations

from typing import Annotated

import msgspec

BYTES_PER_NAME_MAX = 512
WAIT_MS_MAX = 20_000
#: A year: long enough for any lease or delay, and far from 64-bit overflow.
DURATION_MS_MAX = 366 * 24 * 3600 * 1000
INDEX_MAX = 2**63 - 1

# Python's `$` alone would accept a line feed at the end.
_NO_CONTROL_CHARACTERS = r"^[^\x00-\x1f\x7f-\x9f]*$(?!\n)"

#: `key`, `client`, `topic`, `group`: 1 to 512 bytes of UTF-8 without control characters (bytes: see `check_name`).
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=BYTES_PER_NAME_MAX, pattern=_NO_CONTROL_CHARACTERS)]
#: The same, where empty means "none" (a routing key).
OptionalName = Annotated[str, msgspec.Meta(max_length=BYTES_PER_NAME_MAX, pattern=_NO_CONTROL_CHARACTERS)]
DurationMs = Annotated[int, msgspec.Meta(ge=0, le=DURATION_MS_MAX)]
PositiveDurationMs = Annotated[int, msgspec.Meta(ge=1, le=DURATION_MS_MAX)]
WaitMs = Annotated[int, msgspec.Meta(ge=0, le=WAIT_MS_MAX)]
#: A Raft index used as a fencing token, version or receipt.
Index = Annotated[int, msgspec.Meta(ge=0, le=INDEX_MAX)]


class Fields(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of every request and command: unknown fields are refused, by name."""


def check_name(field: str, text: str) -> None:
    """Refuse a name of more than 512 bytes of UTF-8.

    Raises:
        ValueError: names the field. (msgspec's `max_length` counts characters; this counts bytes.)
    """
    if len(text) * 4 > BYTES_PER_NAME_MAX and len(text.encode()) > BYTES_PER_NAME_MAX:
        raise ValueError(f"`{field}` is longer than {BYTES_PER_NAME_MAX} bytes of UTF-8")
