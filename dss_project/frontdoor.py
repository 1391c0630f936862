"""What comes before every door: the Host check, the size limit, and the choice of the door."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from django.conf import settings
from django.core.asgi import get_asgi_application
from prometheus_client import CONTENT_TYPE_LATEST, disable_created_metrics, generate_latest

from dss_project.api.codec import Answer, encode_refusal
from dss_project.api.lane import Lane, Receive, Scope, Send, send_answer, too_large
from dss_project.hosts import HostCheck
from dss_raft.errors import Refused

Application = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Django's for every client. What else there is, is the API's: a program that asks for nothing known gets a problem, not a page.
PAGES = ("/admin", "/api/", "/favicon.ico")
# A `_created` beside every counter and histogram doubles the page and tells nobody anything.
disable_created_metrics()
METRICS_HEADERS = ((b"content-type", CONTENT_TYPE_LATEST.encode()),)


class FrontDoor:
    """The ASGI application for HTTP.

    Args:
        body_bytes_max: longest body for Django's pages; the lane has its own check.
    """

    def __init__(self, lane: Lane, is_host_allowed: HostCheck, body_bytes_max: int) -> None:
        self._lane = lane
        self.is_host_allowed = is_host_allowed
        self._body_bytes_max = body_bytes_max
        self._django: Application = get_asgi_application()
        self._static: Application | None = None
        #: calls that are not answered yet, those of WebSockets included
        self.calls_under_way = 0
        #: those of WebSockets; they end when the node stops, and are not waited for as calls are
        self.subscriptions: set[asyncio.Task[None]] = set()
        #: how to close each WebSocket that is open
        self.sockets: set[Callable[[], Awaitable[None]]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls_under_way += 1
        try:
            await self._open(scope, receive, send)
        finally:
            self.calls_under_way -= 1

    async def end_subscriptions(self, timeout_s: float) -> None:
        """The node stops: have every subscription give back what it holds while there is still somebody to take it."""
        ending = list(self.subscriptions)
        for task in ending:
            cancel_once(task)
        if ending:
            await asyncio.wait(ending, timeout=timeout_s)

    async def close_sockets(self) -> None:
        """The node stops: tell WebSocket clients that it goes away, so that they need not guess why the connection ended."""
        await asyncio.gather(*(close() for close in self.sockets), return_exceptions=True)

    async def _open(self, scope: Scope, receive: Receive, send: Send) -> None:
        wants_page = False
        content_length = host = b""
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
            elif name == b"accept":
                wants_page = b"text/html" in value
            elif name == b"content-length":
                content_length = value
        if host and not self.is_host_allowed(host):
            refusal = Refused("invalid", "the Host header names no host of this node; see DSS_ALLOWED_HOSTS", field="Host")
            await send_answer(send, scope["method"], encode_refusal(refusal))
            return
        path = scope["path"]
        if path == "/metrics":
            await send_answer(send, scope["method"], Answer(200, generate_latest(), METRICS_HEADERS))
        elif path.startswith(settings.STATIC_URL):
            await self._static_files()(scope, receive, send)
        elif not wants_page and path != "/" and not path.startswith(PAGES):
            await self._lane(scope, receive, send)
        elif content_length.isdigit() and int(content_length) > self._body_bytes_max:
            await send_answer(send, scope["method"], encode_refusal(too_large(self._body_bytes_max)))
        else:
            await self._django(scope, _limited(receive, self._body_bytes_max), send)

    def _static_files(self) -> Application:
        if self._static is None:
            from dss_project.static_files import static_files

            self._static = static_files(self._django)
        return self._static


def cancel_once(task: asyncio.Task[None]) -> None:
    """Cancel, unless that was done before: what gives back in its `finally` is not disturbed."""
    if not task.cancelling():
        task.cancel()


def _limited(receive: Receive, bytes_max: int) -> Receive:
    """A client that sends more than it may, without saying so before, is treated as gone."""
    size = 0

    async def limited() -> dict[str, Any]:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        return message if size <= bytes_max else {"type": "http.disconnect"}

    return limited


async def lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    """Start and stop the node with a server that asks for it."""
    from dss_project import runtime

    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            try:
                await runtime.start(settings.NODE)
            except Exception as error:
                await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
                return
            await send({"type": "lifespan.startup.complete"})
        else:
            await runtime.stop()
            await send({"type": "lifespan.shutdown.complete"})
            return
