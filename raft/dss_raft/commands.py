"""What every command shares: its base Struct, the field types with their limits, and the commands of a session.

A command is the one definition of a request's field names, limits and defaults: the JSON lane decodes into it, DRF's
serializers and the OpenAPI schema are derived from it, and its msgpack form is what the Raft log holds. Every field is
written to the log, defaults included, so that changing a default never changes what an old entry means.

Fields that the log keeps in another form than the client sends (a JSON value is kept as its encoded bytes) stand in a
common base with two children: the request, and the command.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

BYTES_PER_NAME_MAX = 512
WAIT_MS_MAX = 20_000
#: A year: long enough for any lease or delay, short enough to stay far from 64-bit overflow.
DURATION_MS_MAX = 366 * 24 * 3600 * 1000
INDEX_MAX = 2**63 - 1

# Without the look-ahead, Python's `$` would let a last line feed pass.
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


class Command(Fields, tag_field="op"):
    """Base of everything that is proposed to Raft. A subclass names itself with `tag="locks.acquire"`."""


class Cancel(Command, tag="session.cancel"):
    """Undo the earlier command `seq` of the same session: its caller has gone.

    A command that still waits is taken out of its queue. One that was answered in the meantime (a lock granted, messages
    handed out) is given back, because nobody will ever see that answer.
    """

    seq: Index


class Nothing(Command, tag="session.nothing"):
    """Takes the place of a command whose caller was told `unknown_outcome` before it was ever applied.

    It keeps the session's sequence without a gap, and keeps the late command from having an effect nobody expects.
    """


class OpenSession(Command, tag="session.open"):
    """First command of a node's new boot: closes the session of the boot before."""


def check_name(field: str, text: str) -> None:
    """Refuse a name of more than 512 bytes of UTF-8.

    Raises:
        ValueError: names the field. (msgspec's `max_length` counts characters; this counts bytes.)
    """
    if len(text) * 4 > BYTES_PER_NAME_MAX and len(text.encode()) > BYTES_PER_NAME_MAX:
        raise ValueError(f"`{field}` is longer than {BYTES_PER_NAME_MAX} bytes of UTF-8")
