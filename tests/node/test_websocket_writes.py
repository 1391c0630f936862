"""A WebSocket writes the messages of one turn of the event loop together, and keeps the order of frames."""

from __future__ import annotations

import asyncio

import pytest
import uvicorn
from uvicorn.server import ServerState
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from dss_api.client_memory import ClientMemory
from dss_api.http_listener import Client
from dss_api.turns import InputTurns
from dss_project.server.websockets import GATHERED_BYTES, NodeWebSocket

HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closing = False

    def write(self, data: bytes) -> None:
        self.writes.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None:
        self.closing = True


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """(opcode, payload) of each frame that a server has sent."""
    reader = StreamReader()
    reader.feed_data(data)
    found = []
    while reader.buffer:
        parser = Frame.parse(reader.read_exact, mask=False)
        try:
            while True:
                next(parser)
        except StopIteration as end:
            found.append((int(end.value.opcode), bytes(end.value.data)))
    return found


class Line:
    """A connection whose application sends what a test tells it."""

    async def open(self) -> None:
        self.is_accepted = asyncio.Event()
        config = uvicorn.Config(
            self.application, lifespan="off", log_config=None, ws_per_message_deflate=False, interface="asgi3"
        )
        config.load()
        self.transport = Transport()
        client = Client("127.0.0.1", ClientMemory().open(lambda: None), InputTurns(), lambda: None)
        self.protocol = NodeWebSocket(config, ServerState(), client)
        self.protocol.connection_made(self.transport)
        self.protocol.take_input(HANDSHAKE)
        await self.is_accepted.wait()
        self.transport.writes.clear()

    async def application(self, scope, receive, send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        self.is_accepted.set()
        await receive()

    async def send(self, text: str) -> None:
        await self.protocol.send({"type": "websocket.send", "text": text})


@pytest.fixture
async def line():
    line = Line()
    await line.open()
    yield line
    line.protocol.connection_lost(None)


async def test_the_answers_of_one_turn_leave_in_one_write(line):
    """A hundred tasks answer in the same turn: as after a log entry with a hundred commands."""
    go = asyncio.Event()

    async def call(number: int) -> None:
        await go.wait()
        await line.send(f"answer {number}")

    calls = [asyncio.create_task(call(number)) for number in range(100)]
    await asyncio.sleep(0)
    go.set()
    await asyncio.wait(calls)
    await asyncio.sleep(0)
    (written,) = line.transport.writes
    assert frames(written) == [(Opcode.TEXT, b"answer %d" % number) for number in range(100)]


async def test_a_ping_and_the_close_frame_do_not_overtake_messages(line):
    await line.send("first")
    line.protocol.ping()
    await line.send("second")
    await line.protocol.send({"type": "websocket.close", "code": 1001})
    sent = frames(b"".join(line.transport.writes))
    assert [payload for _, payload in sent[:3]] == [b"first", b"", b"second"]
    assert [opcode for opcode, _ in sent] == [Opcode.TEXT, Opcode.PING, Opcode.TEXT, Opcode.CLOSE]


async def test_much_in_one_turn_is_written_immediately(line):
    """So the transport learns of it, and pauses the senders of a client that does not read."""
    await line.send("x" * GATHERED_BYTES)
    assert len(line.transport.writes) == 1


async def test_nothing_is_written_to_a_connection_that_was_lost_in_the_turn(line):
    await line.send("late")
    line.transport.close()
    await asyncio.sleep(0)
    assert line.transport.writes == []
