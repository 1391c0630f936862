"""The ASGI application for what the listener hands over: pages, metrics and static files.

The listener has checked the request and read its body. Its calls of the API never come here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from django.conf import settings
from django.core.asgi import get_asgi_application

from dss_api.asgi import Receive, Scope, Send, address_of, connection_of, send_answer
from dss_api.codec import encode_refusal
from dss_api.errors import Refused
from dss_api.in_progress import InProgress
from dss_api.proxies import NO_PROXIES, TrustedProxies
from dss_api.security_headers import PAGE_HEADERS, Header, with_headers
from dss_project.metrics_page import PATH as METRICS_PATH
from dss_project.metrics_page import MetricsPage

Application = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Pages for every client, whatever its Accept header says.
PAGES = ("/admin", "/api/", "/ui/", "/favicon.ico")
#: Paths that the web server answers, not the listener.
WEB_SERVER_PATHS = (*PAGES, METRICS_PATH, settings.STATIC_URL)
ANOTHER_SERVER = (
    "start a node with `manage.py node` (DSS_SERVER=uvicorn for uvicorn): "
    "another ASGI server has neither Raft nor the limits of a node"
)
#: Paths that need no token: the admin has its own login, and its files are the same on every node.
ALWAYS_OPEN = ("/admin", "/admin/", "/favicon.ico", settings.STATIC_URL)
#: Pages in progress. Each needs a thread, and a page of a call that waits keeps its thread until the call ends.
PAGES_MAX = 32
TOO_MANY_PAGES = Refused("overloaded", f"this node already shows {PAGES_MAX} pages")
#: Static files in progress. Each needs a thread until its client has read it.
FILES_MAX = 32
TOO_MANY_FILES = Refused("overloaded", f"this node is already sending {FILES_MAX} files")
#: Django's debug pages have scripts and styles in their HTML. Browsers only report what the policy forbids.
DEBUG_PAGE_HEADERS = tuple(
    (name.replace(b"-policy", b"-policy-report-only") if b"content-sec" in name else name, value) for name, value in PAGE_HEADERS
)


class HttpEntryPoint:
    """The ASGI application for HTTP.

    Args:
        proxies: whose headers say where requests come from.
        https_headers: headers for answers over HTTPS.
    """

    def __init__(
        self,
        in_progress: InProgress,
        proxies: TrustedProxies = NO_PROXIES,
        https_headers: tuple[Header, ...] = (),
    ) -> None:
        self._proxies = proxies
        self._https_headers = https_headers
        self._django: Application = get_asgi_application()
        self._static: Application | None = None
        self._pages = 0
        self._files = 0
        self._metrics = MetricsPage()
        self.in_progress = in_progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = connection_of(scope)
        if connection is None:
            await send_answer(send, scope["method"], encode_refusal(Refused("not_ready", ANOTHER_SERVER)))
            return
        scope = self._proxies.scope(scope)
        address = address_of(scope)

        async def counted(message: dict[str, Any]) -> None:
            await send(message)
            connection.recount()

        answer = with_headers(counted, self._https_headers) if scope.get("scheme") == "https" else counted
        try:
            self.in_progress.call_begins(address)
        except Refused as refusal:
            await send_answer(answer, scope["method"], encode_refusal(refusal))
            return
        try:
            await self._answer(scope, receive, answer)
        finally:
            self.in_progress.call_ended(address)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == METRICS_PATH:
            await send_answer(send, scope["method"], await self._metrics())
        elif path.startswith(settings.STATIC_URL):
            await self._file(scope, receive, send)
        elif self._pages >= PAGES_MAX:
            await send_answer(send, scope["method"], encode_refusal(TOO_MANY_PAGES))
        else:
            await self._page(scope, receive, send)

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
        if self._static is None:
            from dss_console.static_files import static_files

            self._static = static_files(self._django)
        self._files += 1
        try:
            await self._static(scope, receive, with_headers(send, PAGE_HEADERS))
        finally:
            self._files -= 1


async def refuse_to_start(scope: Scope, receive: Receive, send: Send) -> None:
    """The ASGI application for `lifespan`: another server than that of `manage.py node` starts."""
    await receive()
    await send({"type": "lifespan.startup.failed", "message": ANOTHER_SERVER})
