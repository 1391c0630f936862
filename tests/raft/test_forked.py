"""A child process copies the state as it was at the call, while the parent continues to change it."""

from __future__ import annotations

import asyncio

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
