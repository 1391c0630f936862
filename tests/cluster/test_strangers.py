"""A process without the cluster's secret, on the ports of stopped members, can neither end a node nor tell its operator anything."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest

from dss_dev.local_cluster import HOST, PEER_PORT_OFFSET, LocalNode
from dss_raft.net import handshake
from dss_raft.net.wire import with_length

pytestmark = pytest.mark.cluster

#: a node that believes what it is told ends after fewer
DIALED = 12
#: as releases before TLS refuse a node, and TLS's alert "access denied"
REFUSALS = {
    "no_tls": with_length(handshake.PREFIX + msgspec.msgpack.encode(handshake.Refusal("no_member"))),
    "refused_by_peer": b"\x15\x03\x03\x00\x02\x02\x31",
}


@contextmanager
def stranger(node: LocalNode, answer: bytes) -> Iterator[list[str]]:
    """Refuses everybody at the peer port of a stopped member. Yields the addresses of its callers."""
    callers: list[str] = []

    class Refuse(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1000)
            self.request.sendall(answer)
            callers.append(self.client_address[0])

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    with Server((HOST, node.port + PEER_PORT_OFFSET), Refuse) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        try:
            yield callers
        finally:
            server.shutdown()
            serving.join()


@pytest.mark.rounds
def test_a_stranger_says_that_the_node_was_removed(cluster, wait_until):
    node, *stopped = cluster.nodes
    for other in stopped:
        other.kill()
    for answer in REFUSALS.values():
        with stranger(stopped[0], answer) as first, stranger(stopped[1], answer) as second:
            wait_until(lambda: not node.is_running or min(len(first), len(second)) >= DIALED, lambda: str((first, second)))
        assert node.is_running, node.log_tail()
    for reason in REFUSALS:
        wait_until(
            lambda reason=reason: f'"reason": "{reason}"' in node.log_path.read_text(), lambda reason=reason: f"no {reason}"
        )
    log = node.log_path.read_text()
    assert "peer_without_tls" not in log, "a link without TLS"
    assert "removed" not in log
    assert "delete" not in log
    for other in stopped:
        other.start()
    cluster.wait_ready()
    assert node.call("POST", "/cache/put", {"key": "k", "value": 1}).status == 200
