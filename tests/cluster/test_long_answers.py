"""An answer on a WebSocket may be longer than a client's message may be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from websockets.sync.client import connect

from dss_dev.local_cluster import LocalCluster, free_ports

pytestmark = pytest.mark.cluster

#: what one consume hands out at most, and a client's message has
BYTES_MAX = 4 * 1024 * 1024


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
def test_a_consume_of_more_than_a_request_may_have_is_answered(server: str, tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, free_ports(1), {"DSS_SERVER": server})
    cluster.start()
    try:
        cluster.wait_ready()
        (node,) = cluster.nodes
        value = "x" * 250_000
        for _ in range(20):
            assert node.call("POST", "/queue/publish", {"topic": "long", "value": value}).status == 200
        request = {"topic": "long", "group": "g", "max_messages": 20}
        with connect(node.websocket_url, compression=None, max_size=None) as client:
            client.send(json.dumps({"id": 1, "op": "queue.consume", "request": request}))
            answer = client.recv(timeout=120)
        assert len(answer) > BYTES_MAX
        assert {message["value"] for message in json.loads(answer)["messages"]} == {value}
    finally:
        cluster.stop()
