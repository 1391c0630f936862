"""The C library's heap: memory of large requests and answers goes back to the system after a burst."""

from __future__ import annotations

import ctypes
import sys


def trim() -> None:
    """Return free memory in the middle of the heap. Takes a few milliseconds; with another C library than glibc it does nothing."""
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
