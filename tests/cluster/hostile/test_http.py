"""Hostile HTTP clients: large, slow, many, or unwilling to read. Other clients are answered, and memory stays bounded."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import socket
from collections.abc import Callable

import pytest

from dss_dev.confinement import MIB
from dss_dev.hostile import (
    PATIENCE_S,
    RECEIVE_BUFFER_BYTES,
    SCALE,
    Probe,
    answer_of,
    call,
    connect,
    connections,
    has_been_closed,
    head,
    send_all,
    send_to_all,
    status_of,
)
from dss_dev.local_cluster import LocalNode

pytestmark = pytest.mark.cluster

BLOCK = b"x" * MIB
BODY_BYTES_MAX = 4 * MIB
MakeProbe = Callable[..., Probe]
WaitUntil = Callable[[Callable[[], object], Callable[[], str]], None]


@pytest.mark.parametrize("path", ["/lock/acquire", "/admin/login/", "/nothing"])
def test_a_body_of_any_length_is_not_taken(node: LocalNode, probe: MakeProbe, path: str) -> None:
    with probe(), connections(node, 1) as (client,):
        client.sendall(head(path, "Content-Type: application/json", f"Content-Length: {1 << 30}"))
        assert answer_of(client) in (404, 413)
        send_all(client, itertools.repeat(BLOCK, 100 * SCALE))


def test_a_chunked_body_of_any_length_is_not_taken(node: LocalNode, probe: MakeProbe) -> None:
    with probe(), connections(node, 1) as (client,):
        client.sendall(head("/queue/publish", "Content-Type: application/json", "Transfer-Encoding: chunked"))
        assert not send_all(client, itertools.repeat(b"100000\r\n" + BLOCK + b"\r\n", 100 * SCALE))
        assert answer_of(client) in (0, 413)


def test_a_header_of_any_length_is_not_taken(node: LocalNode, probe: MakeProbe) -> None:
    with probe(), connections(node, 1) as (client,):
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nx-long: ")
        assert not send_all(client, itertools.repeat(BLOCK, 100 * SCALE))
        assert answer_of(client) in (0, 431)


@pytest.mark.parametrize("headers", [{"X-Long": "x" * 31_000}, {f"X-{number}": "" for number in range(3000)}])
def test_a_page_takes_the_headers_that_the_listener_takes(node: LocalNode, headers: dict[str, str]) -> None:
    for accept in ("text/html", "text/html,application/xhtml+xml"):
        assert node.call("GET", "/health", headers={"Accept": accept, **headers}).status == 200


def test_heads_that_arrive_slowly_are_given_up(node: LocalNode, probe: MakeProbe) -> None:
    """All connections of the node but a few, each with a byte now and then."""
    with probe(), connections(node, 50 * SCALE) as clients:
        send_to_all(clients, b"GET /health HTTP/1.1\r\nHost: loc")
        for client in clients:
            if not has_been_closed(client, 5.0):
                send_to_all([one for one in clients if one.fileno() >= 0], b"x", 0)
        assert all(has_been_closed(client) for client in clients)


@pytest.mark.parametrize("path", ["/queue/publish", "/admin/login/"])
def test_bodies_that_never_end_are_not_kept(node: LocalNode, probe: MakeProbe, path: str) -> None:
    """Each connection is within its limits: only all of them together are too much."""
    missing = head(path, "Content-Type: application/json", f"Content-Length: {BODY_BYTES_MAX}") + b" " * (BODY_BYTES_MAX - 1)
    with probe(), connections(node, 60 * SCALE) as clients:
        send_to_all(clients, missing)


def test_large_bodies_of_calls_that_wait_are_not_kept(node: LocalNode, probe: MakeProbe) -> None:
    consume = call("/queue/consume", {"topic": "none", "group": "g", "timeout_ms": 5000}, padding=BODY_BYTES_MAX - 100)
    with probe(), connections(node, 60 * SCALE) as clients:
        send_to_all(clients, consume)
        answer_of(clients[-1])


def test_large_requests_behind_a_call_that_waits_are_not_kept(node: LocalNode, probe: MakeProbe) -> None:
    waits = call("/queue/consume", {"topic": "none", "group": "g", "timeout_ms": 5000})
    large = call("/queue/consume", {"topic": "none", "group": "g"}, padding=MIB)
    with probe(), connections(node, 4 * SCALE) as clients:
        send_to_all(clients, waits + large * 40, timeout_s=10.0)


def test_answers_that_are_not_read_are_not_kept(node: LocalNode, probe: MakeProbe) -> None:
    keys = [f"k{number}" for number in range(100)]
    items = [{"key": key, "value": "x" * 30_000} for key in keys]
    assert node.call("POST", "/cache/mput", {"items": items}).status == 200
    with probe(), connections(node, 40 * SCALE, RECEIVE_BUFFER_BYTES) as clients:
        send_to_all(clients, call("/cache/mget", {"keys": keys}) * 20, timeout_s=10.0)


@pytest.mark.parametrize("path", ["/metrics", "/static/drf_spectacular_sidecar/redoc/bundles/redoc.standalone.js.map"])
def test_pages_that_are_not_read_are_not_kept(node: LocalNode, probe: MakeProbe, path: str) -> None:
    with probe(), connections(node, 40 * SCALE, RECEIVE_BUFFER_BYTES) as clients:
        send_to_all(clients, head(path, method="GET"))
        # Until the server has begun to answer all of them.
        for client in clients:
            answer_of(client)


def test_requests_behind_a_page_are_not_kept(node: LocalNode, probe: MakeProbe) -> None:
    page = call("/queue/consume", {"topic": "none", "group": "g", "timeout_ms": 2000}, "Accept: text/html")
    with probe(), connections(node, 4 * SCALE) as clients:
        send_to_all(clients, page)
        send_to_all(clients, head("/admin/login/", method="GET") * 50_000, timeout_s=5.0)


def test_more_connections_than_there_is_room_for(node: LocalNode, probe: MakeProbe, wait_until: WaitUntil) -> None:
    """The node keeps descriptors for itself: it takes snapshots, and answers clients at other addresses."""
    taken = snapshot_index(node)
    with probe(), connections(node, 950) as clients:
        assert any(answer_of(client) == 503 for client in clients[-40:])
        value = "x" * 200_000
        for number in range(100):
            body = json.dumps({"topic": "full", "value": value}).encode()
            with socket.socket() as client:
                client.settimeout(PATIENCE_S)
                client.bind(("127.0.0.3", 0))
                client.connect((node.host, node.port))
                client.sendall(head("/queue/publish", "Content-Type: application/json", f"Content-Length: {len(body)}") + body)
                assert answer_of(client) == 200, number
        # The snapshot is written after the answers.
        wait_until(lambda: snapshot_index(node) > taken, node.log_tail)
    assert node.call("DELETE", "/queue/topic?topic=full").status == 200


def snapshot_index(node: LocalNode) -> int:
    """The index of the node's snapshot. The question comes from an address of its own, which has no other connections."""
    connection = http.client.HTTPConnection(node.host, node.port, PATIENCE_S, source_address=("127.0.0.3", 0))
    with contextlib.closing(connection):
        connection.request("GET", "/raft/status")
        index: int = json.loads(connection.getresponse().read())["snapshot_index"]
        return index


def test_pages_of_calls_that_wait_take_no_thread_each(node: LocalNode, probe: MakeProbe) -> None:
    page = call("/queue/consume", {"topic": "none", "group": "g", "timeout_ms": 2000}, "Accept: text/html")
    with probe() as watched, connections(node, 200) as clients:
        for _ in range(SCALE):
            send_to_all(clients, page)
            assert [answer_of(client) for client in clients].count(503) > 20
            for client in clients:
                client.close()
            clients[:] = [connect(node) for _ in clients]
    assert watched.watch.peak_threads < 150


def test_more_calls_that_wait_than_connections(node: LocalNode, probe: MakeProbe) -> None:
    waits = call("/lock/acquire", {"key": "waited", "client": "me", "wait_ms": 5000})
    assert node.call("POST", "/lock/acquire", {"key": "waited", "client": "other"}).status == 200
    with probe(), connections(node, 60 * SCALE) as clients:
        send_to_all(clients, waits * 60)
        answer_of(clients[-1])


@pytest.mark.parametrize(
    ("line", "headers", "status"),
    [
        ("GET /raft/status HTTP/1.1", ["Host: localhost", "Accept: text/html, */*;q=0.2"], 200),
        ("GET /raft/status HTTP/1.1", ["Host: localhost", "Accept: text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"], 200),
        ("GET http://localhost/raft/status HTTP/1.1", ["Host: localhost"], 200),
        ("GET /raft/status HTTP/1.1", ["Host: localhost."], 200),
        ("OPTIONS /lock/acquire HTTP/1.1", ["Host: localhost", "Accept: text/html"], 200),
        ("HEAD /lock/acquire HTTP/1.1", ["Host: localhost", "Accept: text/html"], 200),
    ],
)
def test_unusual_requests_are_answered(node: LocalNode, line: str, headers: list[str], status: int) -> None:
    with connect(node) as client:
        client.sendall("\r\n".join([line, *headers, "Connection: close", "", ""]).encode())
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
        assert status_of(answer) == status, answer[:500]
        if status == 200 and line.startswith("GET") and "q=" not in headers[-1]:
            assert b"application/json" in answer.lower()
