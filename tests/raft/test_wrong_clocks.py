"""Three nodes, one of them with a wall clock that is wrong by days: applied time is right, and the node says that its clock is wrong."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from dss_api.errors import Refused
from dss_dev.sum_machine import Add, Wait
from dss_raft import clock_exchange
from dss_raft.replication.clocks import AGREE_MS, wall_clock_ms

DAY_MS = 24 * 3_600_000
WRONG = pytest.mark.parametrize("wrong_ms", [8 * DAY_MS, -8 * DAY_MS], ids=["ahead", "behind"])


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Clocks are exchanged more often, so that the tests need not wait."""
    monkeypatch.setattr(clock_exchange, "SEND_EVERY_S", 0.05)


def is_right(node, expected_ms: float = 0) -> bool:
    """Whether its estimate of applied time is what the wall clock of this machine shows, give or take less than a minute."""
    return node.replica.at_ms > 0 and abs(node.now_ms() - wall_clock_ms() - expected_ms) < AGREE_MS


async def leads(cluster, node_id: str) -> None:
    """Make the node the leader, and wait until its first batch is applied."""
    node = cluster.nodes[node_id]
    await cluster.until(lambda: all(one.is_ready for one in cluster.nodes.values()))
    while not node.is_leader:
        try:
            await node.transfer(node_id)
        except Refused:  # an election timeout must pass between two transfers
            await asyncio.sleep(0.1)
    await cluster.until(lambda: node.replica.batch_term == node.term)


@WRONG
async def test_applied_time_is_right_although_the_clock_of_one_leader_is_wrong(cluster, wrong_ms):
    cluster.clock_off_ms["a"] = wrong_ms
    await cluster.start()
    for leader in ("a", "b", "a"):
        await leads(cluster, leader)
        result = await cluster.nodes["c"].submit(Add(amount=1))
        assert result.code == ""
        await cluster.nodes["c"].read_index()
        assert all(is_right(node) for node in cluster.nodes.values())


@WRONG
async def test_after_a_day_without_a_leader_time_is_advanced_by_a_day_and_leases_are_not_lost(cluster, wrong_ms):
    """The node with the wrong clock is among the first two, so a majority agrees only when the third is there."""
    cluster.clock_off_ms["a"] = wrong_ms
    await cluster.start()
    await cluster.leader()
    await cluster.nodes["c"].read_index()
    await cluster.stop()
    for node_id in cluster.clock_off_ms:
        cluster.clock_off_ms[node_id] += DAY_MS
    await cluster.start("a", "b")
    leader = await cluster.leader()
    waiting = asyncio.create_task(leader.submit(Wait(target=1, lease_ms=60_000), wait_ms=60_000))
    await cluster.until(lambda: leader.machine("sum").waiters)
    assert is_right(leader), "it runs free"
    await cluster.start("c")
    await cluster.until(lambda: all(is_right(node, DAY_MS) for node in cluster.nodes.values()))
    assert leader.machine("sum").waiters, "its lease has its full length again"
    await leader.submit(Add(amount=1))
    assert (await waiting).body == {"total": 1}


async def test_a_single_node_trusts_its_clock_and_says_when_time_was_advanced(make_cluster):
    cluster = make_cluster(peers=[])
    await cluster.start("a")
    await (await cluster.leader()).submit(Add(amount=1))
    await cluster.stop("a")
    cluster.clock_off_ms["a"] = DAY_MS
    with capture_logs() as logs:
        await cluster.start("a")
        await cluster.until(lambda: any(line["event"] == "raft.time_advanced" for line in logs))
        assert is_right(cluster.nodes["a"], DAY_MS)
        cluster.clock_off_ms["a"] -= DAY_MS
        await cluster.until(lambda: any(line["event"] == "raft.clock_set" for line in logs))
    assert is_right(cluster.nodes["a"], DAY_MS), "time does not go back"
    (advanced,) = (line for line in logs if line["event"] == "raft.time_advanced")
    assert "the clocks of a agree" in advanced["detail"]
    (was_set,) = (line for line in logs if line["event"] == "raft.clock_set")
    assert was_set["by_ms"] == pytest.approx(-DAY_MS, abs=AGREE_MS)


async def test_a_node_says_that_its_clock_is_wrong_and_when_it_is_right_again(cluster):
    def clock(node_id: str):
        return cluster.nodes[node_id].status()["clock"]

    with capture_logs() as logs:
        cluster.clock_off_ms["b"] = -8 * DAY_MS
        await cluster.start()
        await cluster.leader()
        await cluster.until(lambda: clock("b")["is_wrong"])
        assert clock("b")["agreeing"] == ["a", "c"]
        assert clock("b")["off_by_ms"] == pytest.approx(-8 * DAY_MS, abs=AGREE_MS)
        await cluster.until(lambda: clock("a")["agreeing"] == ["a", "c"])
        assert not clock("a")["is_wrong"]
        assert abs(clock("a")["applied_off_by_ms"]) < AGREE_MS
        cluster.clock_off_ms["b"] = 0
        await cluster.until(lambda: clock("b")["agreeing"] == ["a", "b", "c"] and not clock("b")["is_wrong"])
    events = [line["event"] for line in logs]
    assert events.count("raft.clock_wrong") == events.count("raft.clock_right") == 1


async def test_without_a_majority_nodes_say_that_their_clocks_disagree(cluster):
    cluster.clock_off_ms |= {"b": DAY_MS, "c": 2 * DAY_MS}
    with capture_logs() as logs:
        await cluster.start()
        leader = await cluster.leader()
        await cluster.until(lambda: any(line["event"] == "raft.clocks_disagree" for line in logs))
    clock = leader.status()["clock"]
    assert clock == {"off_by_ms": None, "is_wrong": False, "agreeing": [], "applied_off_by_ms": None}
