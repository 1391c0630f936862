"""The cluster secret is changed on three nodes under load, as docs/how-to/rotate-secrets.md says."""

from __future__ import annotations

import pytest

from dss_dev import checkouts
from dss_dev.local_cluster import LocalCluster, LocalNode, free_ports, manage
from dss_dev.upgrade import CONSUME, PATIENCE_S, Load

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(checkouts.tested_checkout() is not None, reason="of this release")]

#: answered writes between two steps
WRITES_PER_STEP = 10
OLD, NEW = "the secret before the change", "the secret after the change"


def operate(node: LocalNode, *arguments: str) -> str:
    """A command on the machine of a node, with its settings and without a token. Returns its last line."""
    done = manage(*arguments, environment=node.environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_the_secret_is_changed_without_a_failed_call(tmp_path, prepare_pages, wait_until):
    cluster = LocalCluster(
        tmp_path, free_ports(3), {"DSS_CLUSTER_SECRET": OLD, "DSS_ADMIN_PASSWORD": "test", "DSS_LOG_FORMAT": "json"}
    )
    prepare_pages(cluster)
    load = Load(cluster.nodes)
    first = cluster.nodes[0]

    def use(token: str) -> None:
        """Write with this token, when all nodes know it."""
        for node in cluster.nodes:
            wait_until(lambda node=node: status(node, token) == 200, node.log_tail)
        load.headers = bearer(token)

    def status(node: LocalNode, token: str) -> int:
        return node.call("GET", "/raft/status", headers=bearer(token)).status

    def restart_all(**variables: str) -> None:
        for node in cluster.nodes:
            load.restarting = node
            assert node.stop() == 0, node.log_tail()
            node.environment.pop("DSS_CLUSTER_SECRET_PREVIOUS", None)
            node.environment.update(variables)
            node.start()
            cluster.wait_ready(PATIENCE_S, [node])
            load.restarting = None
            load.wait_for_writes(WRITES_PER_STEP)
            assert node.call("GET", "/metrics", headers=load.headers).status == 200
            if node is first:  # the others are one step behind
                assert all(token_id in operate(one, "token", "ls") for one in cluster.nodes[:2])

    try:
        cluster.start()
        cluster.wait_ready(PATIENCE_S)
        token = operate(first, "token", "create", "load", "--scope", "all")
        token_id = token.split("_")[1]
        use(token)
        first.call("POST", "/queue/consume", CONSUME, headers=load.headers)  # the group gets all messages from now on
        load.start()
        load.wait_for_writes(WRITES_PER_STEP)

        restart_all(DSS_CLUSTER_SECRET=NEW, DSS_CLUSTER_SECRET_PREVIOUS=OLD)
        assert operate(first, "token", "ls").endswith(" old")
        use(operate(first, "token", "rotate", token_id, "--overlap", "1h"))
        assert not operate(first, "token", "ls").endswith(" old")
        load.wait_for_writes(WRITES_PER_STEP)

        restart_all(DSS_CLUSTER_SECRET=NEW)
        load.stop()
        load.check()
        assert status(first, token) == 401

        straggler = cluster.nodes[2]
        assert straggler.stop() == 0
        size = straggler.log_path.stat().st_size
        straggler.environment["DSS_CLUSTER_SECRET"] = OLD
        straggler.start()
        wait_until(lambda: '"reason": "wrong_secret"' in straggler.log_path.read_text()[size:], straggler.log_tail)
        assert not straggler.is_ready()
        assert first.is_ready()
    finally:
        load.stop()
        cluster.stop()
