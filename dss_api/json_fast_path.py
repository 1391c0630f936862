"""The fast door: JSON calls straight from the ASGI server to an operation.

It goes past Django's handler, middleware and DRF, whose thread hops cost more than everything a node does for a call. So nothing
here may touch the ORM, a session or the disk. What both doors must agree on stands in codec.py, guard.py and problems.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from time import perf_counter
from typing import Any

import structlog
from prometheus_client import Histogram

from dss_api.codec import Answer, RequestDecoder, encode_refusal, encode_result
from dss_api.errors import Refused
from dss_api.guard import Guard, check_origin
from dss_api.operation import Operation

log = structlog.get_logger("api")

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

REQUEST_SECONDS = Histogram(
    "dss_request_seconds",
    "Time from a call's arrival to its answer, waiting included.",
    ["operation", "status"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30),
)

#: A client that hangs up is noticed from this long after its call began: quicker calls are not worth the watching.
WATCH_AFTER_S = 0.05
#: Of a body that is too large, so much is read and thrown away before the call is answered.
DISCARDED_BYTES_MAX = 64 * 1024 * 1024


class Route:
    """One operation with everything that can be prepared before its first call."""

    __slots__ = ("changes", "decoder", "guarded", "handle", "name", "observers", "path_parameter", "undo")

    def __init__(self, operation: Operation) -> None:
        self.name = operation.name
        self.handle = operation.handle
        self.undo = operation.undo
        self.guarded = operation.guarded
        self.changes = operation.method != "GET"
        self.decoder = RequestDecoder(operation)
        #: status -> the histogram's `observe`: looking a label up costs more than observing
        self.observers: dict[int, Callable[[float], None]] = {}
        _, self.path_parameter = split_path(operation.path)

    async def carry_out(self, find_node: Callable[[], Any], request: Any) -> Answer:
        """Have the operation done; a fault of its own is logged and answered, too."""
        try:
            node = find_node()
            result = await self.handle(node, request)
            answer = encode_result(result)
            if self.undo is None or result.code:
                return answer
            return answer._replace(undo=partial(self.undo, node, request, result))
        except Refused as refusal:
            return encode_refusal(refusal)
        except Exception:
            log.exception("api.failed", operation=self.name)
            return encode_refusal(Refused("internal", "this is a fault of the node; its log says more"))

    def observe(self, status: int, seconds: float) -> None:
        observe = self.observers.get(status)
        if observe is None:
            observe = self.observers[status] = REQUEST_SECONDS.labels(self.name, str(status)).observe
        observe(seconds)


def split_path(path: str) -> tuple[str, str]:
    """("/raft/members/", "id") of "/raft/members/{id}"; a path without a parameter comes back as it is, with ""."""
    prefix, brace, rest = path.partition("{")
    if not brace:
        return path, ""
    if not rest.endswith("}") or not prefix.endswith("/"):
        raise ValueError(f"a parameter must be the last part of a path: {path}")
    return prefix, rest[:-1]


class Routes:
    """Finds what is at a path."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._exact: dict[str, dict[str, Route]] = {}
        self._below: dict[str, dict[str, Route]] = {}
        self.by_name: dict[str, Route] = {}
        for operation in operations:
            prefix, parameter = split_path(operation.path)
            methods = (self._below if parameter else self._exact).setdefault(prefix, {})
            if operation.method in methods:
                raise ValueError(f"two operations at {operation.method} {operation.path}")
            methods[operation.method] = self.by_name[operation.name] = Route(operation)

    def find(self, path: str) -> tuple[dict[str, Route] | None, str]:
        """The routes at `path` by method, and what stands for the path's parameter."""
        methods = self._exact.get(path)
        if methods is None and self._below:
            prefix, _, last = path.rpartition("/")
            if last and (methods := self._below.get(f"{prefix}/")):
                return methods, last
        return methods, ""


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
        call = _Call(receive)
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
            if not call.hung_up:
                raise
            route.observe(499, perf_counter() - started)

    async def _answer(self, route: Route, parameter: str, scope: Scope, call: _Call) -> Answer:
        try:
            content_type = self.check_headers(route, scope["headers"])
            decoder = route.decoder
            if decoder.reads_query:
                request = decoder.query(scope["query_string"], {route.path_parameter: parameter} if parameter else None)
            else:
                body = await call.body(self._body_bytes_max)
                if body and content_type != b"application/json":
                    content_type = content_type.partition(b";")[0].strip().lower()
                    if content_type != b"application/json":
                        raise Refused("unsupported_media_type", "send the body as `Content-Type: application/json`")
                request = decoder.body(body)
        except Refused as refusal:
            if refusal.code == "too_large":
                await call.discard_body()
            return encode_refusal(refusal)
        call.watch()
        return await route.carry_out(self.find_node, request)

    def check_headers(self, route: Route, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """Check token, origin and declared length in one pass, and return the content type.

        Raises:
            Refused: `unauthenticated`, `forbidden`, `too_large`.
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
        if route.guarded:
            self.guard.check_token(authorization)
        if origin and route.changes:
            check_origin(origin, host)
        return content_type


class _Call:
    """A call in progress: its body, and whether its client is still there."""

    __slots__ = ("_has_more", "_receive", "_task", "_timer", "_watcher", "hung_up")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._has_more = True
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.hung_up = False

    async def body(self, bytes_max: int) -> bytes:
        """The whole body.

        Raises:
            Refused: `too_large`; the rest of the body is still to come then.
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
        """Take what is still to come, within reason: a client that cannot get rid of its body does not read the answer."""
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

    def watch(self) -> None:
        """From a while after now, cancel this task when the client hangs up: the node then takes its waiter away."""
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task(loop)
        self._timer = loop.call_later(WATCH_AFTER_S, self._begin_watching)

    def _begin_watching(self) -> None:
        self._watcher = asyncio.create_task(self._watch())

    async def has_ended(self) -> bool:
        """Whether the client has hung up by now, also in a call too quick to be watched."""
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
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()


def too_large(bytes_max: int) -> Refused:
    return Refused("too_large", f"the body is longer than {bytes_max} bytes")


def nothing_there(path: str, method: str, methods: dict[str, Any] | None) -> Answer:
    if methods is None:
        return encode_refusal(Refused("not_found", f"there is nothing at {path}"))
    return not_allowed(method, methods)


def not_allowed(method: str, methods: Iterable[str]) -> Answer:
    allowed = sorted({*methods, *(["HEAD"] if "GET" in methods else [])})
    refusal = Refused("method_not_allowed", f"{method} is not allowed here; use {' or '.join(m for m in allowed if m != 'HEAD')}")
    return encode_refusal(refusal, ((b"allow", ", ".join(allowed).encode()),))


async def send_answer(send: Send, method: str, answer: Answer) -> None:
    """Send a whole answer; its body stays here when HEAD asked for it."""
    status, body, headers, _ = answer
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})
