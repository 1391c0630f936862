"""When the machine's network interfaces change, Chromium fails the requests that it is making (`ERR_NETWORK_CHANGED`).

So tests with a browser and clusters with interfaces of their own, in whatever process, wait for each other.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dss_dev.file_lock import locked

_LOCK = Path(tempfile.gettempdir()) / f"dss-network-{os.getuid()}.lock"


@contextmanager
def no_changes() -> Iterator[None]:
    """No interface is added or removed in this block. Several processes can be in such a block."""
    with locked(_LOCK, is_shared=True):
        yield


@contextmanager
def changing() -> Iterator[None]:
    """This block adds or removes interfaces. It waits until no process is in a block of `no_changes`."""
    with locked(_LOCK):
        yield
