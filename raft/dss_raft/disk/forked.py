"""A consistent copy of large state without stopping the loop: a forked child encodes it, from memory shared copy-on-write.

The child belongs to nobody's loop: it closes every inherited file at once (else a client's connection, or the lock on the data
directory, would outlive the parent), runs no garbage collection, encodes, writes, syncs, and ends without any clean-up.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable
from pathlib import Path

IS_AVAILABLE = hasattr(os, "fork") and hasattr(os, "pidfd_open")


class ChildFailed(Exception):
    """The child did not finish its file (no memory, no space on the disk)."""


async def write_in_child(encode: Callable[[], bytes], path: Path) -> None:
    """Have `encode()`, as of now, written to `path` by a child process.

    Raises:
        ChildFailed: `path` is not complete.
    """
    try:
        pid = os.fork()
    except OSError as error:
        raise ChildFailed(f"no child process can be had: {error.strerror}") from None
    if pid == 0:
        _be_the_child(encode, path)
    status = await _ended(pid)
    if status != 0:
        raise ChildFailed(f"the process that writes {path.name} ended with status {status}")


def _be_the_child(encode: Callable[[], bytes], path: Path) -> None:
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
        status = os.waitpid(pid, 0)[1]  # noqa: ASYNC222  (it has ended: this only collects its status)
    return os.waitstatus_to_exitcode(status)
