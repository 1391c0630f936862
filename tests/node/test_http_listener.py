"""The HTTP listener on a real socket: requests that it answers, hands over, or refuses before doing any work."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dss_api import http_listener
from dss_api.answer import Answer
from dss_api.client_memory import CALL_BYTES, CONNECTION_BYTES, ClientMemory, Share
from dss_api.fields import Fields
from dss_api.guard import Guard
from dss_api.host_check import HostCheck
from dss_api.http_limits import HttpLimits
from dss_api.http_listener import Client as TakenClient
from dss_api.http_listener import HttpListener
from dss_api.in_progress import InProgress
from dss_api.json_fast_path import JsonFastPath
from dss_api.operation import Operation
from dss_api.rights import ANY_TOKEN
from dss_api.supervised import FAILURES
from dss_api.tls import HANDSHAKES, ServerTls, TlsFiles
from dss_api.tls_transport import TLS_BYTES
from dss_project.certificates import make_authority, make_certificate

PATIENCE_S = 60
LIMITS = HttpLimits(body_bytes_max=4096)


class Echo(Fields):
    text: str = ""


class Echoed(Answer, kw_only=True):
    text: str


class Nothing(Fields):
    pass


@dataclass
class World:
    """A listener with operations that a test controls, and a web server that only records the connections it takes over."""

    port: int = 0
    listener: Any = None
    #: of the clients; None: plain HTTP
    tls: ssl.SSLContext | None = None
    in_progress: InProgress = field(default_factory=InProgress)
    handled: list[str] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)
    handed_over: list[bytes] = field(default_factory=list)
    #: calls of /wait end when it is set
    proceed: asyncio.Event = field(default_factory=asyncio.Event)
    #: their answers are so many times as long as their requests
    times: int = 1
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    given_back: asyncio.Event = field(default_factory=asyncio.Event)
    called: asyncio.Event = field(default_factory=asyncio.Event)

    async def echo(self, node: Any, request: Echo) -> Echoed:
        self.handled.append(request.text)
        self.called.set()
        return Echoed(text=request.text)

    async def wait(self, node: Any, request: Echo) -> Echoed:
        self.waiting.set()
        try:
            await self.proceed.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return Echoed(text=request.text * self.times)

    async def undo(self, node: Any, request: Echo, answer: Echoed) -> None:
        self.undone.append(request.text)
        self.given_back.set()

    def take_over(self, transport: asyncio.Transport, data: bytes, client: TakenClient) -> Any:
        self.handed_over.append(data)
        transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\npage")
        transport.close()
        return Taken(transport, client)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    @property
    def connection_bytes(self) -> int:
        """What an idle connection is counted as."""
        return CONNECTION_BYTES + (0 if self.tls is None else TLS_BYTES)

    def require_half_close(self) -> None:
        if self.tls is not None:
            pytest.skip("Python's TLS cannot close one side")

    async def connect(self) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls)
        return Client(reader, writer)


class Taken(asyncio.Protocol):
    def __init__(self, transport: asyncio.Transport, client: TakenClient) -> None:
        self.address = client.address
        self.account = client.account
        self._transport = transport
        self._share = Share(client.account)
        self._closed = client.closed
        transport.set_protocol(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._closed()

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def recount(self) -> None:
        self._share.set(self._transport.get_write_buffer_size())


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def call(self, path: str, body: Any = None, method: str = "POST", **headers: str) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
        if data:
            lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
        self.send("\r\n".join([*lines, "", ""]).encode() + data)

    async def answer(self) -> Response:
        async with asyncio.timeout(PATIENCE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            status, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
            return Response(int(status.split()[1]), headers, body)

    async def ends(self) -> bytes:
        """All bytes until the server closes the connection."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    directory = tmp_path_factory.mktemp("tls")
    authority, files = (directory / "ca.pem", directory / "ca.key"), (directory / "node.pem", directory / "node.key")
    make_authority(*authority)
    make_certificate(*files, authority, ["127.0.0.1"])
    return TlsFiles(certificate=str(files[0]), key=str(files[1]))


@pytest.fixture(params=["http", "https"])
async def make_world(request: pytest.FixtureRequest, tls_files: TlsFiles) -> AsyncIterator[Callable[..., Any]]:
    worlds: list[World] = []
    tls = None if request.param == "http" else ServerTls(tls_files)

    async def make(
        limits: HttpLimits = LIMITS, token: str = "", calls_per_address_max: int = 100, client_bytes_max: int = 1 << 30
    ) -> World:
        world = World(in_progress=InProgress(calls_per_address_max, ClientMemory(client_bytes_max)))
        operations = [
            Operation("demo.echo", "POST", "/echo", Echo, world.echo, Echoed, ANY_TOKEN, "Echo"),
            Operation("demo.read", "GET", "/echo", Echo, world.echo, Echoed, ANY_TOKEN, "Read"),
            Operation("demo.wait", "POST", "/wait", Echo, world.wait, Echoed, ANY_TOKEN, "Wait", undo=world.undo),
            Operation("demo.grant", "POST", "/grant", Echo, world.echo, Echoed, ANY_TOKEN, "Grant", undo=world.undo),
        ]
        node = SimpleNamespace(node_id="node-1", unusable_reason="")
        fast_path = JsonFastPath(operations, lambda: node, Guard(token))
        hosts = HostCheck(["localhost"])
        pages = ("/admin", "/metrics")
        world.listener = HttpListener(
            fast_path, hosts, world.in_progress, pages, limits, world.take_over, world.take_over, tls=tls
        )
        if tls is not None:
            world.tls = ssl.create_default_context(cafile=str(Path(tls_files.certificate).with_name("ca.pem")))
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        world.port = listening.getsockname()[1]
        await world.listener.accept(listening)
        worlds.append(world)
        return world

    yield make
    for world in worlds:
        world.proceed.set()
        world.listener.stop_accepting()
        await world.listener.close(1.0)


@pytest.fixture
async def world(make_world: Any) -> World:
    made: World = await make_world()
    return made


async def test_calls_on_one_connection_are_answered_in_order_with_one_write_each(world: World) -> None:
    client = await world.connect()
    for text in ("a", "b", "c"):
        client.call("/echo", {"text": text})
    answers = [await client.answer() for _ in range(3)]
    assert [one.document for one in answers] == [{"ok": True, "text": text} for text in ("a", "b", "c")]
    assert all("connection" not in one.headers for one in answers)


async def test_a_request_may_arrive_byte_by_byte(world: World) -> None:
    client = await world.connect()
    for (
        byte
    ) in b'POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 13\r\n\r\n{"text": "x"}':
        client.send(bytes([byte]))
        await asyncio.sleep(0)
    assert (await client.answer()).document["text"] == "x"


async def test_a_chunked_body(world: World) -> None:
    client = await world.connect()
    client.send(b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
    client.send(b'7\r\n{"text"\r\n6\r\n: "x"}\r\n0\r\n\r\n')
    assert (await client.answer()).document["text"] == "x"


@pytest.mark.parametrize("upgrade", ["h2c", "TLS/1.0, h2c", "websocket"])
async def test_an_upgrade_that_is_not_done_is_ignored(world: World, upgrade: str) -> None:
    """`curl --http2` asks for h2c with each request. A POST cannot become a WebSocket."""
    client = await world.connect()
    for text in ("a", "b"):
        client.call("/echo", {"text": text}, Upgrade=upgrade, Connection="Upgrade, HTTP2-Settings", HTTP2_Settings="AAMAAABkAAQ")
    client.call("/echo?text=c", method="GET")
    assert [(await client.answer()).document["text"] for _ in range(3)] == ["a", "b", "c"]
    assert world.handed_over == []


@pytest.mark.parametrize("target", ["/echo?text=x", "http://localhost/echo?text=x", "HTTP://localhost:80/echo?text=x"])
async def test_both_forms_of_a_target(world: World, target: str) -> None:
    client = await world.connect()
    client.call(target, method="GET")
    assert (await client.answer()).document["text"] == "x"


async def test_a_host_name_may_end_with_a_dot(world: World) -> None:
    client = await world.connect()
    client.send(b"GET /echo HTTP/1.1\r\nHost: localhost.:80\r\n\r\n")
    assert (await client.answer()).status == 200


async def test_head_has_no_body(world: World) -> None:
    client = await world.connect()
    client.call("/echo", method="HEAD")
    head = (await client.reader.readuntil(b"\r\n\r\n")).decode()
    assert "200 OK" in head
    client.call("/echo?text=next", method="GET")
    assert (await client.answer()).document["text"] == "next"


async def test_http_1_0_keeps_the_connection_only_if_asked(world: World) -> None:
    client = await world.connect()
    client.send(b"GET /echo HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
    assert (await client.answer()).headers["connection"] == "keep-alive"
    client.send(b"GET /echo HTTP/1.0\r\n\r\n")
    assert (await client.answer()).headers["connection"] == "close"
    assert await client.ends() == b""


async def test_a_client_that_expects_100_continue_gets_it(world: World) -> None:
    client = await world.connect()
    head = b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: 13\r\n\r\n"
    client.send(head)
    assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b'{"text": "x"}')
    assert (await client.answer()).document["text"] == "x"


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", {}),
        ("/admin/", {}),
        ("/metrics", {}),
        ("/echo", {"Accept": "text/html"}),
        ("/echo", {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}),
        ("/echo", {"Accept": "text/html; q=1.0, */*", "X_Requested_With": "XMLHttpRequest"}),
    ],
)
async def test_a_page_is_handed_over_whole_and_closes_its_connection(world: World, path: str, headers: dict[str, str]) -> None:
    client = await world.connect()
    client.call("/echo", {"text": "before"})
    client.call(path, {"text": "page"}, Connection="keep-alive", **headers)
    assert (await client.answer()).document["text"] == "before"
    page = await client.answer()
    assert (page.body, page.headers["connection"]) == (b"page", "close")
    (data,) = world.handed_over
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(f"POST {path} HTTP/1.1\r\n".encode())
    assert b"connection: close" in head
    assert b"keep-alive" not in head
    assert json.loads(body) == {"text": "page"}
    assert world.handled == ["before"]


async def test_a_chunked_body_is_handed_over_with_its_length(world: World) -> None:
    client = await world.connect()
    client.send(b"POST /admin/ HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
    await client.ends()
    (data,) = world.handed_over
    assert b"transfer-encoding" not in data
    assert data.endswith(b"content-length: 3\r\n\r\nabc")


async def test_an_upgrade_is_handed_over_unchanged(world: World) -> None:
    client = await world.connect()
    client.send(
        b"GET /ws HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: k\r\n\r\n\x81\x00"
    )
    await client.ends()
    (data,) = world.handed_over
    assert data == (
        b"GET /ws HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: k\r\n\r\n\x81\x00"
    )


@pytest.mark.parametrize(
    "accept",
    [
        "text/html, image/gif, image/jpeg, */*; q=0.2",
        "application/json, text/html;q=0.5",
        "text/html;q=0, application/json",
        "*/*",
    ],
)
async def test_programs_get_json_whatever_their_accept_header_lists(world: World, accept: str) -> None:
    client = await world.connect()
    client.call("/echo", {"text": "x"}, Accept=accept)
    assert (await client.answer()).headers["content-type"] == "application/json"
    assert not world.handed_over


@pytest.mark.parametrize("path", ["/echo", "/admin/", "/nothing"])
async def test_a_declared_body_over_the_limit_is_refused_before_it_is_sent(world: World, path: str) -> None:
    client = await world.connect()
    client.send(b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % (path.encode(), 1 << 40))
    answer = await client.answer()
    assert answer.status in (413, 404)
    assert answer.headers["connection"] == "close"
    assert not world.handled
    assert not world.handed_over


@pytest.mark.parametrize("path", ["/echo", "/admin/"])
async def test_a_body_is_counted_while_it_arrives(world: World, path: str) -> None:
    client = await world.connect()
    client.send(b"POST %b HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n" % path.encode())
    for _ in range(5):
        client.send(b"400\r\n" + b"x" * 1024 + b"\r\n")
    assert (await client.answer()).status == 413
    assert not world.handed_over


async def test_the_token_is_checked_before_the_body_is_read(make_world: Any) -> None:
    world = await make_world(token="secret")
    client = await world.connect()
    client.send(b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 4000\r\n\r\n")
    assert (await client.answer()).status == 401


@pytest.mark.parametrize("complete", [False, True])
async def test_a_head_over_the_limit_is_refused(world: World, complete: bool) -> None:
    client = await world.connect()
    client.send(b"GET /echo HTTP/1.1\r\nhost: localhost\r\nx-long: " + b"x" * 40_000)
    if complete:
        client.send(b"\r\n\r\n")
    answer = await client.answer()
    assert (answer.status, answer.document["code"]) == (431, "head_too_large")
    await client.ends()


async def test_malformed_http_is_refused(world: World) -> None:
    client = await world.connect()
    client.send(b"\x16\x03\x01\x02\x00 hello\r\n\r\n")
    answer = await client.answer()
    assert (answer.status, answer.document["code"]) == (400, "invalid")
    await client.ends()


@pytest.mark.parametrize("sent", [b"", b"GET /ec", b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n{"])
async def test_a_slow_client_is_disconnected(make_world: Any, sent: bytes) -> None:
    world = await make_world(replace(LIMITS, head_timeout_s=0.3, body_timeout_s=0.3, idle_timeout_s=0.3, linger_timeout_s=0.3))
    client = await world.connect()
    client.send(sent)
    answered = await client.ends()
    assert (b"408" in answered[:12]) == bool(sent)


async def test_connections_over_the_limit_are_refused_with_the_reason(make_world: Any) -> None:
    world = await make_world(replace(LIMITS, connections_max=2, connections_per_address_max=2))
    first, second = await world.connect(), await world.connect()
    for client in (first, second):
        client.call("/echo", {"text": "in"})
        assert (await client.answer()).status == 200
    if world.tls is None:
        answer = await (await world.connect()).answer()
        assert (answer.status, answer.document["code"]) == (503, "overloaded")
        assert answer.headers["retry-after"] == "1"
    else:
        with pytest.raises(ConnectionError):  # an answer would cost a handshake
            await world.connect()
    first.writer.close()
    await first.writer.wait_closed()
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(ConnectionError):
                again = await world.connect()
                again.call("/echo", {"text": "in"})
                if (await again.answer()).status == 200:
                    break


async def test_half_open_handshakes_count_as_connections_and_end_in_time(
    make_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_listener, "SWEEP_S", 0.05)
    world = await make_world(replace(LIMITS, connections_max=3, handshake_timeout_s=3))
    if world.tls is None:
        return
    unfinished = HANDSHAKES.labels("unfinished")
    before = unfinished._value.get()
    silent, halting, slow = [Client(*(await asyncio.open_connection("127.0.0.1", world.port))) for _ in range(3)]
    hello = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        world.tls.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="127.0.0.1").do_handshake()
    data = hello.read()
    # One has sent nothing, one a part of the first message, one the whole: the node waits for its answer.
    halting.send(data[:100])
    slow.send(data)
    await slow.reader.readexactly(5)
    with pytest.raises(ConnectionError):
        await world.connect()
    for client in (silent, halting, slow):
        await client.ends()
    await world.until(lambda: unfinished._value.get() == before + 3)
    client = await world.connect()
    client.call("/echo", {"text": "in"})
    assert (await client.answer()).status == 200


async def test_many_handshakes_are_spread_over_turns(make_world: Any) -> None:
    world = await make_world()
    if world.tls is None:
        return
    began = HANDSHAKES.labels("done")._value.get()
    turns: list[float] = []

    async def watch() -> None:
        while True:
            before = HANDSHAKES.labels("done")._value.get()
            await asyncio.sleep(0)
            turns.append(HANDSHAKES.labels("done")._value.get() - before)

    watching = asyncio.ensure_future(watch())
    clients = await asyncio.gather(*(world.connect() for _ in range(100)))
    await world.until(lambda: HANDSHAKES.labels("done")._value.get() == began + 100)
    watching.cancel()
    assert max(turns) < 100
    for client in clients:
        client.writer.close()


async def test_the_answers_that_a_tls_client_does_not_read_are_counted(make_world: Any) -> None:
    """As bytes of TLS: they wait in the socket's buffer, after encryption."""
    world = await make_world(replace(LIMITS, body_bytes_max=4 << 20), client_bytes_max=1 << 30)
    client = await world.connect()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    # More than the kernel keeps for the two sockets, about 10 MB.
    for _ in range(8):
        client.call("/echo", {"text": "x" * 3_000_000})
    (connection,) = world.listener._connections
    await world.until(lambda: connection._transport.get_write_buffer_size() > 500_000)
    await world.until(lambda: connection.account.bytes > 500_000)
    client.writer.transport.abort()
    await world.until(lambda: world.in_progress.memory.bytes == 0)


async def test_connections_of_the_web_server_that_have_ended_make_room_immediately(
    make_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A browser, or a client that connects again and again, is not refused because of connections that it has closed."""
    monkeypatch.setattr(http_listener, "SWEEP_S", 3600)
    world = await make_world(replace(LIMITS, connections_max=2, connections_per_address_max=2))
    for number in range(6):
        client = await world.connect()
        client.call("/admin/", {})
        await client.ends()
        await world.until(lambda wanted=number + 1: len(world.handed_over) == wanted)


async def test_a_client_with_too_many_calls_in_progress_is_refused(make_world: Any) -> None:
    world = await make_world(calls_per_address_max=1)
    waiting = await world.connect()
    waiting.call("/wait", {})
    await world.waiting.wait()
    other = await world.connect()
    other.call("/echo", {"text": "x"})
    answer = await other.answer()
    assert (answer.status, answer.document["code"]) == (429, "over_limit")
    world.proceed.set()
    assert (await waiting.answer()).status == 200
    other.call("/echo", {"text": "x"})
    assert (await other.answer()).status == 200


async def test_bodies_that_are_too_much_together_are_refused_largest_first(make_world: Any) -> None:
    """Each is within its own limits."""
    limits = replace(LIMITS, body_bytes_max=1 << 20)
    world = await make_world(limits, client_bytes_max=410_000 + 3 * TLS_BYTES)
    if world.tls is None:
        world.in_progress.memory.bytes_max = 410_000
    memory = world.in_progress.memory
    start = "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 200000\r\n\r\n"
    small, large, larger = await world.connect(), await world.connect(), await world.connect()
    for client, count in ((small, 50_000), (large, 120_000), (larger, 170_000)):
        client.send(start.encode() + b" " * count)
        await world.until(lambda count=count: any(account.bytes > count for account in memory.accounts))
    large.send(b" " * 10_000)
    answer = await larger.answer()
    assert (answer.status, answer.document["code"]) == (503, "overloaded")
    assert "DSS_CLIENT_BYTES_MAX" in answer.document["detail"]
    for client, rest in ((small, 150_000), (large, 70_000)):
        text = b'{"text": "x"}'
        client.send(b" " * (rest - len(text)) + text)
        assert (await client.answer()).status == 200
    await world.until(lambda: memory.bytes <= 3 * world.connection_bytes)


async def test_answers_that_become_ready_at_once_stay_within_the_memory_of_clients(make_world: Any) -> None:
    """Connections that are ended for them are closed only in a later turn of the event loop."""
    bytes_max, answer_bytes = 24 << 20, 8 << 20
    world = await make_world(client_bytes_max=bytes_max)
    world.times = answer_bytes // 2048
    clients = [await world.connect() for _ in range(12)]
    for client in clients:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.call("/wait", {"text": "x" * 2048})
    memory = world.in_progress.memory
    await world.until(lambda: all(account.bytes > world.connection_bytes + CALL_BYTES for account in memory.accounts))
    transports = [connection._transport for connection in world.listener._connections]
    assert len(transports) == len(clients)
    world.proceed.set()
    unread: list[int] = []
    while not world.undone or len(unread) < 20:
        await asyncio.sleep(0)
        unread.append(sum(transport.get_write_buffer_size() for transport in transports))
    # One answer is counted when it has been handed over.
    assert answer_bytes < max(unread) < bytes_max + answer_bytes + TLS_BYTES * len(clients)
    for client in clients:
        client.writer.transport.abort()
    await world.until(lambda: not memory.accounts)
    assert (memory.bytes, memory.ending) == (0, 0)


async def test_the_account_of_a_connection_is_empty_again_after_each_call(make_world: Any) -> None:
    world = await make_world()
    client = await world.connect()
    for text in ("x", "y" * 3000):
        client.call("/echo", {"text": text})
        assert (await client.answer()).status == 200
        (account,) = world.in_progress.memory.accounts
        assert account.bytes == world.connection_bytes
    client.call("/wait", {"text": "z" * 1000})
    await world.waiting.wait()
    assert account.bytes > world.connection_bytes + CALL_BYTES + 1000
    client.writer.close()
    await world.until(lambda: not world.in_progress.memory.accounts)
    assert world.in_progress.memory.bytes == 0


async def test_a_body_is_freed_with_its_connection(make_world: Any) -> None:
    """Not by the garbage collector, which comes late."""
    world = await make_world()
    client = await world.connect()
    client.send(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000\r\n\r\n" + b" " * 3000)
    await world.until(lambda: any(one._reading and one._reading.body for one in world.listener._connections))
    (connection,) = world.listener._connections
    client.writer.close()
    await world.until(lambda: not world.listener._connections)
    assert connection._reading is None


async def test_a_client_that_hangs_up_has_its_waiting_call_cancelled(world: World) -> None:
    client = await world.connect()
    client.call("/wait", {})
    await world.waiting.wait()
    client.writer.close()
    async with asyncio.timeout(PATIENCE_S):
        await world.cancelled.wait()
    assert world.in_progress.calls in (0, 1)


async def test_a_client_that_has_closed_its_sending_side_gets_its_answer(world: World) -> None:
    world.require_half_close()
    for path in ("/echo", "/grant"):
        client = await world.connect()
        client.call(path, {"text": "x"})
        client.writer.write_eof()
        assert (await client.answer()).document["text"] == "x"
        assert await client.ends() == b""
    assert world.undone == []


async def test_a_waiting_call_of_a_half_closed_client_is_cancelled_and_answered(world: World) -> None:
    world.require_half_close()
    client = await world.connect()
    client.call("/wait", {})
    await world.waiting.wait()
    client.writer.write_eof()
    answer = await client.answer()
    assert (answer.status, answer.document["code"]) == (499, "cancelled")


async def test_a_grant_to_a_client_that_has_gone_is_undone(world: World) -> None:
    world.require_half_close()
    raw = socket.create_connection(("127.0.0.1", world.port))
    head = b"POST /grant HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 13\r\n\r\n"
    raw.sendall(head + b'{"text": "x"}')
    raw.close()
    async with asyncio.timeout(PATIENCE_S):
        await world.given_back.wait()
    assert world.undone == ["x"]


async def test_a_stop_lets_calls_finish_and_closes_idle_connections(world: World) -> None:
    idle, busy = await world.connect(), await world.connect()
    idle.call("/echo", {"text": "x"})
    await idle.answer()
    busy.call("/wait", {})
    await world.waiting.wait()
    world.listener.stop_accepting()
    assert await idle.ends() == b""
    world.proceed.set()
    answer = await busy.answer()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await world.connect()


async def test_a_client_that_does_not_read_does_not_keep_the_node_from_stopping(make_world: Any) -> None:
    world = await make_world(replace(LIMITS, body_bytes_max=8 << 20))
    client = await world.connect()
    for _ in range(4):
        client.call("/echo", {"text": "x" * (4 << 20)})
    async with asyncio.timeout(PATIENCE_S):
        await world.called.wait()
    world.listener.stop_accepting()
    async with asyncio.timeout(PATIENCE_S):
        await world.listener.close(0.1)


async def test_a_fault_while_an_answer_is_sent_ends_the_connection(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise its client would wait without end."""

    def fail(*_: Any) -> bytes:
        raise RuntimeError("a fault of this program")

    monkeypatch.setattr("dss_api.http_connection.encode_answer", fail)
    before = FAILURES.labels("http_call")._value.get()
    client = await world.connect()
    client.call("/echo", {"text": "a"})
    assert await client.ends() == b""
    assert FAILURES.labels("http_call")._value.get() == before + 1
