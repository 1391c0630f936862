"""A consistent copy of large state without blocking the event loop: a forked child encodes it from copy-on-write memory.

The child does not use the event loop. It closes every inherited file first (otherwise a client's connection, or the lock on the
data directory, would outlive the parent). It runs no garbage collection, encodes, writes, syncs, and exits without clean-up.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable
from pathlib import Path

IS_AVAILABLE = hasattr(os, "fork") and hasattr(os, "pidfd_open")


class ChildFailed(Exception):
    """The child did not complete its file (no memory, or no space on the disk)."""


async def write_in_child(encode: Callable[[], bytes], path: Path) -> None:
    """Write the present result of `encode()` to `path`, in a child process.

    Raises:
        ChildFailed: `path` is not complete.
    """
    try:
        pid = os.fork()
    except OSError as error:
        raise ChildFailed(f"cannot start a child process: {error.strerror}") from None
    if pid == 0:
        _run_child(encode, path)
    status = await _ended(pid)
    if status != 0:
        raise ChildFailed(f"the child process that writes {path.name} ended with status {status}")


def _run_child(encode: Callable[[], bytes], path: Path) -> None:
    status = 1
    try:
        gc.disable()
        os.closerange(0, 65_536)
        data = encode()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
        status = 0
    finally:
        os._exit(status)


async def _ended(pid: int) -> int:
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(pid)
    ended: asyncio.Future[None] = loop.create_future()
    try:
        loop.add_reader(descriptor, lambda: None if ended.done() else ended.set_result(None))
        await asyncio.shield(ended)
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        if not ended.done():
            os.kill(pid, 9)
        status = os.waitpid(pid, 0)[1]  # noqa: ASYNC222  (the child has ended: this only collects its status)
    return os.waitstatus_to_exitcode(status)
