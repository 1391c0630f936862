"""The JSON fast path: calls go straight from the ASGI server to an operation.

It bypasses Django's handler, middleware and DRF, whose thread switches cost more than everything else that a node does for a call. So
nothing here may use the ORM, a session or the disk. The code that all entry points share is in routes.py, codec.py, guard.py and
problems.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from time import perf_counter
from typing import Any

from dss_api.caller import ANYONE, Caller
from dss_api.codec import EncodedAnswer, encode_refusal, too_large
from dss_api.errors import Refused
from dss_api.guard import TOKEN_ENDED, Guard, check_origin
from dss_api.operation import Operation
from dss_api.routes import Route, Routes, not_allowed, require_possible
from dss_api.supervised import report_if_failed

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

#: After a call has taken this long, its client is watched for a disconnect. Watching costs more than a quick call.
WATCH_AFTER_S = 0.05
#: How much of a body that is too large is read and discarded before the call is answered.
DISCARDED_BYTES_MAX = 64 * 1024 * 1024


class JsonFastPath:
    """An ASGI application for the HTTP calls of the API.

    Args:
        find_node: returns the running node, or raises `Refused("stopping")`.
        body_bytes_max: longest request body.
    """

    def __init__(self, operations: Iterable[Operation], find_node: Callable[[], Any], guard: Guard, body_bytes_max: int) -> None:
        self.routes = Routes(operations)
        self.find_node = find_node
        self.guard = guard
        self._body_bytes_max = body_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        methods, parameter = self.routes.find(scope["path"])
        method = scope["method"]
        route = methods.get("GET" if method == "HEAD" else method) if methods else None
        if route is None:
            await send_answer(send, method, nothing_there(scope["path"], method, methods))
            return
        call = _Call(receive, self.guard)
        try:
            answer = await self._answer(route, parameter, scope, call)
            if answer.undo is not None and await call.has_ended():
                route.observe(499, perf_counter() - started)
                await answer.undo()
                return
            call.end()
            route.observe(answer.status, perf_counter() - started)
            await send_answer(send, method, answer)
        except asyncio.CancelledError:
            call.end()
            if call.is_revoked:
                await send_answer(send, method, encode_refusal(Refused("unauthenticated", TOKEN_ENDED)))
            elif not call.hung_up:
                raise
            route.observe(401 if call.is_revoked else 499, perf_counter() - started)

    async def _answer(self, route: Route, parameter: str, scope: Scope, call: _Call) -> EncodedAnswer:
        try:
            content_type, call.authorization, caller = self.check_headers(route, scope["headers"], address_of(scope))
            decoder = route.decoder
            if decoder.reads_query:
                request = decoder.query(scope["query_string"], {route.path_parameter: parameter} if parameter else None)
            else:
                request = decoder.typed_body(content_type, await call.body(self._body_bytes_max))
                # The body may have taken a while.
                caller = self.authenticate(route, call.authorization)
        except Refused as refusal:
            if refusal.code == "too_large":
                await call.discard_body()
            return encode_refusal(refusal)
        call.watch(not route.outlives_tokens)
        return await route.carry_out(self.find_node, request, caller, "http", address_of(scope), scope["headers"])

    def check_headers(self, route: Route, headers: Iterable[tuple[bytes, bytes]], address: str) -> tuple[bytes, bytes, Caller]:
        """Check token, origin and declared length in one pass. Returns the content type, the authorization, and the caller.

        Raises:
            Refused: `unauthenticated`, `forbidden`, `too_large`, `over_limit`.
        """
        content_type = authorization = origin = host = b""
        for name, value in headers:
            if name == b"content-type":
                content_type = value
            elif name == b"authorization":
                authorization = value
            elif name == b"origin":
                origin = value
            elif name == b"host":
                host = value
            elif name == b"content-length" and value.isdigit() and int(value) > self._body_bytes_max:
                raise too_large(self._body_bytes_max)
        caller = self.authenticate(route, authorization, address)
        if caller is not ANYONE:
            require_possible(route.needs, caller)
        if origin and route.changes:
            check_origin(origin, host)
        return content_type, authorization, caller

    def authenticate(self, route: Route, authorization: bytes, address: str | None = None) -> Caller:
        """Who makes the call. See `Guard.authenticate`.

        Raises:
            Refused: `unauthenticated`, `over_limit`.
        """
        return ANYONE if self.guard.is_open or not route.guarded else self.guard.authenticate(authorization, address)


class _Call:
    """A call in progress: its body, and whether its client is still there."""

    __slots__ = (
        "_ends_with_token",
        "_guard",
        "_has_more",
        "_receive",
        "_task",
        "_timer",
        "_unwatch",
        "_watcher",
        "authorization",
        "hung_up",
        "is_revoked",
    )

    def __init__(self, receive: Receive, guard: Guard) -> None:
        self._receive = receive
        self._guard = guard
        self._ends_with_token = False
        self._unwatch: Callable[[], Any] | None = None
        self.authorization = b""
        #: the token of the call has ended
        self.is_revoked = False
        self._has_more = True
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.hung_up = False

    async def body(self, bytes_max: int) -> bytes:
        """The whole body.

        Raises:
            Refused: `too_large`; the rest of the body has not been received then.
        """
        body = await self._next_chunk()
        if self._has_more:
            chunks = [body]
            size = len(body)
            while self._has_more and size <= bytes_max:
                chunks.append(await self._next_chunk())
                size += len(chunks[-1])
            body = b"".join(chunks)
        if len(body) > bytes_max:
            raise too_large(bytes_max)
        return body

    async def discard_body(self) -> None:
        """Receive the rest of the body, up to a limit: many clients read the answer only after they have sent the whole body."""
        size = 0
        while self._has_more and size < DISCARDED_BYTES_MAX:
            size += len(await self._next_chunk())

    async def _next_chunk(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._gone()
        self._has_more = message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        return chunk

    def _gone(self) -> None:
        self.hung_up = True
        raise asyncio.CancelledError

    def watch(self, ends_with_token: bool) -> None:
        """Cancel this task when the client hangs up or its token ends, checked from `WATCH_AFTER_S` on: the node removes its waiter."""
        loop = asyncio.get_running_loop()
        self._ends_with_token = ends_with_token
        self._task = asyncio.current_task(loop)
        self._timer = loop.call_later(WATCH_AFTER_S, self._begin_watching)

    def _begin_watching(self) -> None:
        if self._ends_with_token:
            self._unwatch = self._guard.watch(self._tokens_changed)
            self._tokens_changed()
        self._watcher = asyncio.create_task(self._watch())
        self._watcher.add_done_callback(partial(report_if_failed, "http_call"))

    def _tokens_changed(self) -> None:
        if not self.is_revoked and not self._guard.is_valid(self.authorization):
            self.is_revoked = True
            assert self._task is not None
            self._task.cancel()

    async def has_ended(self) -> bool:
        """Whether the client has hung up, even in a call too quick to be watched."""
        if self._watcher is None:
            self._begin_watching()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if not self.hung_up:
                raise
        return self.hung_up

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.hung_up = True
        assert self._task is not None
        self._task.cancel()

    def end(self) -> None:
        if self._unwatch is not None:
            self._unwatch()
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()


def nothing_there(path: str, method: str, methods: dict[str, Any] | None) -> EncodedAnswer:
    if methods is None:
        return encode_refusal(Refused("not_found", f"there is nothing at {path}"))
    return not_allowed(method, methods)


async def send_answer(send: Send, method: str, answer: EncodedAnswer) -> None:
    """Send a whole answer; for HEAD without its body."""
    body = answer.payload
    headers = [*answer.headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})


def address_of(scope: Scope) -> str:
    """The client's address; "": it has none."""
    address: str = (scope.get("client") or ("",))[0]
    return address
