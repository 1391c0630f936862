"""Locks between the processes of tests."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, *, is_shared: bool = False) -> Iterator[None]:
    """Hold a lock on a file, which is created. It waits for other processes, and for other such blocks of this one.

    Args:
        is_shared: others may hold it, too, if they share it.
    """
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Processes that were forked in the block have the file, too: closing it would not end the lock.
            fcntl.flock(file, fcntl.LOCK_UN)
