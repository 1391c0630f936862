"""Hostile clients against a real node with either server: other clients are still answered, and memory stays bounded.

`DSS_HOSTILE` scales the load: 1 in CI. `make hostile` runs it at full size, with few descriptors and little memory for the node.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from dss_dev.local_cluster import LocalCluster, LocalNode, free_ports

SCALE = int(os.environ.get("DSS_HOSTILE", "1"))
PATIENCE_S = 60.0
MIB = 1 << 20
#: How much more memory than at rest a node may use, whatever its clients do.
GROWTH_MIB_MAX = 200
BODY = json.dumps({"key": "probe", "client": "probe"})

pytestmark = pytest.mark.cluster


class Probe:
    """A client at another address that repeatedly acquires a lock."""

    def __init__(self, node: LocalNode) -> None:
        self._node = node
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answered = 0
        self.failures: list[str] = []
        self.peak_mib = 0.0
        self._process = psutil.Process(node.process.pid if node.process else 0)
        self.rest_mib = self._process.memory_info().rss / MIB

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                connection = http.client.HTTPConnection(
                    self._node.host, self._node.port, PATIENCE_S, source_address=("127.0.0.2", 0)
                )
                connection.request("POST", "/lock/acquire", BODY, {"Content-Type": "application/json"})
                reply = connection.getresponse()
                if reply.status == 200:
                    self.answered += 1
                else:
                    self.failures.append(f"{reply.status} {reply.read()[:200]!r}")
                connection.close()
            except OSError as error:
                self.failures.append(repr(error))
            self.peak_mib = max(self.peak_mib, self._process.memory_info().rss / MIB)

    def __enter__(self) -> Probe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        assert self._node.is_running, self._node.log_tail()
        assert not self.failures, self.failures[:3]
        assert self.answered
        assert self.peak_mib - self.rest_mib < GROWTH_MIB_MAX, f"{self.rest_mib:.0f} MiB at rest, {self.peak_mib:.0f} MiB at most"


@pytest.fixture(scope="module", params=["daphne", "uvicorn"])
def node(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[LocalNode]:
    """One node that must survive all tests, and then stop cleanly."""
    environment = {
        "DSS_ADMIN_PASSWORD": "test",
        "DSS_SERVER": request.param,
        "DSS_CONNECTIONS_MAX": "1000",
        "DSS_CONNECTIONS_PER_ADDRESS_MAX": "900",
    }
    cluster = LocalCluster(tmp_path_factory.mktemp(request.param), free_ports(1), environment)
    cluster.start()
    (only,) = cluster.nodes
    try:
        cluster.wait_ready()
        yield only
        assert only.stop(PATIENCE_S) == 0, only.log_tail()
    finally:
        only.kill()


def websocket(node: LocalNode) -> Any:
    """A connection whose client reads one message and nothing more."""
    return connect(f"ws://{node.host}:{node.port}/ws", max_size=None, ping_interval=None, max_queue=1, open_timeout=PATIENCE_S)


def raw(node: LocalNode) -> socket.socket:
    return socket.create_connection((node.host, node.port), timeout=PATIENCE_S)


def head(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


@pytest.mark.parametrize("path", ["/lock/acquire", "/admin/login/", "/nothing"])
def test_a_body_of_any_length_is_not_taken(node: LocalNode, path: str) -> None:
    with Probe(node), raw(node) as client:
        client.sendall(head(path, "Content-Type: application/json", f"Content-Length: {1 << 30}"))
        answered = client.recv(1000)
        assert status_of(answered) in (404, 413)
        block = b"x" * MIB
        with contextlib.suppress(OSError):
            for _ in range(100 * SCALE):
                client.sendall(block)


def test_a_chunked_body_of_any_length_is_not_taken(node: LocalNode) -> None:
    with Probe(node), raw(node) as client:
        client.sendall(head("/queue/publish", "Content-Type: application/json", "Transfer-Encoding: chunked"))
        block = b"100000\r\n" + b"x" * MIB + b"\r\n"
        with contextlib.suppress(OSError):
            for _ in range(100 * SCALE):
                client.sendall(block)
        with contextlib.suppress(OSError):
            assert status_of(client.recv(1000)) == 413


def test_a_header_of_any_length_is_not_taken(node: LocalNode) -> None:
    with Probe(node), raw(node) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nx-long: ")
        with contextlib.suppress(OSError):
            for _ in range(100 * SCALE):
                client.sendall(b"x" * MIB)
        with contextlib.suppress(OSError):
            assert status_of(client.recv(1000)) == 431


@pytest.mark.parametrize("headers", [{"X-Long": "x" * 31_000}, {f"X-{number}": "" for number in range(3000)}])
def test_a_page_takes_the_headers_that_the_listener_takes(node: LocalNode, headers: dict[str, str]) -> None:
    for accept in ("text/html", "text/html,application/xhtml+xml"):
        assert node.call("GET", "/health", headers={"Accept": accept, **headers}).status == 200


def test_more_connections_than_there_is_room_for(node: LocalNode) -> None:
    """The node reserves descriptors: it still takes snapshots, and answers the clients that are connected."""
    with Probe(node):
        clients: list[socket.socket] = []
        try:
            refused = 0
            for _ in range(950):
                client = raw(node)
                clients.append(client)
            for client in clients[-40:]:
                client.settimeout(PATIENCE_S)
                refused += b"overloaded" in client.recv(2000)
            assert refused
        finally:
            for client in clients:
                client.close()


def test_a_flood_of_pages_takes_no_thread_each(node: LocalNode) -> None:
    process = psutil.Process(node.process.pid if node.process else 0)
    with Probe(node):
        clients = []
        try:
            body = json.dumps({"topic": "none", "group": "g", "timeout_ms": 5000}).encode()
            for _ in range(200):
                client = raw(node)
                clients.append(client)
                accept = "Accept: text/html"
                client.sendall(
                    head("/queue/consume", accept, "Content-Type: application/json", f"Content-Length: {len(body)}") + body
                )
            deadline = time.monotonic() + PATIENCE_S
            refused = 0
            for client in reversed(clients):
                client.settimeout(max(deadline - time.monotonic(), 0.1))
                refused += b"503" in client.recv(20)
                if refused > 20:
                    break
            assert refused > 20
            assert process.num_threads() < 150
        finally:
            for client in clients:
                client.close()


@pytest.mark.parametrize("op", ["cache.mget", "raft.status"])
def test_websocket_answers_that_are_not_read(node: LocalNode, op: str) -> None:
    keys = [f"k{number}" for number in range(100)]
    value = "x" * 10_000
    assert node.call("POST", "/cache/mput", {"items": [{"key": key, "value": value} for key in keys]}).status == 200
    request = {"keys": keys} if op == "cache.mget" else {}
    with Probe(node):
        client = connect(
            f"ws://{node.host}:{node.port}/ws", max_size=None, ping_interval=None, max_queue=1, open_timeout=PATIENCE_S
        )
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.socket.settimeout(5)
        with contextlib.suppress(Exception):
            for number in range(2000 * SCALE):
                client.send(json.dumps({"id": number, "op": op, "request": request}))
        with contextlib.suppress(Exception):
            client.close_socket()


def test_watchers_that_never_read(node: LocalNode) -> None:
    with Probe(node) as probe, contextlib.ExitStack() as stack:
        for _ in range(10):
            client = stack.enter_context(websocket(node))
            stack.callback(client.socket.shutdown, socket.SHUT_RDWR)
            client.send(json.dumps({"id": 1, "op": "locks.watch", "request": {"prefix": ""}}))
        wanted = probe.answered + 200 * SCALE
        deadline = time.monotonic() + PATIENCE_S
        while probe.answered < wanted and time.monotonic() < deadline:
            meta = {"padding": "x" * 4000}
            for number in range(20):
                node.call("POST", "/lock/acquire", {"key": f"w{number}", "client": "w", "meta": meta})
                node.call("POST", "/lock/release", {"key": f"w{number}", "client": "w"})


def test_locks_with_large_metadata_fill_their_limit_and_nothing_else(node: LocalNode) -> None:
    """64 keys with 8 KiB of metadata at a time: what grows is refused, and renewals and releases still work."""
    set_limit(node, 2 * MIB)
    try:
        assert node.call("POST", "/lock/acquire", json.loads(BODY)).status == 200
        with Probe(node):
            replies = []
            for number in range(100 * SCALE):
                meta = {f"{member:x}": f"{number:04}" + "m" * 508 for member in range(16)}
                keys = [f"full/{number}/{key}" for key in range(64)]
                replies.append(
                    node.call("POST", "/lock/acquire", {"keys": keys, "client": "full", "meta": meta, "ttl_ms": 60_000})
                )
            assert {reply.status for reply in replies} == {200, 429}
            refused = replies[-1].json
            assert (refused["code"], refused["limit"], refused["maximum"]) == ("over_limit", "lock_bytes_max", 2 * MIB)
            limits = {row["name"]: row for row in node.call("GET", "/raft/limits").json["limits"]}
            assert 1 <= limits["lock_bytes_max"]["share"] < 1.1
            assert b'dss_state_bytes_max{limit="lock_bytes_max"} 2.097152e+06' in node.call("GET", "/metrics").body
            for number in range(100 * SCALE):
                keys = [f"full/{number}/{key}" for key in range(64)]
                assert node.call("POST", "/lock/release", {"keys": keys, "client": "full"}).status == 200
            assert node.call("POST", "/lock/acquire", {"key": "full/again", "client": "full", "ttl_ms": 1}).status == 200
    finally:
        set_limit(node, 1024 * MIB)


def set_limit(node: LocalNode, lock_bytes_max: int) -> None:
    assert node.call("PUT", "/raft/limits", {"limits": {"lock_bytes_max": lock_bytes_max}}).status == 200


def test_a_frame_over_the_limit_is_refused_with_its_code(node: LocalNode) -> None:
    with Probe(node), websocket(node) as client:
        client.send(json.dumps({"id": 1, "op": "queue.publish", "request": {"topic": "t", "value": "x" * (5 * MIB)}}))
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(PATIENCE_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
