"""A node stops although its clients do not: SIGTERM is obeyed while they are busy, and while they do not read."""

from __future__ import annotations

from pathlib import Path

import pytest

from dss_dev.confinement import Confinement, Watch
from dss_dev.hostile import PATIENCE_S, RECEIVE_BUFFER_BYTES, call, call_frame, connections, send_to_all, websockets
from dss_dev.local_cluster import LocalCluster, LocalNode, free_ports

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
def test_a_node_stops_in_the_middle_of_it(server: str, tmp_path: Path, small_node: dict[str, str], limits) -> None:
    with Confinement(limits, f"stop-{server}") as confinement:
        environment = {**small_node, "DSS_SERVER": server, "DSS_DRAIN_MS": "1000"}
        cluster = LocalCluster(tmp_path, free_ports(1), environment, confinement.arguments)
        cluster.start()
        (node,) = cluster.nodes
        try:
            cluster.wait_ready()
            _stop_under_load(node, limits)
        finally:
            node.kill()


def _stop_under_load(node: LocalNode, limits) -> None:
    keys = [f"k{number}" for number in range(100)]
    items = [{"key": key, "value": "x" * 10_000} for key in keys]
    assert node.call("POST", "/cache/mput", {"items": items}).status == 200
    reads = b"".join(call_frame(number, "cache.mget", {"keys": keys}) for number in range(200))
    waits = b"".join(call_frame(f"w{number}", "queue.consume", {"topic": "t", "group": "g"}) for number in range(200))
    watch = call_frame("watch", "locks.watch", {"prefix": ""})
    with (
        Watch(node.pid, limits) as watched,
        websockets(node, 10, RECEIVE_BUFFER_BYTES) as clients,
        connections(node, 20, RECEIVE_BUFFER_BYTES) as others,
    ):
        send_to_all(clients, watch + waits + reads, 5.0)
        send_to_all(others, call("/cache/mget", {"keys": keys}) * 20, 5.0)
        send_to_all(others[:5], b"POST /lock/acquire HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n", 1.0)
        assert node.stop(PATIENCE_S) == 0, node.log_tail(40)
    assert not watched.killed
