"""A fake node that answers as a test says, and real clusters for those that need them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from dss_client import AsyncClient
from dss_client.config import Config
from dss_dev.local_cluster import LocalCluster, free_ports
from dss_dev.prepared_pages import ENVIRONMENT, prepare_pages
from dss_raft.versions import LATEST

#: of the real node
TOKEN = "secret"

Answer = dict[str, Any]
GRANT: Answer = {"ok": True, "fencing_token": 7, "expires_in_ms": 30_000, "reentrant": False, "index": 7}
UNAVAILABLE: Answer = {"ok": False, "status": 503, "code": "no_leader", "detail": "no leader is known"}
UNKNOWN: Answer = {"ok": False, "status": 503, "code": "unknown_outcome", "detail": "no answer came in time"}


class FakeNode:
    """A WebSocket server with scripted answers.

    Attributes:
        answers: for each operation, a document, a list of documents to answer in order (the last one stays), or a function of the
            request. None: no answer. An exception: the connection is cut. Otherwise, a call is answered with {"ok": true}.
        calls: those that arrived.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {"requests.open": {"ok": True, "session": "s", "expires_in_ms": 600_000}}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.connections: set[ServerConnection] = set()
        self.authorization: str | None = None
        self.is_deaf = False
        self._server: Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await serve(self._serve, "127.0.0.1", self.port, process_request=self._check)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        for connection in list(self.connections):
            connection.transport.abort()
        self._server.close()
        await self._server.wait_closed()

    def requests(self, operation: str) -> list[dict[str, Any]]:
        return [request for name, request in self.calls if name == operation]

    def stop_reading(self) -> None:
        """From now on, the connections are half open: nothing is read, answered or closed."""
        for connection in self.connections:
            connection.transport.pause_reading()

    def _check(self, connection: ServerConnection, request: Request) -> Response | None:
        self.authorization = request.headers.get("Authorization")
        return None

    async def _serve(self, connection: ServerConnection) -> None:
        self.connections.add(connection)
        try:
            async for text in connection:
                frame = json.loads(text)
                self.calls.append((frame["op"], frame["request"]))
                answer = self._answer(frame["op"], frame["request"])
                if isinstance(answer, Exception):
                    connection.transport.abort()
                    return
                if frame["op"] == "cancel" and "cancel" not in self.answers:
                    cancelled = {"id": frame["request"]["call"], "ok": False, "status": 499, "code": "cancelled", "detail": ""}
                    await connection.send(json.dumps(cancelled))
                if answer is not None:
                    await connection.send(json.dumps({"id": frame["id"], "status": 200, **answer}))
        except ConnectionClosed:
            pass
        finally:
            self.connections.discard(connection)

    def _answer(self, operation: str, request: dict[str, Any]) -> Any:
        answer = self.answers.get(operation, {"ok": True})
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        return answer(request) if callable(answer) else answer


@pytest.fixture
def make_fake_node() -> Callable[[], FakeNode]:
    """Nodes that the test starts itself."""
    return FakeNode


@pytest.fixture
async def make_node() -> AsyncIterator[Callable[[], Awaitable[FakeNode]]]:
    nodes: list[FakeNode] = []

    async def make() -> FakeNode:
        node = FakeNode()
        await node.start()
        nodes.append(node)
        return node

    yield make
    for node in nodes:
        await node.stop()


@pytest.fixture
async def node(make_node: Callable[[], Awaitable[FakeNode]]) -> FakeNode:
    return await make_node()


@pytest.fixture
async def make_client() -> AsyncIterator[Callable[..., AsyncClient]]:
    """`make_client(node, …, check_s=5.0, timeout=30.0)`: a process that stands still for a moment is no reason to call again."""
    clients: list[AsyncClient] = []

    def make(*nodes: FakeNode, timeout: float = 30.0, check_s: float = 5.0, **options: Any) -> AsyncClient:
        client = AsyncClient([node.url for node in nodes], timeout=timeout, **options)
        given = client._config
        client._config = Config(
            given.nodes, given.token, given.name, timeout, given.transport, 10.0, check_s, given.tracing, given.tls
        )
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.aclose()


@pytest.fixture
def client(node: FakeNode, make_client: Callable[..., AsyncClient]) -> AsyncClient:
    return make_client(node)


def _cluster(directory: Path, size: int, **environment: str) -> Iterator[LocalCluster]:
    ports = free_ports(2 * size)
    cluster = LocalCluster(directory, ports[:size], {**ENVIRONMENT, **environment})
    for node, sqs in zip(cluster.nodes, ports[size:], strict=True):
        node.environment["DSS_SQS_PORT"] = str(sqs)
    prepare_pages(cluster)
    cluster.start()
    try:
        cluster.wait_ready()
        _wait_for_request_ids(cluster)
        yield cluster
    finally:
        cluster.stop()


def _wait_for_request_ids(cluster: LocalCluster) -> None:
    """A new cluster begins with the first cluster version. A client that asks too early does without them for a minute."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for node in cluster.nodes:
        while node.call("GET", "/raft/status", headers=headers).json["cluster_version"] < LATEST:
            time.sleep(0.01)


@pytest.fixture(scope="session")
def token() -> str:
    """The real node asks for it."""
    return TOKEN


@pytest.fixture(scope="module")
def real_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """One node, for the tests of a file."""
    yield from _cluster(tmp_path_factory.mktemp("one"), 1, DSS_API_TOKEN=TOKEN)


@pytest.fixture
def three_nodes(tmp_path: Path) -> Iterator[LocalCluster]:
    """Three nodes that one test may kill."""
    yield from _cluster(tmp_path, 3)


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Awaitable[None]]:
    """`await until(condition)`."""

    async def until(condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    return until
