"""A WebSocket's client that does not read is bounded in bytes and in time, and ends its own connection only."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from dss_api import websocket_writer
from dss_api.client_memory import SHORT_ANSWER_BYTES, ClientMemory
from dss_api.feed import WebSocketFeed
from dss_api.supervised import FAILURES
from dss_api.websocket_writer import OVERHEAD_BYTES, WebSocketWriter

PATIENCE_S = 60


class Line:
    """The server's side of a connection. Its client reads when the test lets it."""

    def __init__(self, bytes_max: int = 100_000) -> None:
        self.sent: list[dict[str, Any]] = []
        self.reads = asyncio.Event()
        self.given_up = asyncio.Event()
        self.aborted = 0
        self.memory = ClientMemory()
        account = self.memory.open(self.given_up.set)
        self.writer = WebSocketWriter(self.send, self.abort, self.given_up.set, account, bytes_max)

    async def send(self, message: dict[str, Any]) -> None:
        await self.reads.wait()
        self.sent.append(message)

    def abort(self) -> None:
        self.aborted += 1

    async def is_given_up(self) -> bool:
        async with asyncio.timeout(PATIENCE_S):
            await self.given_up.wait()
        return True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket_writer, "CLOSE_GRACE_S", 0.02)


async def test_messages_that_were_read_do_not_count() -> None:
    line = Line()
    line.reads.set()
    for _ in range(1000):
        assert await line.writer.write(b"x" * 1000, True)
    assert (line.writer.unread_bytes, len(line.sent), line.writer.is_open) == (0, 1000, True)


async def test_a_client_over_the_limit_is_closed_with_1008_and_aborted() -> None:
    line = Line()
    writes = [asyncio.create_task(line.writer.write(b"x" * 1000, True)) for _ in range(200)]
    assert await line.is_given_up()
    assert line.aborted == 1
    assert line.writer.unread_bytes <= 100_000
    # A message that was accepted still waits in the server's `send`, which returns after the abort.
    line.reads.set()
    assert not all(await asyncio.gather(*writes))


async def test_a_long_answer_is_not_kept_before_the_memory_of_ended_connections_is_free() -> None:
    """Calls that waited for the same event are answered in one turn of the event loop, in which no connection is closed."""
    line = Line(bytes_max=1 << 30)
    line.memory.bytes_max = 4 * SHORT_ANSWER_BYTES
    other = line.memory.open(lambda: None)
    other.take(line.memory.bytes_max + 1)
    assert line.memory.ending
    line.reads.set()
    assert await line.writer.write(b"x" * SHORT_ANSWER_BYTES, True)
    assert not line.given_up.is_set()
    assert not await line.writer.write(b"x" * (SHORT_ANSWER_BYTES + 1), True)
    assert await line.is_given_up()
    assert len(line.sent) == 1


async def test_a_client_that_reads_again_gets_the_reason() -> None:
    line = Line()
    writes = [asyncio.create_task(line.writer.write(b"x" * 1000, True)) for _ in range(200)]
    await asyncio.sleep(0)
    line.reads.set()
    await asyncio.gather(*writes)
    assert await line.is_given_up()
    assert {"type": "websocket.close", "code": 1008} in line.sent


async def test_long_answers_wait_for_each_other() -> None:
    line = Line(100_000)
    answers = [asyncio.create_task(line.writer.write(b"x" * length, True)) for length in (60_000, 120_000, 40_000, 40_000, 10)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert line.writer.unread_bytes == 60_000 + 10 + 2 * OVERHEAD_BYTES
    assert line.memory.bytes == 260_010 + 2 * OVERHEAD_BYTES, "those that wait count as the client's, too"
    line.reads.set()
    assert await asyncio.gather(*answers) == [True] * 5
    assert (line.writer.unread_bytes, line.memory.bytes, line.given_up.is_set()) == (0, 0, False)


async def test_a_long_answer_does_not_outlast_the_connection() -> None:
    line = Line(100_000)
    answers = [asyncio.create_task(line.writer.write(b"x" * 60_000, True)) for _ in range(2)]
    for _ in range(5):
        await asyncio.sleep(0)
    line.writer.close()
    assert not await answers[1]
    answers[0].cancel()


async def test_small_messages_count_with_their_overhead() -> None:
    line = Line()
    kept = 0
    while line.writer.keep(1):
        kept += 1
    assert kept <= 100_000 // OVERHEAD_BYTES


async def test_a_client_that_reads_nothing_for_long_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket_writer, "STALLED_S_MAX", 0.02)
    line = Line()
    write = asyncio.create_task(line.writer.write(b"x", True))
    assert await line.is_given_up()
    assert line.aborted == 1
    line.reads.set()
    assert not await write


async def test_a_slow_client_that_reads_stays_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket_writer, "STALLED_S_MAX", 0.05)
    line = Line()
    looked = 0
    look = line.writer._look_for_progress

    def count() -> None:
        nonlocal looked
        looked += 1
        look()

    line.writer._look_for_progress = count  # type: ignore[method-assign]
    waiting = asyncio.create_task(line.writer.write(b"held", True))
    while looked < 3:
        line.writer._sent += 1  # another message has left
        await asyncio.sleep(0.005)
    assert line.writer.is_open
    line.reads.set()
    assert await waiting
    line.writer.close()


async def test_what_the_server_takes_at_once_needs_no_task() -> None:
    line = Line()
    now: list[bytes] = []
    is_writable = True
    line.writer._send_now = lambda data, is_text: is_writable and not now.append(data)
    encoder: Any = SimpleNamespace(name="demo", encode=lambda event, attaches: (b"{}", []))
    liveness: Any = None
    feed = WebSocketFeed(line.writer, liveness, 1, True, encoder, line.given_up.set)
    event = msgspec.defstruct("Event", [])()
    feed.push(event)
    assert await line.writer.write(b"answer", True)
    assert (len(now), feed._sender, line.writer.unread_bytes, line.memory.bytes) == (2, None, 0, 0)
    is_writable = False
    feed.push(event)
    feed.push(event)
    is_writable = True
    feed.push(event)
    assert (len(now), feed.backlog) == (2, 3), "in order: nothing overtakes what waits"
    line.reads.set()
    await feed.drained()
    assert (len(line.sent), line.writer.unread_bytes) == (3, 0)
    feed.end()
    line.writer.close()
    assert not line.writer.write_now(b"late", True)


async def test_an_event_that_cannot_be_sent_ends_its_subscription() -> None:
    line = Line()

    async def fail(message: dict[str, Any]) -> None:
        raise RuntimeError("a fault of this program")

    line.writer._send = fail
    ended = asyncio.Event()
    liveness: Any = None
    encoder: Any = SimpleNamespace(name="demo", encode=lambda event, attaches: (b"{}", []))
    feed = WebSocketFeed(line.writer, liveness, 1, True, encoder, ended.set)
    before = FAILURES.labels("websocket")._value.get()
    feed.push(msgspec.defstruct("Event", [])())
    async with asyncio.timeout(PATIENCE_S):
        await ended.wait()
        await feed.drained()
    assert feed.refusal is not None
    assert feed.refusal.code == "internal"
    assert FAILURES.labels("websocket")._value.get() == before + 1
    feed.end()
    assert (feed.backlog, line.writer.unread_bytes) == (0, 0)


async def test_a_fault_while_a_client_is_given_up_is_counted() -> None:
    line = Line()

    async def fail(message: dict[str, Any]) -> None:
        raise RuntimeError("a fault of this program")

    line.writer._send = fail
    before = FAILURES.labels("websocket")._value.get()
    while line.writer.keep(1000):
        pass
    assert await line.is_given_up()
    await asyncio.sleep(0)
    assert line.aborted == 1
    assert FAILURES.labels("websocket")._value.get() == before + 1
