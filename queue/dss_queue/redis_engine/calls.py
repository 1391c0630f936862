"""Calls of the library's steps, as the servers read them."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from dss_queue.redis_engine import library_text
from dss_queue.redis_engine.lane import packed

CALL_VERSION = 1
#: Cached beginnings of calls: those that were used last.
BEGINNINGS_MAX = 4096
#: Keys of a call with a cached beginning: those of a partition and of one group.
KEYS_CACHED_MAX = 19

_encode = msgspec.msgpack.Encoder().encode


@lru_cache(BEGINNINGS_MAX)
def _beginning(step: str, keys: tuple[str, ...]) -> bytes:
    """A call of a step up to its argument."""
    words = (b"FCALL", f"{library_text.NAME}_{step}".encode(), b"%d" % len(keys), *(key.encode() for key in keys))
    return b"*%d\r\n" % (len(words) + 1) + b"".join(packed(*words)[1:])


def beginning(step: str, keys: tuple[str, ...]) -> bytes:
    """A call of a step up to its argument. Calls about many groups are rare, and too long to be kept."""
    return (_beginning if len(keys) <= KEYS_CACHED_MAX else _beginning.__wrapped__)(step, keys)


def packed_call(step: str, keys: tuple[str, ...], at_us: int, args: tuple[object, ...]) -> list[bytes]:
    """A call of a step.

    Args:
        at_us: the time of the step in microseconds; 0: that of the primary.
    """
    argument = _encode((CALL_VERSION, at_us, *args))
    return [beginning(step, keys), b"$%d\r\n" % len(argument), argument, b"\r\n"]
