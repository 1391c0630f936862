"""HTTP as clients other than browsers and this project's tools speak it. On an older release each of these calls failed."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from dss_dev.local_cluster import LocalCluster, LocalNode, free_ports

pytestmark = pytest.mark.cluster

PATIENCE_S = 120.0
BODY = json.dumps({"key": "k", "client": "c"}).encode()


@pytest.fixture(scope="module", params=["daphne", "uvicorn"])
def node(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[LocalNode]:
    cluster = LocalCluster(
        tmp_path_factory.mktemp(request.param), free_ports(1), {"DSS_SERVER": request.param, "DSS_ADMIN_PASSWORD": "test"}
    )
    cluster.start()
    try:
        cluster.wait_ready()
        yield cluster.nodes[0]
    finally:
        cluster.stop()


def exchange(node: LocalNode, request: bytes, *, half_close: bool = False) -> tuple[bytes, bytes]:
    """Status line and headers, and the body, until the node closes."""
    if half_close and node.is_secure:
        pytest.skip("Python's TLS cannot close one side")
    with node.open_socket(PATIENCE_S) as client:
        client.sendall(request)
        if half_close:
            client.shutdown(socket.SHUT_WR)
        answer = b""
        while data := client.recv(65536):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


def acquire(*headers: bytes, host: bytes = b"localhost", target: bytes = b"/lock/acquire") -> bytes:
    lines = [b"POST %b HTTP/1.1" % target, b"Host: " + host, b"Content-Type: application/json"]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(BODY), *headers, b"", BODY])


@pytest.mark.parametrize("accept", ["text/html, image/gif, image/jpeg, */*; q=0.2", "application/json, text/html;q=0.5"])
def test_a_program_whose_accept_header_lists_pages_gets_json(node: LocalNode, accept: str) -> None:
    reply = node.call("POST", "/lock/acquire", BODY, headers={"Accept": accept})
    assert (reply.status, reply.headers.get_content_type()) == (200, "application/json")
    assert reply.json["ok"]


def test_a_half_closed_client_gets_its_answer(node: LocalNode) -> None:
    for request in (acquire(), b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        head, body = exchange(node, request, half_close=True)
        assert head.startswith(b"HTTP/1.1 200 ")
        assert json.loads(body)["ok"]


def test_an_absolute_target(node: LocalNode) -> None:
    target = b"http://localhost:%d/lock/acquire" % node.port
    head, body = exchange(node, acquire(b"Connection: close", target=target))
    assert head.startswith(b"HTTP/1.1 200 "), head
    assert json.loads(body)["ok"]


def test_a_host_with_a_final_dot(node: LocalNode) -> None:
    head, body = exchange(node, acquire(b"Connection: close", host=b"localhost.:%d" % node.port))
    assert head.startswith(b"HTTP/1.1 200 "), head
    assert json.loads(body)["ok"]
