"""With two of three nodes down, calls are refused in time. The cluster recovers by itself when one is back."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("survivor", ["leader", "follower"])
def test_two_of_three_down(make_cluster, survivor):
    cluster = make_cluster(DSS_SUBMIT_TIMEOUT_MS="1500")
    left = cluster.leader() if survivor == "leader" else cluster.followers()[0]
    for node in cluster.nodes:
        if node is not left:
            node.kill()
    codes = []
    while not codes or codes[-1] == "unknown_outcome":
        reply = left.call("POST", "/lock/acquire", {"key": "a", "client": "c"})
        assert reply.status == 503
        assert reply.headers["Retry-After"]
        assert reply.json["ok"] is False
        codes.append(reply.json["code"])
    assert codes[-1] == "no_quorum"
    assert left.call("GET", "/health").status == 200, "the process serves"
    assert left.call("GET", "/ready").status == 503, "and says that it is of no use"

    back = next(node for node in cluster.nodes if node is not left)
    back.start()
    cluster.wait_ready(nodes=[left, back])
    assert left.call("POST", "/lock/acquire", {"key": "a", "client": "c"}).status == 200
