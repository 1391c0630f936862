"""Every operation with every scope through every entry point: allowed, or 403.

The operations come from the registry. A new one fails here until it is in `ALLOWED`, which says independently of the code who may call it.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
from django.test import Client, override_settings

from dss_api import guard as guards
from dss_api.host_check import HostCheck
from dss_api.http_limits import HttpLimits
from dss_api.http_listener import HttpListener
from dss_api.in_progress import InProgress
from dss_api.json_fast_path import JsonFastPath
from dss_api.operation import Operation, Subscription
from dss_api.page_access import PageAccess
from dss_api.rights import AREAS, PLAIN
from dss_api.routes import split_path
from dss_api.websocket import WebSocketEntryPoint
from dss_console.browsable_api import views_of
from dss_console.pages import page_patterns
from dss_dev.access_world import REACHED, FakeBook, make_guard, stubbed, stubbed_subscriptions
from dss_project.http_entry import ALWAYS_OPEN

#: operation -> the kinds of scopes of which one is enough; "*": any token, "-": no token
ALLOWED = {
    "health": "-",
    "ready": "-",
    "raft.status": "read",
    "raft.leader": "*",
    "raft.start_election": "cluster",
    "raft.transfer": "cluster",
    "raft.log": "cluster",
    "raft.skip": "cluster",
    "raft.save_snapshot": "cluster",
    "raft.read_snapshot": "cluster",
    "raft.add_member": "cluster",
    "raft.remove_member": "cluster",
    "raft.limits": "read",
    "raft.set_limits": "cluster",
    "tokens.list": "",
    "tokens.create": "",
    "tokens.rotate": "",
    "tokens.revoke": "",
    "users.list": "",
    "users.create": "",
    "users.change": "",
    "users.sign_out": "",
    "users.delete": "",
    "audit.list": "read",
    "requests.open": "*",
    "requests.close": "*",
    "locks.acquire": "locks",
    "locks.release": "locks",
    "locks.renew": "locks",
    "locks.session_start": "any_locks",
    "locks.session_renew": "any_locks",
    "locks.session_close": "any_locks",
    "locks.check": "read locks",
    "locks.status": "read locks",
    "locks.graph": "read",
    "locks.force_release": "operate",
    "locks.audit": "read",
    "locks.watch": "read locks",
    "locks.session": "any_locks",
    "cluster.watch": "read",
    "queue.publish": "queue:publish",
    "queue.consume": "queue:consume",
    "queue.ack": "queue:consume",
    "queue.nack": "queue:consume",
    "queue.extend": "queue:consume",
    "queue.stats": "read queue:publish queue:consume queue:manage",
    "queue.peek": "queue:consume queue:manage",
    "queue.topic": "operate queue:manage",
    "queue.topic_delete": "operate queue:manage",
    "queue.group": "queue:consume queue:manage",
    "queue.group_delete": "operate queue:manage",
    "queue.settings": "operate",
    "queue.redrive": "operate queue:manage",
    "queue.purge": "operate queue:manage",
    "queue.subscribe": "queue:consume",
    "cache.put": "cache:write",
    "cache.get": "cache:read",
    "cache.get_query": "cache:read",
    "cache.delete": "cache:write",
    "cache.add": "cache:write",
    "cache.incr": "cache:write",
    "cache.touch": "cache:write",
    "cache.mdelete": "cache:write",
    "cache.clear": "cache:write",
    "cache.mget": "cache:read",
    "cache.mput": "cache:write",
    "cache.evict": "cache:write",
    "cache.lines": "read cache:read",
    "cache.trace": "read cache:read",
    "cache.stats": "read",
    "cache.near": "any_cache:read",
}
#: the beginnings of all names in the examples, by area
PREFIXES = {"locks": ("example/",), "queue": ("example/",), "cache": ("example/",)}
#: of no example
ELSEWHERE = "example0"

Scopes = tuple[str, ...]


def scope_of(area: str, prefix: str, action: str) -> str:
    return f"{area}:{prefix}:{action}" if action else f"{area}:{prefix}"


def tokens() -> dict[str, Scopes]:
    """Kind of scope -> the scopes of a token. For each right with a prefix: one that fits, an empty prefix, and one that does not fit."""
    found: dict[str, Scopes] = {scope: (scope,) for scope in PLAIN}
    for area, actions in AREAS.items():
        for action in actions:
            kind = f"{area}:{action}" if action else area
            found[kind] = tuple(scope_of(area, prefix, action) for prefix in PREFIXES[area])
            found[f"{kind} everywhere"] = (scope_of(area, "", action),)
            found[f"{kind} elsewhere"] = (scope_of(area, ELSEWHERE, action),)
    return found


TOKENS = tokens()


def is_allowed(operation: str, kind: str) -> bool:
    allowed = ALLOWED[operation].split()
    base, _, where = kind.partition(" ")
    if kind == "all" or allowed in (["*"], ["-"]):
        return True
    if allowed and allowed[0].startswith("any_"):
        return base == allowed[0].removeprefix("any_")
    return base in allowed and where != "elsewhere"


def example_of(operation: Operation | Subscription) -> dict[str, Any]:
    """A request that is complete; most operations declare one."""
    return operation.example


NODE = SimpleNamespace(node_id="node-1", unusable_reason="")


class World:
    """The entry points over stubbed operations, and one token of each kind."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        book = FakeBook()
        self.headers = {kind: book.add(*scopes).header for kind, scopes in TOKENS.items()}
        self.guard = make_guard(book)
        self.operations = stubbed()
        self.json = JsonFastPath(self.operations, lambda: NODE, self.guard)
        self.in_progress = InProgress()
        self.hosts = HostCheck(["localhost", "testserver"])
        self.port = self.run(self._listen())
        self.websocket = WebSocketEntryPoint(self.json, self.hosts, self.in_progress, stubbed_subscriptions())

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    async def _listen(self) -> int:
        pages = PageAccess(self.guard, self.json.routes, ALWAYS_OPEN, "session", login="/admin/login/")
        limits = HttpLimits(body_bytes_max=4096, connections_max=100, connections_per_address_max=100)

        def no_page(*given: Any) -> Any:
            raise AssertionError("the web server would answer this")

        self.listener = HttpListener(self.json, self.hosts, self.in_progress, ("/admin",), limits, no_page, no_page, pages)
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        await self.listener.accept(listening)
        return int(listening.getsockname()[1])

    async def close(self) -> None:
        self.listener.stop_accepting()
        await self.listener.close(1.0)

    # ------------------------------------------------------------- calls: the status, and the code if it is a problem

    def by_listener(self, requests: list[tuple[str, str, bytes, str]]) -> list[str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        codes = []
        for method, target, body, header in requests:
            connection.request(method, target, body or None, _headers(body, header))
            codes.append(_code(connection.getresponse().read()))
        connection.close()
        return codes

    def by_page(self, requests: list[tuple[str, str, bytes, str]]) -> list[str]:
        codes = []
        for method, target, body, header in requests:
            headers = _headers(body, header)
            content_type = headers.pop("Content-Type", "")
            answer = Client(headers=headers).generic(method, target, body, content_type=content_type)
            codes.append(_code(answer.content))
        return codes

    def by_websocket(self, frames: list[tuple[str, dict[str, Any]]], header: str) -> list[str]:
        async def ask_all() -> list[str]:
            inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
            outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
            headers = [(b"host", b"localhost"), (b"authorization", header.encode())]
            inbox.put_nowait({"type": "websocket.connect"})
            scope = {"type": "websocket", "path": "/ws", "headers": headers, "client": ("192.0.2.1", 5)}
            serving = asyncio.create_task(self.websocket(scope, inbox.get, outbox.put))
            assert (await outbox.get())["type"] == "websocket.accept"
            for number, (op, request) in enumerate(frames):
                inbox.put_nowait({"type": "websocket.receive", "text": json.dumps({"id": number, "op": op, "request": request})})
            answers = [json.loads((await outbox.get())["text"]) for _ in frames]
            inbox.put_nowait({"type": "websocket.disconnect", "code": 1000})
            await serving
            return [answer["code"] for answer in sorted(answers, key=lambda answer: answer["id"])]

        return self.run(ask_all())


def _headers(body: bytes, header: str) -> dict[str, str]:
    headers = {"Host": "localhost", "Accept": "application/json"}
    if header:
        headers["Authorization"] = header
    return {**headers, "Content-Type": "application/json"} if body else headers


def _code(body: bytes) -> str:
    return str(msgspec.json.decode(body)["code"])


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    made = World(loop)
    urls = ModuleType("access_urls")
    urls.urlpatterns = [*page_patterns, *views_of(made.operations)]  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch, override_settings(ROOT_URLCONF=urls):
        patch.setattr(guards, "_shared", made.guard)
        patch.setattr("dss_api.running.node", lambda: NODE)
        patch.setattr("dss_api.running.loop", lambda: loop)
        yield made
    made.run(made.close())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def http_request(operation: Operation) -> tuple[str, str, bytes]:
    """Method, target and body of a complete request."""
    example = dict(example_of(operation))
    prefix, parameter = split_path(operation.path)
    path = prefix + str(example.pop(parameter)) if parameter else prefix
    if operation.method in ("GET", "DELETE"):
        return operation.method, f"{path}?{urlencode(example)}" if example else path, b""
    return operation.method, path, json.dumps(example).encode()


def expected(operation: str, kind: str) -> str:
    return REACHED if is_allowed(operation, kind) else "forbidden"


def test_the_table_has_every_operation() -> None:
    assert set(ALLOWED) == {one.name for one in (*stubbed(), *stubbed_subscriptions())}


@pytest.mark.parametrize("entry_point", ["by_listener", "by_page"])
def test_http(world: World, entry_point: str) -> None:
    cases = [(operation, kind) for operation in world.operations for kind in TOKENS]
    requests = [(*http_request(operation), world.headers[kind]) for operation, kind in cases]
    codes = getattr(world, entry_point)(requests)
    wrong = [
        (operation.name, kind, code)
        for (operation, kind), code in zip(cases, codes, strict=True)
        if code != expected(operation.name, kind)
    ]
    assert wrong == []


@pytest.mark.parametrize("kind", TOKENS)
def test_websocket(world: World, kind: str) -> None:
    frames = [(one.name, example_of(one)) for one in (*world.operations, *stubbed_subscriptions())]
    codes = world.by_websocket(frames, world.headers[kind])
    wrong = [(name, code) for (name, _), code in zip(frames, codes, strict=True) if code != expected(name, kind)]
    assert wrong == []


@pytest.mark.parametrize("header", ["", "Bearer ", "Bearer wrong", "Basic YTpi", f"Bearer dss1_0123456789ab_{'0' * 64}"])
@pytest.mark.parametrize("entry_point", ["by_listener", "by_page"])
def test_without_a_valid_token(world: World, entry_point: str, header: str) -> None:
    requests = [(*http_request(operation), header) for operation in world.operations]
    codes = getattr(world, entry_point)(requests)
    for operation, code in zip(world.operations, codes, strict=True):
        assert code == (REACHED if ALLOWED[operation.name] == "-" else "unauthenticated"), operation.name
