"""A consistent copy of large state without blocking the event loop: a forked child encodes it from copy-on-write memory.

The child does not use the event loop. It closes every inherited file first (otherwise a client's connection, or the lock on the
data directory, would outlive the parent). It runs no garbage collection, encodes, writes, syncs, and exits without clean-up.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path

IS_AVAILABLE = hasattr(os, "fork") and hasattr(os, "pidfd_open")


#: Encoding and writing takes seconds for gigabytes. A child that takes longer hangs.
CHILD_TIMEOUT_S = 300.0
#: How long a killed child may take to end before its parent continues without its status.
KILL_TIMEOUT_S = 1.0


class ChildFailed(Exception):
    """The child did not finish its file: for example, it had no memory or no disk space, or it hung and was killed."""


async def write_in_child(encode: Callable[[], bytes], path: Path, timeout_s: float = CHILD_TIMEOUT_S) -> None:
    """Write the present result of `encode()` to `path`, in a child process.

    Raises:
        ChildFailed: `path` is not complete.
    """
    await Child(encode, path).ended(timeout_s)


class Child:
    """A child process that writes the result of `encode()` to `path`. It sees the state at the moment of its start.

    Await `ended`, or call `kill`.

    Args:
        sync: the file must survive a crash of the machine.

    Raises:
        ChildFailed: it cannot be started.
    """

    def __init__(self, encode: Callable[[], bytes], path: Path, *, sync: bool = True) -> None:
        # An earlier child that could not be killed may still have the file open: use another one.
        path.unlink(missing_ok=True)
        self._path = path
        try:
            self._pid = os.fork()
        except OSError as error:
            raise ChildFailed(f"cannot start a child process: {error.strerror}") from None
        if self._pid == 0:
            _run_child(encode, path, sync)
        try:
            self._descriptor = os.pidfd_open(self._pid)
        except OSError as error:
            os.kill(self._pid, signal.SIGKILL)
            _collect_later(self._pid)
            raise ChildFailed(f"cannot watch the child process: {error.strerror}") from None

    async def ended(self, timeout_s: float = CHILD_TIMEOUT_S) -> None:
        """Wait until the file is complete.

        Raises:
            ChildFailed: it is not. A child that takes too long is killed.
        """
        try:
            status = await _ended(self._pid, self._descriptor, timeout_s)
        finally:
            self._close()
        if status != 0:
            raise ChildFailed(f"the child process that writes {self._path.name} ended with status {status}")

    def kill(self) -> None:
        """Give up, unless `ended` was called."""
        if self._descriptor >= 0:
            os.kill(self._pid, signal.SIGKILL)
            _collect_later(self._pid)
            self._close()

    def _close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1


def _run_child(encode: Callable[[], bytes], path: Path, sync: bool) -> None:
    status = 1
    try:
        gc.disable()
        os.closerange(0, max(65_536, os.sysconf("SC_OPEN_MAX")))
        data = encode()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        if sync:
            os.fsync(descriptor)
        status = 0
    finally:
        os._exit(status)


async def _ended(pid: int, descriptor: int, timeout_s: float) -> int:
    """Wait until the child has ended. Returns its status.

    Raises:
        ChildFailed: it was killed because it took too long.
    """
    try:
        if not await _is_over(descriptor, timeout_s):
            os.kill(pid, signal.SIGKILL)
            await _is_over(descriptor, KILL_TIMEOUT_S)
            raise ChildFailed(f"the child process did not end within {timeout_s:g} s and was killed")
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        _collect_later(pid)
        raise
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])  # noqa: ASYNC222  (the child has ended: this only collects its status)


async def _is_over(descriptor: int, timeout_s: float) -> bool:
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, lambda: None if over.done() else over.set_result(None))
    try:
        return bool((await asyncio.wait([over], timeout=timeout_s))[0])
    finally:
        loop.remove_reader(descriptor)


def _collect_later(pid: int) -> None:
    """Collect the status of a killed child, once it has ended: a process that waits for a disk cannot be killed immediately."""
    if os.waitpid(pid, os.WNOHANG)[0] == 0:
        asyncio.get_running_loop().call_later(KILL_TIMEOUT_S, _collect_later, pid)
