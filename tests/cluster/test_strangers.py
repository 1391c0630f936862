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
REFUSAL_TAG = handshake.Refusal.__struct_config__.tag


@contextmanager
def stranger(node: LocalNode, reason: str) -> Iterator[list[str]]:
    """Refuses everybody at the peer port of a stopped member. Yields the addresses of its callers."""
    callers: list[str] = []

    class Refuse(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            greeting = self.request.recv(1000)
            prefix = greeting[4 : 4 + len(handshake.MAGIC) + 1]  # of any release: the stranger speaks the caller's version
            self.request.sendall(with_length(prefix + msgspec.msgpack.encode([REFUSAL_TAG, reason])))
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
    for reason in ("unknown_peer", "no_member"):
        with stranger(stopped[0], reason) as first, stranger(stopped[1], reason) as second:
            wait_until(lambda: not node.is_running or min(len(first), len(second)) >= DIALED, lambda: str((first, second)))
        assert node.is_running, node.log_tail()
    log = node.log_path.read_text()
    assert '"reason": "refused_by_peer"' in log
    assert "removed" not in log
    assert "delete" not in log
    for other in stopped:
        other.start()
    cluster.wait_ready()
    assert node.call("POST", "/cache/put", {"key": "k", "value": 1}).status == 200
