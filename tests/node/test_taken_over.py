"""A connection that was handed over may be lost at any moment. Calls to it have no effect then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from django.conf import settings

from dss_api.client_memory import ClientMemory
from dss_api.http_listener import Client
from dss_api.turns import InputTurns
from dss_dev.in_memory_http import MemoryTransport
from dss_project.server.taken_over import PageConnection
from dss_project.server.websockets import WebSockets

HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)


async def application(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    await receive()


def websocket(transport: MemoryTransport, client: Client, more: bytes = b"") -> Any:
    return WebSockets(application, settings.NODE).open(transport, HANDSHAKE + more + b"\r\n", client)


def page(transport: MemoryTransport, client: Client) -> Any:
    return PageConnection(transport, client)


@pytest.mark.parametrize("make", [websocket, page])
async def test_a_lost_connection_can_be_called(make: Callable[..., Any]) -> None:
    memory = ClientMemory()
    client = Client("127.0.0.1", memory.open(lambda: None), InputTurns(), lambda: None)
    transport = MemoryTransport()
    connection = make(transport, client)
    transport.close()
    if make is websocket:
        connection.connection_lost(None)
        assert not connection.send_now(b"late", True)
        connection.ping()
        connection.take_input(b"x")
        connection.pause_input()
        connection.resume_input()
    connection.recount()
    connection.abort()
    connection.close()
    assert transport.is_closing()
    assert memory.bytes == 0


async def test_a_handshake_that_the_library_cannot_read_ends_the_connection() -> None:
    transport = MemoryTransport()
    websocket(
        transport,
        Client("127.0.0.1", ClientMemory().open(lambda: None), InputTurns(), lambda: None),
        b"a: %b\r\n" % (b"b" * 9000),
    )
    await asyncio.sleep(0)
    assert transport.is_closing()
