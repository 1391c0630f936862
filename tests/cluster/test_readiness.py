"""`/ready` and `up`: a node that was stopped or cut off is noticed within an election timeout, not when its link breaks."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.cluster

WRITE = ("POST", "/cache/put", {"key": "k", "value": 1})


def up(node) -> dict[str, bool]:
    return {member["id"]: member["up"] for member in node.status()["members"]}


def dropped_links(node) -> list[str]:
    return [line for line in node.log_path.read_text().splitlines() if '"peer_silent"' in line or '"raft.peer_down"' in line]


@pytest.mark.rounds
def test_a_stopped_peer_is_not_up(cluster, wait_until):
    """SIGSTOP leaves its connections open. They are dropped after 5 s; `up` must not wait for that."""
    stopped, *others = (*cluster.followers(), cluster.leader())
    wait_until(lambda: all(all(up(node).values()) for node in others), lambda: str([up(node) for node in others]))
    before = [dropped_links(node) for node in others]
    stopped.pause()
    try:
        wait_until(lambda: not any(up(node)[stopped.id] for node in others), lambda: "it stays up")
        assert [dropped_links(node) for node in others] == before, "the links are still there"
        wait_until(lambda: all(node.is_ready() for node in others), lambda: "the others are not ready")
        assert others[0].call(*WRITE).status == 200
    finally:
        stopped.resume()
    wait_until(lambda: all(all(up(node).values()) for node in cluster.nodes), lambda: "it does not come back")


@pytest.mark.rounds
@pytest.mark.parametrize("role", ["leader", "follower"])
def test_a_node_that_was_cut_off_is_not_ready_before_its_links_break(make_partitioned_cluster, wait_until, role):
    cluster = make_partitioned_cluster(DSS_SUBMIT_TIMEOUT_MS="1000")
    away = cluster.leader() if role == "leader" else cluster.followers()[0]
    before = dropped_links(away)
    cluster.isolate(away)
    wait_until(lambda: not away.is_ready(), lambda: "it stays ready")
    wait_until(lambda: sum(up(away).values()) == 1, lambda: str(up(away)))
    assert dropped_links(away) == before, "the links are still there"
    reply = away.call(*WRITE)
    assert (reply.status, away.is_ready()) == (503, False)
    cluster.heal()
    cluster.wait_ready()
    # Its calls wait for a second only.
    wait_until(lambda: away.call(*WRITE).status == 200, lambda: "it does not write")
