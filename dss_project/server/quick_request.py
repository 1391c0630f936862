"""Daphne's request, with the same checks and the same scope, at half the cost.

Daphne and Twisted run a Deferred generator, a regular expression per header, a set per header value and, for a POST, the parser
for e-mail headers; and they word two log entries that nobody reads. What is rare (an upgrade to WebSocket, a header that is not
right) is left to Daphne.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

from daphne.http_protocol import HTTPFactory, WebRequest
from daphne.utils import HEADER_NAME_RE, INVALID_HEADER_VALUE_BYTES
from twisted.web.http import HTTPFactory as TwistedFactory
from twisted.web.http import Request

_INVALID_VALUE_BYTES = bytes(INVALID_HEADER_VALUE_BYTES)
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_LEFT_TO_DAPHNE = frozenset((b"upgrade", b"daphne-root-path"))
#: Header names seen and found right, in lower case; a stranger who invents names does not fill the memory.
_names: dict[bytes, bytes] = {}
NAMES_MAX = 1000


class Inbox:
    """What an ASGI application receives: the part of asyncio.Queue that one reader needs."""

    __slots__ = ("_messages", "_reader")

    def __init__(self) -> None:
        self._messages: deque[dict[str, Any]] = deque()
        self._reader: asyncio.Future[None] | None = None

    def put_nowait(self, message: dict[str, Any]) -> None:
        self._messages.append(message)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def get(self) -> dict[str, Any]:
        while not self._messages:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        return self._messages.popleft()


class QuickRequest(WebRequest):  # type: ignore[misc]
    """One request on a connection."""

    def __init__(self, channel: Any, *args: Any) -> None:
        # Twisted would read every POST's content type with the parser for e-mail, and forms before anybody asked.
        super().__init__(channel, *args, parsePOSTFormSubmission=False)

    def process(self) -> Any:
        headers = self._headers()
        if headers is None or not self.uri.isascii():
            return super().process()
        self.request_start = time.time()
        self.client_addr = [self.client.host, self.client.port]
        self.server_addr = [self.host.host, self.host.port]
        self.client_scheme = "http"
        path = self.path.decode()
        self.query_string = self.uri.partition(b"?")[2]
        scope = {
            "type": "http",
            "http_version": self.clientproto.rpartition(b"/")[2].decode(),
            "method": self.method.decode(),
            "path": unquote(path) if "%" in path else path,
            "raw_path": self.path,
            "root_path": "",
            "scheme": "http",
            "query_string": self.query_string,
            "headers": headers,
            "client": self.client_addr,
            "server": self.server_addr,
        }
        self.content.seek(0)
        body = self.content.read()
        self.application_queue = self.server.create_application(self, scope)
        self.application_queue.put_nowait({"type": "http.request", "body": body, "more_body": False})
        return None

    def _headers(self) -> list[tuple[bytes, bytes]] | None:
        """The scope's headers; None when Daphne should look at this request itself."""
        headers = []
        for name, values in self.requestHeaders.getAllRawHeaders():
            lower = _names.get(name)
            if lower is None:
                lower = name.lower()
                if lower in _LEFT_TO_DAPHNE or not HEADER_NAME_RE.fullmatch(name):
                    return None
                if b"_" in name:
                    # CVE-2015-0219: it would pass for the header with a dash.
                    continue
                if len(_names) < NAMES_MAX:
                    _names[name] = lower
            for value in values:
                if len(value.translate(None, _INVALID_VALUE_BYTES)) != len(value):
                    return None
                headers.append((lower, value))
        return headers

    def handle_reply(self, message: dict[str, Any]) -> None:
        if self.finished or self.channel is None:
            return
        if message["type"] == "http.response.start":
            self._response_started = True
            status = message["status"]
            self.setResponseCode(status, _REASONS.get(status, b"Unknown"))
            add = self.responseHeaders.addRawHeader
            for name, value in message.get("headers", ()):
                add(name, value)
            return
        if not self._response_started:
            raise ValueError(f"the answer begins with {message['type']}")
        Request.write(self, message.get("body", b""))
        if not message.get("more_body"):
            self.finish()


class QuickFactory(HTTPFactory):  # type: ignore[misc]
    """Makes a connection's protocol."""

    def buildProtocol(self, address: Any) -> Any:
        protocol: Any = TwistedFactory.buildProtocol(self, address)
        protocol.requestFactory = QuickRequest
        return protocol

    def log(self, request: Any) -> None:
        """Twisted words a line of access log for every call, and then has nowhere to write it."""
