"""Messages on the engine `redis` take no memory in the nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from dss_dev.engine_memory import grown
from dss_dev.local_cluster import LocalCluster, free_ports
from dss_dev.valkey_cluster import ValkeyCluster

pytestmark = pytest.mark.cluster

MESSAGES = 30_000
#: In the log, a message takes 459 bytes in each node.
GROWTH_BYTES_MAX = MESSAGES * 459 // 3


def test_a_node_does_not_grow_with_the_messages(tmp_path: Path) -> None:
    with ValkeyCluster(tmp_path / "valkey", replicas=0) as servers:
        settings = {"DSS_ENGINE_URL": servers.url, "DSS_ENGINE_REPLICAS_MIN": "0"}
        cluster = LocalCluster(tmp_path / "nodes", free_ports(3), settings)
        try:
            cluster.start()
            cluster.wait_ready()
            growth = grown(cluster.nodes, MESSAGES, 1000, 5000)
        finally:
            cluster.stop()
    assert max(one.most_bytes for one in growth) < GROWTH_BYTES_MAX, growth
