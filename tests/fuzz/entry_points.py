"""Clients of the three entry points, as small as possible: HTTP with JSON, HTTP with pages, WebSocket."""

from __future__ import annotations

import asyncio
import html
import json
import re
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Any, ClassVar, NamedTuple

from call_requests import address, encode
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from dss_api.operation import Operation, Subscription

PATIENCE_S = 60.0
BAD_FRAME = 1007
_TAGS = re.compile(r"<[^>]*>")
_PROBLEM = re.compile(r"\{\s*\"type\": \"urn:dss:problem.*?\n\}", re.DOTALL)

#: The nodes have it, because calls without a token end when the fuzzer has made the first one.
TOKEN = "fuzz"
AUTHORIZATION = f"Bearer {TOKEN}"


class Reply(NamedTuple):
    """An answer. Status 0: the node closed the connection; the body says how."""

    status: int
    body: bytes
    #: the document; empty for a page without a problem
    document: dict[str, Any]


class EntryPoint(ABC):
    """One connection to a node, which is opened again when it is closed."""

    #: how many connections to each node
    connections: ClassVar[int]

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port

    @abstractmethod
    async def call(self, operation: Operation | Subscription, request: Any) -> Reply:
        """One call.

        Raises:
            OSError, EOFError, TimeoutError: no answer.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close the connection."""


class Http(EntryPoint):
    """The JSON fast path."""

    connections = 10
    accept = "application/json"

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None

    async def call(self, operation: Operation | Subscription, request: Any) -> Reply:
        assert isinstance(operation, Operation)
        path, body = address(operation, request)
        head = (
            f"{operation.method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {self.accept}\r\n"
            f"Authorization: {AUTHORIZATION}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        async with asyncio.timeout(PATIENCE_S):
            for attempt in (1, 2):
                if self._writer is None:
                    self._reader, self._writer = await asyncio.open_connection(self.host, self.port, limit=1 << 26)
                    attempt = 2
                try:
                    self._writer.write(head.encode() + body)
                    status, answer = await self._read()
                    return Reply(status, answer, self._document(answer))
                except (OSError, EOFError):
                    await self.close()
                    # The node may have closed an idle connection. A new one must be answered.
                    if attempt == 2:
                        raise
        raise AssertionError

    async def _read(self) -> tuple[int, bytes]:
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        headers = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        if headers.get(b"transfer-encoding") == b"chunked":
            body = b""
            while length := int(await self._reader.readline(), 16):
                body += await self._reader.readexactly(length)
                await self._reader.readline()
            await self._reader.readline()
        elif b"content-length" in headers:
            body = await self._reader.readexactly(int(headers[b"content-length"]))
        else:
            body = await self._reader.read()
        if headers.get(b"connection") == b"close":
            await self.close()
        return int(head.split(b" ", 2)[1]), body

    def _document(self, body: bytes) -> dict[str, Any]:
        return _json(body)

    async def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


class Pages(Http):
    """DRF's browsable API, as a browser calls it. A node shows 32 pages at a time."""

    connections = 2
    accept = "text/html,application/xhtml+xml"

    def _document(self, body: bytes) -> dict[str, Any]:
        """The problem that the page shows."""
        if body.startswith(b"{"):
            return _json(body)
        shown = _PROBLEM.search(html.unescape(_TAGS.sub("", body.decode(errors="replace"))))
        return _json(shown[0].encode()) if shown else {}


class WebSocket(EntryPoint):
    """The WebSocket entry point. A subscription is cancelled right after it was asked for."""

    connections = 8

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self._socket: ClientConnection | None = None
        self._number = 0

    async def call(self, operation: Operation | Subscription, request: Any) -> Reply:
        async with asyncio.timeout(PATIENCE_S):
            if self._socket is None:
                self._socket = await connect(
                    f"ws://{self.host}:{self.port}/ws",
                    max_size=None,
                    ping_interval=None,
                    additional_headers={"Authorization": AUTHORIZATION},
                )
            self._number += 1
            name = json.dumps(operation.name).encode()
            frame = b'{"id":%d,"op":%b,"request":%b}' % (self._number, name, encode(request))
            try:
                await self._socket.send(frame)
                if isinstance(operation, Subscription):
                    cancel = {"id": f"cancel {self._number}", "op": "cancel", "request": {"call": self._number}}
                    await self._socket.send(json.dumps(cancel))
                while True:
                    answer = await self._socket.recv(decode=False)
                    document = _json(answer)
                    if document.get("id") == self._number and "event" not in document:
                        return Reply(document["status"], answer, document)
            except ConnectionClosed as closed:
                await self.close()
                code = closed.rcvd.code if closed.rcvd is not None else 0
                return Reply(0, f"closed with {code}".encode(), {"close_code": code})

    async def close(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()


def _json(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        # For example a value that is nested more deeply than this client can read.
        return {}
    return document if isinstance(document, dict) else {}
