"""A child process copies the state as it was at the call, while the parent continues to change it."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from dss_raft.disk.forked import IS_AVAILABLE, ChildFailed, write_in_child

pytestmark = pytest.mark.skipif(
    not IS_AVAILABLE, reason="this system has no fork() or no pidfd_open(): snapshots are taken in line"
)


async def test_the_copy_has_the_state_at_the_call(tmp_path):
    state = ["before"]
    path = tmp_path / "copy"
    writing = asyncio.create_task(write_in_child(lambda: state[0].encode(), path))
    await asyncio.sleep(0)
    state[0] = "after"
    await writing
    assert path.read_text() == "before"


async def test_a_child_that_fails_is_an_error_and_not_a_short_file(tmp_path):
    with pytest.raises(ChildFailed):
        await write_in_child(lambda: 1 / 0, tmp_path / "copy")


async def test_the_child_does_not_keep_the_connections_of_its_parent_open(tmp_path):
    held = asyncio.Event()

    async def serve(reader, writer):
        await held.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())

    def encode_until_told() -> bytes:
        while not (tmp_path / "told").exists():
            pass
        return b"x"

    child = asyncio.create_task(write_in_child(encode_until_told, tmp_path / "copy"))
    await asyncio.sleep(0)
    held.set()
    assert await reader.read() == b"", "the child holds no copy of the connection"
    (tmp_path / "told").touch()
    await child
    writer.close()
    server.close()


def children() -> set[str]:
    """The children of this process that are still running, or whose status was not collected."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.fixture
def until_collected() -> Callable[[], Coroutine[Any, Any, None]]:
    """Wait until the children of this test are gone. Those of earlier tests in this process do not matter."""
    before = children()

    async def wait() -> None:
        while children() - before:  # noqa: ASYNC110  (there is no event for it)
            await asyncio.sleep(0.01)

    return wait


async def test_a_child_that_hangs_is_killed(tmp_path, until_collected):
    def hang() -> bytes:
        while True:
            signal.pause()

    with pytest.raises(ChildFailed, match="did not end"):
        await write_in_child(hang, tmp_path / "copy", timeout_s=0.05)
    await until_collected()


async def test_a_writer_that_gives_up_leaves_no_child(tmp_path, until_collected):
    writing = asyncio.create_task(write_in_child(signal.pause, tmp_path / "copy"))
    await asyncio.sleep(0)
    writing.cancel()
    await asyncio.wait([writing])
    await until_collected()


async def test_without_descriptors_there_is_no_child(tmp_path, monkeypatch, until_collected):
    def no_descriptors(pid: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", no_descriptors)
    with pytest.raises(ChildFailed, match="Too many open files"):
        await write_in_child(signal.pause, tmp_path / "copy")
    await until_collected()


async def test_without_memory_there_is_no_child(tmp_path, monkeypatch):
    def no_memory() -> int:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(os, "fork", no_memory)
    with pytest.raises(ChildFailed, match="Cannot allocate memory"):
        await write_in_child(lambda: b"x", tmp_path / "copy")
