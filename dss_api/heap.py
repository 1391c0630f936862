"""The C library's heap: memory of large requests and answers goes back to the system after a burst."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

#: Blocks from this size on are memory maps of their own. glibc starts with this threshold, but raises it to 32 MiB as blocks are freed.
MAPPED_FROM_BYTES = 128 * 1024
#: parameters of glibc's `mallopt`
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
#: The event loop's, and one for all other threads.
_ARENAS = 2


def keep_large_blocks_apart() -> None:
    """Give each large block back to the system when it is freed. Otherwise, small blocks that were allocated behind it keep its place.

    To be called before threads start. With another C library than glibc it does nothing.
    """
    libc = _libc()
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
        libc.mallopt(_M_ARENA_MAX, _ARENAS)


def trim() -> None:
    """Return free memory in the middle of the heap. Takes a few milliseconds; with another C library than glibc it does nothing."""
    libc = _libc()
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _libc() -> Any:
    return ctypes.CDLL(None) if sys.platform.startswith("linux") else None
