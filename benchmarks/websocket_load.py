"""Load on one WebSocket of a node, for `compare_http.py`: a fixed number of calls is in progress all the time.

A small client of its own: a library would need more time for a frame than the node needs for the call.
"""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
import struct
import time
from collections.abc import Callable
from typing import cast

import msgspec
from bench_http import HOST, KEYS, VALUE, Load

TOPICS = [f"bench-{number}" for number in range(8)]

TEXT, CLOSE = 0x81, 0x88
LENGTH_16, LENGTH_64 = 126, 127
#: a client's frames are masked; with this key the masked text is the text
NO_MASK = bytes(4)

#: the next call of a place among the calls in progress, from the place and the count of its calls: an operation and its request
Calls = Callable[[int, int], tuple[str, object]]


def lock_calls(place: int, number: int) -> tuple[str, object]:
    operation = "locks.release" if number % 2 else "locks.acquire"
    return operation, {"key": f"bench-{place}", "client": f"client-{place}"}


def publish_calls(place: int, number: int) -> tuple[str, object]:
    return "queue.publish", {"topic": TOPICS[place % len(TOPICS)], "value": VALUE}


def put_calls(place: int, number: int) -> tuple[str, object]:
    return "cache.put", {"key": f"bench-{place}-{number % KEYS}", "value": VALUE}


def get_calls(place: int, number: int) -> tuple[str, object]:
    return "cache.get", {"key": f"hit-{(place + number) % KEYS}"}


SCENARIOS: dict[str, Calls] = {"ws-lock": lock_calls, "ws-publish": publish_calls, "ws-put": put_calls, "ws-get": get_calls}


class Answer(msgspec.Struct):
    """What the load reads of an answer: the place of its call, and its status."""

    id: int
    status: int


class OneWebSocket(asyncio.Protocol):
    """A client that sends the next call after each answer; the calls that follow one read are sent in one write."""

    def __init__(self, calls: Calls, in_progress: int, load: Load) -> None:
        self.calls = calls
        self.load = load
        self.buffer = bytearray()
        self.is_open = False
        self.counts = [0] * in_progress
        self.sent_at = [0.0] * in_progress
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        key = base64.b64encode(os.urandom(16)).decode()
        head = f"GET /ws HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self.transport.write(f"{head}Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.is_open:
            self.read_frames()
        elif (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            if not self.buffer.startswith(b"HTTP/1.1 101 "):
                self.transport.close()
                return
            del self.buffer[: end + 4]
            self.is_open = True
            self.transport.write(b"".join(self.call(place) for place in range(len(self.counts))))

    def call(self, place: int) -> bytes:
        operation, request = self.calls(place, self.counts[place])
        self.counts[place] += 1
        self.sent_at[place] = time.perf_counter()
        text = msgspec.json.encode({"id": place, "op": operation, "request": request})
        size = len(text)
        # 0x80: the frame is masked.
        head = struct.pack("!BB", TEXT, 0x80 | size) if size < LENGTH_16 else struct.pack("!BBH", TEXT, 0x80 | LENGTH_16, size)
        return head + NO_MASK + text

    def read_frames(self) -> None:
        now = time.perf_counter()
        calls: list[bytes] = []
        at, held = 0, bytes(self.buffer)
        while (frame := one_frame(held, at)) is not None:
            kind, start, at = frame
            if kind == TEXT:
                answer = msgspec.json.decode(held[start:at], type=Answer)
                self.load.answered(now - self.sent_at[answer.id], answer.status == 200)
                if now < self.load.end:
                    calls.append(self.call(answer.id))
            elif kind == CLOSE:
                self.transport.close()
        del self.buffer[:at]
        if calls:
            self.transport.write(b"".join(calls))
        if now >= self.load.end and not self.finished.done():
            self.finished.set_result(None)
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.finished.done():
            self.load.errors += 1
            self.finished.set_result(None)


def one_frame(data: bytes, at: int) -> tuple[int, int, int] | None:
    """The kind of the frame at this place of the data, where its content starts, and where it ends; None: it is not complete."""
    if len(data) < at + 2:
        return None
    size, start = data[at + 1], at + 2
    if size == LENGTH_16:
        size, start = int.from_bytes(data[start : start + 2]), start + 2
    elif size == LENGTH_64:
        size, start = int.from_bytes(data[start : start + 8]), start + 8
    return (data[at], start, start + size) if len(data) >= start + size else None


async def run(port: int, calls: Calls, in_progress: int, seconds: float, tls: ssl.SSLContext | None = None) -> tuple[Load, float]:
    """Send load as long as `seconds`; what it measured, and how long it took, s."""
    began = time.perf_counter()
    load = Load(began + seconds)
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: OneWebSocket(calls, in_progress, load), HOST, port, ssl=tls)
    await client.finished
    return load, time.perf_counter() - began
