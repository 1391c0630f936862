"""When the machine's network interfaces change, Chromium fails the requests that it is making (`ERR_NETWORK_CHANGED`).

So tests with a browser and clusters with interfaces of their own, in whatever process, wait for each other.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = Path(tempfile.gettempdir()) / f"dss-network-{os.getuid()}.lock"


@contextmanager
def no_changes() -> Iterator[None]:
    """No interface is added or removed in this block. Several processes can be in such a block."""
    with _locked(fcntl.LOCK_SH):
        yield


@contextmanager
def changing() -> Iterator[None]:
    """This block adds or removes interfaces. It waits until no process is in a block of `no_changes`."""
    with _locked(fcntl.LOCK_EX):
        yield


@contextmanager
def _locked(kind: int) -> Iterator[None]:
    with _LOCK.open("w") as file:
        fcntl.flock(file, kind)
        try:
            yield
        finally:
            # Processes that were forked in the block have the file, too: closing it would not end the lock.
            fcntl.flock(file, fcntl.LOCK_UN)
