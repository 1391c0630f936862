"""`GET /metrics`: every documented metric exists, and changes when its event happens."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dss_dev.local_cluster import LocalCluster, LocalNode

pytestmark = pytest.mark.cluster

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(node: LocalNode) -> Samples:
    reply = node.call("GET", "/metrics")
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(reply.body.decode())
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def value(of: Samples, name: str, **labels: str) -> float:
    """The sum over the samples with at least these labels."""
    return sum(number for (found, has), number in of.items() if found == name and has >= frozenset(labels.items()))


class Moves:
    """The increase of a node's metrics since the block began."""

    def __init__(self, node: LocalNode) -> None:
        self.node = node

    def __enter__(self) -> Moves:
        self.before = samples(self.node)
        return self

    def __exit__(self, *_: object) -> None:
        self.after = samples(self.node)

    def by(self, name: str, **labels: str) -> float:
        return value(self.after, name, **labels) - value(self.before, name, **labels)


@pytest.fixture
def node(shared_cluster: LocalCluster) -> LocalNode:
    return shared_cluster.followers()[0]


def test_every_name_is_there_from_the_start(shared_cluster: LocalCluster) -> None:
    """Dashboards and alerts must find a counter before its first event. A counter with a topic appears with the first event."""
    for each in shared_cluster.nodes:
        each.call("POST", "/queue/publish", {"topic": "names", "value": 1})
        each.call("POST", "/queue/consume", {"topic": "names", "group": "g"})
    for each in shared_cluster.nodes:
        names = {name for name, _ in samples(each)}
        assert {
            "raft_role",
            "raft_append_entries_total",
            "raft_request_vote_total",
            "lock_acquire_total",
            "lock_release_total",
            "lock_held",
            "lock_wait_seconds_count",
            "lock_held_seconds_count",
            "lock_expired_total",
            "lock_deadlock_total",
            "queue_publish_total",
            "queue_consume_total",
            "queue_redeliver_total",
            "queue_inflight",
            "cache_get_total",
            "cache_put_total",
            "cache_inval_total",
            "cache_items",
            "process_resident_memory_bytes",
            "process_cpu_seconds_total",
            "raft_fsync_seconds_count",
            "raft_commit_seconds_count",
            "raft_apply_seconds_count",
            "dss_request_seconds_count",
        } <= names


def test_raft(shared_cluster: LocalCluster, wait_until) -> None:
    leader, follower = settled(shared_cluster, wait_until)
    with Moves(follower) as follower_moves, Moves(leader) as leader_moves:
        assert follower.call("POST", "/lock/acquire", {"key": "raft", "client": "c"}).status == 200
    assert follower_moves.by("raft_append_entries_total", result="ok") > 0
    assert follower_moves.by("raft_fsync_seconds_count") > 0
    assert follower_moves.by("raft_apply_seconds_count") > 0
    # The follower may answer its caller before the leader has applied the entry.
    wait_until(
        lambda: value(samples(leader), "raft_commit_seconds_count") > value(leader_moves.before, "raft_commit_seconds_count"),
        lambda: "the leader observes no commit",
    )
    with Moves(leader) as moves:
        # Another node may win it.
        wait_until(lambda: leads_after_election(follower), lambda: "the election was not won")
        wait_until(lambda: value(samples(leader), "raft_role") == 0, lambda: "it does not follow")
    assert moves.by("raft_request_vote_total", granted="true") > 0


def settled(cluster: LocalCluster, wait_until) -> tuple[LocalNode, LocalNode]:
    """A leader and a follower, as their metrics say, which know each other and the third node."""
    found: list[LocalNode] = []

    def is_settled() -> bool:
        found[:] = [cluster.leader(), *cluster.followers()]
        of_each = [samples(node) for node in found]
        roles = [value(of, "raft_role") for of in of_each]
        return roles == [2, 0, 0] and all(
            value(of, "dss_ready") == value(of, "raft_leader_known") == 1 and value(of, "raft_peer_up") == 2 for of in of_each
        )

    wait_until(is_settled, lambda: "the nodes do not agree who leads, or do not reach each other")
    return found[0], found[1]


def leads_after_election(node: LocalNode) -> bool:
    """Start an election unless the node leads. Elections that come too soon after another one are refused."""
    if value(samples(node), "raft_role") != 2:
        node.call("POST", "/raft/start_election", {"force": True})
    return value(samples(node), "raft_role") == 2


def test_the_member(shared_cluster: LocalCluster, wait_until) -> None:
    """A node's place in the cluster, its peers, its log and its disk, for alerts."""
    leader, follower = settled(shared_cluster, wait_until)
    of_leader, of_follower = samples(leader), samples(follower)
    for found in (of_leader, of_follower):
        assert value(found, "raft_leader_changes_total") >= 1
        assert value(found, "raft_term") >= 1
        assert 0 < value(found, "raft_applied_index") <= value(found, "raft_commit_index") <= value(found, "raft_last_index")
        assert value(found, "raft_log_bytes") > 0
        assert value(found, "raft_store_bytes") > 0
        assert 0 < value(found, "dss_disk_free_bytes") < value(found, "dss_disk_size_bytes")
        assert value(found, "process_open_fds") > 0
        assert value(found, "dss_loop_delay_seconds_count") > 0
        assert (
            0
            < value(found, "dss_limit_used", limit="queue_bytes_max") + 1
            <= value(found, "dss_limit_max", limit="queue_bytes_max")
        )
    peers = {dict(labels)["peer"] for name, labels in of_follower if name == "raft_peer_up"}
    assert peers == {node.id for node in shared_cluster.nodes if node is not follower}
    assert not [name for name, _ in of_follower if name == "raft_peer_lag_entries"], "only the leader knows"
    assert ("raft_peer_lag_entries", frozenset({("peer", follower.id)})) in of_leader
    (build,) = [dict(labels) for name, labels in of_leader if name == "dss_build_info"]
    assert build["node"] == leader.id
    assert build["version"] not in ("", "unknown")
    with Moves(leader) as moves:
        assert leader.call("POST", "/raft/snapshot", {}).status == 200
    assert moves.by("raft_snapshot_seconds_count") == 1
    assert moves.by("raft_snapshot_index") > 0
    assert value(moves.after, "raft_snapshot_bytes") > 0


def test_known_labels_are_there_at_0(shared_cluster: LocalCluster, wait_until) -> None:
    """`increase` counts the first event only if the series was there before it."""
    leader, follower = shared_cluster.leader(), shared_cluster.followers()[0]
    assert leader.call("POST", "/queue/publish", {"topic": "known", "value": 1}).status == 200
    published = ("queue_publish_total", frozenset({("topic", "known")}))
    wait_until(lambda: published in samples(follower), lambda: "the topic has no counter on the follower")
    found = samples(follower)
    for topic in ("known", "other"):
        assert ("queue_publish_total", frozenset({("topic", topic)})) in found
        for result in ("message", "empty", "cancelled", "refused", "failed"):
            assert found["queue_consume_total", frozenset({("topic", topic), ("result", result)})] == 0
    assert ("raft_peer_refused_total", frozenset({("reason", "wrong_secret")})) in found
    assert ("dss_subscriptions", frozenset({("subscription", "queue.subscribe")})) in found
    assert not [name for name, _ in found if name.startswith("django_")], "they are off"


def test_locks(shared_cluster: LocalCluster, wait_until) -> None:
    leader, node = settled(shared_cluster, wait_until)
    with Moves(node) as moves:
        for mode in ("exclusive", "shared"):
            node.call("POST", "/lock/acquire", {"key": mode, "client": "a", "mode": mode})
        assert node.call("POST", "/lock/acquire", {"key": "exclusive", "client": "b"}).status == 423
    assert moves.by("lock_acquire_total", mode="exclusive", result="granted") == 1
    assert moves.by("lock_acquire_total", mode="shared", result="granted") == 1
    assert moves.by("lock_acquire_total", mode="exclusive", result="held") == 1
    assert moves.by("lock_held", mode="exclusive") == 1
    assert moves.by("lock_held", mode="shared") == 1
    assert moves.by("lock_wait_seconds_count") == 2, "an immediate grant is a wait, too"
    with Moves(node) as moves, Moves(leader) as leader_moves:
        for _ in range(2):
            node.call("POST", "/lock/release", {"key": "exclusive", "client": "a"})
        # The follower may answer its caller before the leader has applied the entry.
        wait_until(
            lambda: value(samples(leader), "lock_held_seconds_count") > value(leader_moves.before, "lock_held_seconds_count"),
            lambda: "the leader observes no end of the lock",
        )
    assert moves.by("lock_release_total", result="released") == 1
    assert moves.by("lock_release_total", result="not_held") == 1
    assert leader_moves.by("lock_held_seconds_count") == 1
    assert moves.by("lock_held_seconds_count") == 0, "the sum over the nodes is right"
    assert moves.by("lock_held", mode="exclusive") == -1


def test_queue(node: LocalNode) -> None:
    place = {"topic": "counted", "group": "g"}
    with Moves(node) as moves:
        node.call("POST", "/queue/publish", {"topic": "counted", "value": 1})
        got = node.call("POST", "/queue/consume", place).json
        assert node.call("POST", "/queue/consume", {**place, "timeout_ms": 0}).json["msg_id"] is None
    assert moves.by("queue_publish_total", topic="counted") == 1
    assert moves.by("queue_consume_total", topic="counted", result="message") == 1
    assert moves.by("queue_consume_total", topic="counted", result="empty") == 1
    assert moves.by("queue_inflight", topic="counted") == 1
    with Moves(node) as moves:
        node.call("POST", "/queue/nack", {**place, "msg_id": got["msg_id"]})
        assert node.call("POST", "/queue/consume", place).json["attempt"] == 2
    assert moves.by("queue_redeliver_total", topic="counted") == 1
    with Moves(node) as moves:
        node.call("POST", "/queue/ack", {**place, "msg_id": got["msg_id"]})
    assert moves.by("queue_inflight", topic="counted") == -1


def test_topics_cannot_flood_the_metrics(node: LocalNode) -> None:
    """A client that invents topic names must not fill the memory of nodes and Prometheus with label values."""
    for number in range(300):
        assert node.call("POST", "/queue/publish", {"topic": f"made-up-{number}", "value": 1}).status == 200
    topics = {dict(labels)["topic"] for name, labels in samples(node) if name == "queue_publish_total"}
    assert len(topics) < 300
    assert value(samples(node), "queue_publish_total") >= 300, "the others are counted together"


def test_cache(shared_cluster: LocalCluster, node: LocalNode, wait_until) -> None:
    other = next(each for each in shared_cluster.nodes if each is not node)
    other.call("POST", "/cache/put", {"key": "counted", "value": 1})
    hits: list[bool] = []
    with Moves(node) as moves:
        # On a busy machine, the node may be without a lease for a moment.
        while not any(hits):
            hits.append(node.call("GET", "/cache/get?key=counted").json["hit"])
    assert hits[0] is False
    assert moves.by("cache_get_total", hit="false") == hits.count(False)
    assert moves.by("cache_get_total", hit="true") == 1
    assert moves.by("cache_items") == 1
    with Moves(node) as moves:
        other.call("POST", "/cache/put", {"key": "counted", "value": 2})
        # The put waits for the node to apply it, or until its lease has ended.
        wait_until(
            lambda: value(samples(node), "cache_inval_total") > value(moves.before, "cache_inval_total"), lambda: "it keeps it"
        )
    assert moves.by("cache_inval_total") == 1
    assert moves.by("cache_items") == -1
    with Moves(node) as moves:
        node.call("POST", "/cache/put", {"key": "counted", "value": 3})
    assert moves.by("cache_put_total") == 1
