"""A request to the HTTP listener without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from http.client import HTTPResponse
from io import BytesIO
from typing import Any

from dss_api.host_check import HostCheck
from dss_api.http_connection import HttpConnection
from dss_api.http_limits import HttpLimits
from dss_api.http_listener import CheckPage, HttpListener
from dss_api.in_progress import InProgress
from dss_api.json_fast_path import JsonFastPath

Headers = Iterable[tuple[str, str]]

ANY_HOST = HostCheck(["*"])


class MemoryTransport(asyncio.Transport):
    """Keeps what is written. `changed` is set with each write, and at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.is_handed_over = False
        self.changed = asyncio.Event()
        self._is_closing = False

    def write(self, data: Any) -> None:
        self.written += data
        self.changed.set()

    def close(self) -> None:
        self._is_closing = True
        self.changed.set()

    abort = write_eof = close

    def is_closing(self) -> bool:
        return self._is_closing

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.1", 5) if name == "peername" else default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Do nothing."""

    def pause_reading(self) -> None:
        """Do nothing."""

    def resume_reading(self) -> None:
        """Do nothing."""


class _Socket:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> BytesIO:
        return BytesIO(self._data)


class _Taken:
    def __init__(self, transport: Any) -> None:
        transport.is_handed_over = True
        transport.close()
        self.abort = transport.abort


async def call(
    json: JsonFastPath,
    method: str,
    target: str,
    body: bytes,
    headers: Headers,
    limits: HttpLimits,
    is_host_allowed: HostCheck = ANY_HOST,
    page_prefixes: tuple[str, ...] = (),
    check_page: CheckPage = lambda method, path, headers, address: None,
) -> tuple[int, dict[str, str], bytes] | None:
    """Status, headers in lower case and body of the answer. None: the web server would answer."""

    def take_over(transport: Any, data: bytes, client: Any) -> Any:
        return _Taken(transport)

    listener = HttpListener(json, is_host_allowed, InProgress(), page_prefixes, limits, take_over, take_over, check_page)
    connection, transport = HttpConnection(listener), MemoryTransport()
    connection.connection_made(transport)
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "connection: close"]
    if body and not any(line.lower().startswith("content-length:") for line in lines):
        lines.append(f"content-length: {len(body)}")
    connection.data_received("\r\n".join((*lines, "", "")).encode("latin-1") + body)
    while not transport.is_closing():
        transport.changed.clear()
        await transport.changed.wait()
    connection.connection_lost(None)
    if transport.is_handed_over:
        return None
    response = HTTPResponse(_Socket(bytes(transport.written)), method=method)  # type: ignore[arg-type]
    response.begin()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
