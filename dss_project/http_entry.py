"""The entry point for HTTP requests: Host check, size limit, and the choice between JSON fast path, pages and files."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from django.conf import settings
from django.core.asgi import get_asgi_application
from prometheus_client import CONTENT_TYPE_LATEST, disable_created_metrics, generate_latest

from dss_api.codec import EncodedAnswer, encode_refusal, too_large
from dss_api.errors import Refused
from dss_api.host_check import WRONG_HOST, HostCheck
from dss_api.http_listener import CheckPage
from dss_api.in_progress import InProgress
from dss_api.json_fast_path import JsonFastPath, Receive, Scope, Send, address_of, send_answer
from dss_api.negotiation import is_page
from dss_api.proxies import NO_PROXIES, TrustedProxies
from dss_api.security_headers import NOSNIFF, PAGE_HEADERS, Header, with_headers

Application = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Pages for every client, whatever its Accept header says.
PAGES = ("/admin", "/api/", "/ui/", "/favicon.ico")
#: Paths that the web server answers, not the listener.
WEB_SERVER_PATHS = (*PAGES, "/metrics", settings.STATIC_URL)
#: Paths that need no token: the admin has its own login, and its files are the same on every node.
ALWAYS_OPEN = ("/admin", "/admin/", "/favicon.ico", settings.STATIC_URL)
#: Pages in progress. Each needs a thread, and a page of a call that waits keeps its thread until the call ends.
PAGES_MAX = 32
TOO_MANY_PAGES = Refused("overloaded", f"this node already shows {PAGES_MAX} pages")
#: Static files in progress. Each needs a thread until its client has read it.
FILES_MAX = 32
TOO_MANY_FILES = Refused("overloaded", f"this node is already sending {FILES_MAX} files")
# The `_created` series would double the page for little use.
disable_created_metrics()
METRICS_HEADERS = ((b"content-type", CONTENT_TYPE_LATEST.encode()), NOSNIFF)
#: Django's debug pages have scripts and styles in their HTML. Browsers only report what the policy forbids.
DEBUG_PAGE_HEADERS = tuple(
    (name.replace(b"-policy", b"-policy-report-only") if b"content-sec" in name else name, value) for name, value in PAGE_HEADERS
)


class HttpEntryPoint:
    """The ASGI application for HTTP.

    Args:
        body_bytes_max: longest body for Django's pages; the JSON fast path has its own check.
        check_page: refuses a request for a page before its body is read.
        proxies: whose headers say where requests come from.
        https_headers: headers for answers over HTTPS.
    """

    def __init__(
        self,
        json: JsonFastPath,
        is_host_allowed: HostCheck,
        in_progress: InProgress,
        body_bytes_max: int,
        check_page: CheckPage = lambda method, path, headers, address: None,
        proxies: TrustedProxies = NO_PROXIES,
        https_headers: tuple[Header, ...] = (),
    ) -> None:
        self._json = json
        self._check_page = check_page
        self._proxies = proxies
        self._https_headers = https_headers
        self.is_host_allowed = is_host_allowed
        self._body_bytes_max = body_bytes_max
        self._django: Application = get_asgi_application()
        self._static: Application | None = None
        self._pages = 0
        self._files = 0
        self._metrics_turn = asyncio.Lock()
        self.in_progress = in_progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        scope = self._proxies.scope(scope)
        address = address_of(scope)

        async def counted(message: dict[str, Any]) -> None:
            await send(message)
            self.in_progress.recount(client)

        answer = with_headers(counted, self._https_headers) if scope.get("scheme") == "https" else counted
        try:
            self.in_progress.admit(address)
        except Refused as refusal:
            await send_answer(answer, scope["method"], encode_refusal(refusal))
            return
        self.in_progress.calls += 1
        try:
            await self._open(scope, receive, answer)
        finally:
            self.in_progress.calls -= 1
            self.in_progress.release(address)

    async def _open(self, scope: Scope, receive: Receive, send: Send) -> None:
        content_length = host = accept = b""
        from_form = False
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
            elif name == b"accept":
                accept = value
            elif name == b"x-requested-with":
                from_form = value == b"XMLHttpRequest"
            elif name == b"content-length":
                content_length = value
        if host and not self.is_host_allowed(host):
            await send_answer(send, scope["method"], encode_refusal(WRONG_HOST))
            return
        path = scope["path"]
        is_json = path != "/metrics" and not path.startswith(settings.STATIC_URL) and not is_page(path, accept, from_form, PAGES)
        refusal = None if is_json else self._check_page(scope["method"], path, scope["headers"], address_of(scope))
        if refusal is not None:
            await send_answer(send, scope["method"], refusal)
        elif path == "/metrics":
            await send_answer(send, scope["method"], EncodedAnswer(200, await self._metrics_page(), METRICS_HEADERS))
        elif path.startswith(settings.STATIC_URL):
            await self._file(scope, receive, send)
        elif is_json:
            await self.in_progress.turns.enter(address_of(scope))
            await self._json(scope, receive, send)
        elif content_length.isdigit() and int(content_length) > self._body_bytes_max:
            await send_answer(send, scope["method"], encode_refusal(too_large(self._body_bytes_max)))
        elif self._pages >= PAGES_MAX:
            await send_answer(send, scope["method"], encode_refusal(TOO_MANY_PAGES))
        else:
            await self._page(scope, _limited(receive, self._body_bytes_max), send)

    async def _metrics_page(self) -> bytes:
        """Make the page. It takes some milliseconds, so at most one is made in a turn of the event loop."""
        async with self._metrics_turn:
            await asyncio.sleep(0)
            return generate_latest()

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Django runs each page in a thread of its own."""
        self._pages += 1
        try:
            await self._django(scope, receive, with_headers(send, DEBUG_PAGE_HEADERS if settings.DEBUG else PAGE_HEADERS))
        finally:
            self._pages -= 1

    async def _file(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._files >= FILES_MAX:
            await send_answer(send, scope["method"], encode_refusal(TOO_MANY_FILES))
            return
        self._files += 1
        try:
            await self._static_files()(scope, receive, with_headers(send, PAGE_HEADERS))
        finally:
            self._files -= 1

    def _static_files(self) -> Application:
        if self._static is None:
            from dss_console.static_files import static_files

            self._static = static_files(self._django)
        return self._static


def _limited(receive: Receive, bytes_max: int) -> Receive:
    """A client whose body exceeds the limit, without a Content-Length, is treated as disconnected."""
    size = 0

    async def limited() -> dict[str, Any]:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        return message if size <= bytes_max else {"type": "http.disconnect"}

    return limited
