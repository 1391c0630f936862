"""A small demo API behind the entry points, over a fake node whose event loop runs in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Annotated, Any
from unittest.mock import Mock

import msgspec
import pytest
from django.conf import settings
from django.test import Client, override_settings

from dss_api import guard as guards
from dss_api import running
from dss_api.answer import Answer, RaftIndex
from dss_api.asgi import state_of
from dss_api.errors import Refused
from dss_api.fields import Fields, Name, OptionalName, WaitMs, check_name
from dss_api.guard import Guard
from dss_api.host_check import HostCheck
from dss_api.http_limits import HttpLimits
from dss_api.in_progress import InProgress
from dss_api.json_fast_path import JsonFastPath
from dss_api.operation import Operation
from dss_api.page_access import PageAccess
from dss_api.result import Result
from dss_api.rights import ANY_TOKEN, OPEN, Need
from dss_console.browsable_api import views_of
from dss_console.live.answers import ClusterEvent
from dss_console.live.judgement import Facts, MemberFacts, judge
from dss_console.live.requests import WatchCluster
from dss_console.live.view import SERVICE
from dss_console.pages import page_patterns
from dss_dev import in_memory_http
from dss_project.http_entry import ALWAYS_OPEN, WEB_SERVER_PATHS, HttpEntryPoint
from dss_raft.replication.commands import Command

BODY_BYTES_MAX = 4096


class Item(msgspec.Struct, forbid_unknown_fields=True):
    name: Name
    size: Annotated[int, msgspec.Meta(ge=0)] = 0


class Put(Command, tag="demo.put"):
    key: Name
    value: msgspec.Raw
    ttl_ms: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 100
    force: bool = False
    note: OptionalName = ""
    items: Annotated[list[Item], msgspec.Meta(max_length=3)] = []

    def __post_init__(self) -> None:
        check_name("key", self.key)
        if self.key == "both" and self.note:
            raise ValueError("`note` does not go with this `key`")


class Get(Fields):
    key: Name
    tags: list[str] = []
    limit: Annotated[int, msgspec.Meta(ge=1, le=10)] = 10


class Wait(Fields):
    wait_ms: WaitMs = 0


class Refuse(Fields):
    code: str


class Remove(Fields):
    id: Name


class PutAnswer(Answer, kw_only=True):
    key: str
    value: msgspec.Raw
    ttl_ms: int
    force: bool
    index: RaftIndex


class GetAnswer(Answer, kw_only=True):
    key: str
    tags: list[str]
    limit: int


class RemoveAnswer(Answer, kw_only=True):
    id: str
    index: RaftIndex


class FakeLiveView:
    """What the pages need of a live view."""

    def glance(self, request: WatchCluster) -> ClusterEvent:
        members = [MemberFacts("node-1", "http://127.0.0.1:8201", False, False, 0, None)]
        facts = Facts("node-1", 0, members, term=3, leader="node-1", leaderless_ms=0, leader_since_ms=0, election_ms_max=300)
        found = judge(facts)
        return ClusterEvent(
            kind="state", node="node-1", at_ms=0, at="00:00:00", verdict=found.verdict, checks=found.checks, nodes=found.nodes
        )

    async def look(self, request: WatchCluster) -> ClusterEvent:
        return self.glance(request)


@dataclass
class FakeNode:
    """What the demo operations leave behind."""

    node_id: str = "node-1"
    unusable_reason: str = ""
    cancelled: list[str] = field(default_factory=list)
    waiting: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def services(self) -> dict[str, Any]:
        return {SERVICE: FakeLiveView()}

    def status(self) -> dict[str, Any]:
        members = [{"id": "node-1", "url": "http://127.0.0.1:8201", "learner": False, "up": True, "outdated": False}]
        state = {"code": 2, "name": "LEADER"}
        return {
            "node": "node-1",
            "term": 3,
            "state": state,
            "leader_id": "node-1",
            "commit_index": 9,
            "last_applied": 9,
            "members": members,
        }


async def put(node: FakeNode, request: Put) -> Result:
    await asyncio.sleep(0)
    return Result({"key": request.key, "value": request.value, "ttl_ms": request.ttl_ms, "force": request.force}, index=7)


async def get(node: FakeNode, request: Get) -> GetAnswer:
    return GetAnswer(key=request.key, tags=request.tags, limit=request.limit)


async def wait(node: FakeNode, request: Wait) -> Answer:
    node.waiting.set()
    try:
        await asyncio.sleep(request.wait_ms / 1000)
    except asyncio.CancelledError:
        node.cancelled.append("wait")
        raise
    return Answer()


async def refuse(node: FakeNode, request: Refuse) -> Result:
    if request.code == "bug":
        raise RuntimeError("a bug")
    if request.code == "held":
        return Result({"holders": ["a"], "detail": "held by a"}, code="held", index=9)
    raise Refused(request.code, "as asked", after=3)


async def remove(node: FakeNode, request: Remove) -> Result:
    return Result({"id": request.id}, index=8)


def _operation(
    name: str,
    method: str,
    path: str,
    request: Any,
    handle: Any,
    answer: type[Answer] = Answer,
    needs: Need = ANY_TOKEN,
    **more: Any,
) -> Operation:
    return Operation(
        name=name,
        method=method,
        path=path,
        request=request,
        handle=handle,
        answer=answer,
        needs=needs,
        summary=f"Do {name}",
        tag="Demo",
        **more,
    )


DEMO = (
    _operation("demo.put", "POST", "/demo/put", Put, put, PutAnswer, example={"key": "colour", "value": {"is": "blue"}}),
    _operation("demo.get", "GET", "/demo/get", Get, get, GetAnswer, example={"key": "colour"}),
    _operation("demo.get_post", "POST", "/demo/get", Get, get, GetAnswer, example={"key": "colour"}),
    _operation("demo.wait", "POST", "/demo/wait", Wait, wait),
    _operation("demo.refuse", "POST", "/demo/refuse", Refuse, refuse, problems=("held",)),
    _operation("demo.remove", "DELETE", "/demo/things/{id}", Remove, remove, RemoveAnswer),
    _operation("demo.open", "GET", "/open", Wait, wait, needs=OPEN),
)


@pytest.fixture
def demo_operations() -> tuple[Operation, ...]:
    return DEMO


@pytest.fixture(scope="session")
def node_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The loop of a node, in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def fake_node(node_loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    node = FakeNode()
    monkeypatch.setattr(running, "node", lambda: node)
    monkeypatch.setattr(running, "loop", lambda: node_loop)
    return node


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0]


def scope_of(method: str, path: str, query: str = "", headers: dict[str, str] | None = None) -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("127.0.0.1", 8201),
        "state": state_of(Mock()),
    }


async def call(application: Any, scope: dict[str, Any], *chunks: bytes) -> Reply:
    """One request to an ASGI application; the client stays until it is answered."""
    messages = [
        {"type": "http.request", "body": chunk, "more_body": number < len(chunks) - 1}
        for number, chunk in enumerate(chunks or (b"",))
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await application(scope, receive, send)
    headers = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    return Reply(sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:]))


class EntryPoints:
    """The entry points for HTTP, and calls through each of them."""

    def __init__(
        self,
        json_fast_path: JsonFastPath,
        http: HttpEntryPoint,
        hosts: HostCheck,
        limits: HttpLimits,
        page_access: PageAccess,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.json_fast_path = json_fast_path
        self.http = http
        self.is_host_allowed = hosts
        self._limits = limits
        self._page_access = page_access
        self._loop = loop

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def call_json(
        self, method: str, path: str, *, query: str = "", body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Reply:
        """Through the listener and the JSON fast path."""
        reply = self._by_listener(method, path, query, body, headers, ())
        assert reply is not None
        return reply

    def _by_listener(
        self, method: str, path: str, query: str, body: bytes, headers: dict[str, str] | None, pages: tuple[str, ...]
    ) -> Reply | None:
        target = f"{path}?{query}" if query else path
        given = _with_type(headers, body).items()
        answer = self.run(
            in_memory_http.call(
                self.json_fast_path, method, target, body, given, self._limits, self.is_host_allowed, pages, self._page_access
            )
        )
        return None if answer is None else Reply(*answer)

    def call_http(
        self, method: str, path: str, *, query: str = "", body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Reply:
        """Through the listener, and the HTTP entry point if it is a page."""
        reply = self._by_listener(method, path, query, body, headers, WEB_SERVER_PATHS)
        return reply or self.run(call(self.http, scope_of(method, path, query, _with_type(headers, body)), body))

    def call_drf(
        self, method: str, path: str, *, query: str = "", body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Reply:
        """Through Django and DRF."""
        given = _with_type(headers, body)
        content_type = given.pop("Content-Type", "")
        response = Client(headers={"Host": "testserver", **given}).generic(
            method, path + (f"?{query}" if query else ""), body, content_type=content_type
        )
        return Reply(response.status_code, {name.lower(): value for name, value in response.items()}, response.content)

    def call_both(self, method: str, path: str, **request: Any) -> Reply:
        """Assert that JSON fast path and DRF agree in status, media type and document, and return their reply."""
        json, drf = self.call_json(method, path, **request), self.call_drf(method, path, **request)
        assert (json.status, json.media_type, json.body) == (drf.status, drf.media_type, drf.body)
        for header in ("allow", "retry-after", "www-authenticate"):
            assert json.headers.get(header) == drf.headers.get(header)
        return json


def _with_type(headers: dict[str, str] | None, body: bytes) -> dict[str, str]:
    return {"Content-Type": "application/json", **(headers or {})} if body else dict(headers or {})


@pytest.fixture
def make_entry_points(fake_node: FakeNode, node_loop: asyncio.AbstractEventLoop) -> Iterator[Any]:
    """Make the entry points; `token` is DSS_API_TOKEN."""
    urls = ModuleType("demo_urls")
    urls.urlpatterns = [*page_patterns, *views_of(DEMO)]  # type: ignore[attr-defined]
    with override_settings(ROOT_URLCONF=urls), pytest.MonkeyPatch.context() as patch:

        def make(token: str = "", body_bytes_max: int = BODY_BYTES_MAX, calls_per_address_max: int = 100) -> EntryPoints:
            config = replace(settings.NODE, api_token=token, body_bytes_max=body_bytes_max)
            patch.setattr(settings, "NODE", config)
            guard = Guard(token)
            patch.setattr(guards, "_shared", guard)
            json = JsonFastPath(DEMO, lambda: fake_node, guard)
            http = HttpEntryPoint(InProgress(calls_per_address_max))
            hosts, limits = HostCheck(["localhost", "testserver"]), HttpLimits(body_bytes_max=body_bytes_max)
            page_access = PageAccess(guard, json.routes, ALWAYS_OPEN, settings.SESSION_COOKIE_NAME, login="/admin/login/")
            return EntryPoints(json, http, hosts, limits, page_access, node_loop)

        yield make


@pytest.fixture
def entry_points(make_entry_points: Any) -> EntryPoints:
    return make_entry_points()
