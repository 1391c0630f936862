"""Real nodes of two releases: they work together, the version rises when the last one is new, and then no node can go back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from dss_api.errors import Refused
from dss_dev.sum_machine import Add, Double, NewSum, Sum
from dss_raft import cluster_version as module
from dss_raft.net.wire import AppFrame
from dss_raft.replication.replica import Replica
from dss_raft.versions import LATEST, Raise, UnsupportedVersion


class Upgrade:
    """A cluster whose nodes are restarted with another release."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster

    async def restart(self, node_id: str, latest: int) -> None:
        if node_id in self.cluster.nodes:
            await self.cluster.stop(node_id)
        self.cluster.settings["cluster_version_max"] = latest
        await self.cluster.start(node_id)

    async def all_apply(self, version: int) -> None:
        nodes = self.cluster.nodes.values()
        await self.cluster.until(lambda: all(node.replica.cluster_version == version for node in nodes))

    async def all_are_linked(self) -> None:
        nodes = self.cluster.nodes.values()
        await self.cluster.until(lambda: all(node.is_ready and len(node._links.up_peers()) == len(nodes) - 1 for node in nodes))


@pytest.fixture
def upgrade(make_cluster) -> Upgrade:
    return Upgrade(make_cluster(machine=NewSum, cluster_version_max=1))


async def test_a_single_node_has_the_latest_version(make_cluster):
    cluster = make_cluster(peers=[])
    await cluster.start("a")
    node = cluster.nodes["a"]
    await cluster.until(lambda: node.replica.cluster_version == LATEST)
    status = node.status()
    assert status["cluster_version"] == LATEST
    assert status["supported_versions"] == status["members"][0]["supported_versions"] == {"min": 1, "max": LATEST}
    await cluster.until(lambda: REGISTRY.get_sample_value("raft_cluster_version") == LATEST)


async def test_an_upgrade_node_by_node_and_the_way_back(upgrade):
    cluster = upgrade.cluster
    await cluster.start()
    leader = await cluster.leader()
    await leader.submit(Add(amount=3))
    for node_id in ("a", "b"):
        await upgrade.restart(node_id, 2)
        await upgrade.all_are_linked()
    node = cluster.nodes["a"]
    with pytest.raises(Refused) as refused:
        await node.submit(Double())
    assert refused.value.code == "not_supported_yet"
    supported = {member["id"]: member["supported_versions"]["max"] for member in node.status()["members"]}
    assert supported == {"a": 2, "b": 2, "c": 1}

    await upgrade.restart("a", 1)  # back
    await upgrade.all_are_linked()
    assert {node.replica.cluster_version for node in cluster.nodes.values()} == {1}

    await upgrade.restart("a", 2)
    await upgrade.restart("c", 2)
    await upgrade.all_apply(2)
    result = await (await cluster.leader()).submit(Double())
    assert result.body == {"total": 6}

    await cluster.stop("a")
    cluster.settings["cluster_version_max"] = 1
    with pytest.raises(UnsupportedVersion, match="the cluster's version is 2; DSS_CLUSTER_VERSION_MAX is 1"):
        await cluster.create("a").start()


async def test_a_member_that_is_down_holds_the_version(upgrade):
    cluster = upgrade.cluster
    await cluster.start()
    await cluster.leader()
    await cluster.stop("c")
    for node_id in ("a", "b"):
        await upgrade.restart(node_id, 2)
    leader = await cluster.leader()
    for _ in range(5):
        await leader.submit(Add(amount=1))
    version = leader._version
    await cluster.until(lambda: version.obstacle.missing == ("c",))
    assert leader.replica.cluster_version == 1
    await upgrade.restart("c", 2)
    await upgrade.all_apply(2)


async def test_a_node_that_has_just_started_does_not_refuse_what_the_others_know(make_cluster):
    cluster = make_cluster(machine=NewSum)
    await cluster.start()
    await cluster.until(lambda: all(node.replica.cluster_version == LATEST for node in cluster.nodes.values()))
    await (await cluster.leader()).submit(Add(amount=3))
    await cluster.stop("a")
    await cluster.start("a")
    node = cluster.nodes["a"]
    assert node.replica.cluster_version == 1, "it has not applied its log yet"
    assert (await node.submit(Double())).body == {"total": 6}


def test_why_the_version_does_not_rise_is_logged_once(monkeypatch):
    monkeypatch.setattr(module, "REPORT_AFTER_TICKS", 5)
    obstacle = Raise(0, ("c",), {"b": 1})
    watch = module.ClusterVersion(Replica("a", [Sum()]), lambda: obstacle)
    with capture_logs() as logs:
        for _ in range(4):
            watch.tick()
        assert logs == []
        for _ in range(20):
            watch.tick()
        obstacle = Raise()
        for _ in range(20):
            watch.tick()
    (line,) = logs
    assert line["event"] == "raft.cluster_version_waits"
    assert (line["version"], line["not_linked"], line["older"]) == (1, ["c"], {"b": 1})


async def test_a_node_of_an_older_release_that_joins_ends_and_says_why(upgrade):
    cluster = upgrade.cluster
    cluster.settings["cluster_version_max"] = 2
    await cluster.start()
    await upgrade.all_apply(2)
    leader = await cluster.leader()
    await leader.add_member("d", cluster.url("d"))
    await upgrade.restart("d", 1)
    await cluster.until(lambda: "d" in cluster.failures)
    assert isinstance(cluster.failures["d"], UnsupportedVersion)
    assert not cluster.nodes["d"].is_running
    assert cluster.failures.keys() == {"d"}
    await leader.submit(Add(amount=1))


async def test_a_member_that_goes_back_while_the_version_rises_stops_before_it_applies_it(upgrade, monkeypatch):
    """The leader believes an old announcement: the member ends, and the states never differ."""
    cluster = upgrade.cluster
    await cluster.start("a", "b")
    await upgrade.restart("a", 2)
    await upgrade.restart("b", 2)
    await upgrade.restart("c", 1)
    await upgrade.all_are_linked()
    leader = await cluster.leader()
    if leader.node_id == "c":
        await leader.transfer("a")
        leader = await cluster.leader()
        await cluster.until(lambda: cluster.nodes["a"].is_leader)
        leader = cluster.nodes["a"]
    await leader.submit(Add(amount=5))
    old = cluster.nodes["c"]
    monkeypatch.setattr(leader, "_supported_by", lambda peer: leader.replica.supported)
    await cluster.until(lambda: "c" in cluster.failures)
    assert isinstance(cluster.failures["c"], UnsupportedVersion)
    applied = old.applied_index
    await cluster.until(lambda: leader.replica.cluster_version == 2)
    assert (await leader.submit(Double())).body == {"total": 10}
    assert (old.replica.cluster_version, old.applied_index) == (1, applied)
    assert old.machine("sum").total == 5


async def test_a_frame_on_a_channel_of_a_newer_release_is_ignored(upgrade):
    cluster = upgrade.cluster
    await cluster.start()
    leader, follower = await cluster.leader(), await cluster.follower()
    leader._links.send(follower.node_id, AppFrame("a channel of tomorrow", b"\x00anything"))
    await follower.submit(Add(amount=1))
    await asyncio.sleep(0)
    assert cluster.failures == {}
    assert follower._links.is_up(leader.node_id)


async def test_a_restarted_node_links_with_tls_only_before_it_applies_its_log(cluster):
    await cluster.start()
    await cluster.until(lambda: all(node.replica.cluster_version == LATEST for node in cluster.nodes.values()))
    await cluster.stop()
    await cluster.start("a")
    node = cluster.nodes["a"]
    assert node.replica.cluster_version < LATEST
    assert not node._links._may_be_without_tls


async def test_a_node_that_builds_its_state_again_links_with_tls_only(cluster):
    await cluster.start()
    node = cluster.nodes["a"]
    await cluster.until(lambda: node.replica.cluster_version == LATEST)
    node.replica._use_version(1)  # that of the snapshot
    assert not node._links._may_be_without_tls
    node.replica._use_version(LATEST)
