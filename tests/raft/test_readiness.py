"""`/ready`: a node is ready exactly while a write that is submitted on it would be answered."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from dss_api.errors import Refused
from dss_dev.sum_machine import Add
from dss_raft import operations
from dss_raft.core import Role
from dss_raft.core.messages import AppendEntries, InstallSnapshot, SnapshotMeta
from dss_raft.readiness import Readiness

TICKS_MAX = 3


@pytest.fixture
def watched() -> SimpleNamespace:
    """A follower that answers writes, with its `Readiness`. Tests take one condition away."""
    core = SimpleNamespace(
        node_id="b",
        leader_id="a",
        role=Role.FOLLOWER,
        election_elapsed=0,
        last_index=10,
        commit_index=10,
        known_committed=10,
        membership=SimpleNamespace(ids={"a", "b"}),
    )
    replica = SimpleNamespace(applied_index=10)
    calls = SimpleNamespace(is_closing=False, is_session_accepted=True, has_unapplied=False)
    return SimpleNamespace(core=core, replica=replica, calls=calls, readiness=Readiness(core, replica, calls, TICKS_MAX))


def reasons(watched, ticks: int) -> list[str]:
    """What it says after each of the next ticks."""
    seen = []
    for _ in range(ticks):
        watched.readiness.tick()
        seen.append(watched.readiness.not_ready_reason)
    return seen


def test_nothing_is_missing(watched):
    assert reasons(watched, 10) == [""] * 10


@pytest.mark.parametrize(
    ("part", "field", "value", "reason"),
    [
        ("core", "leader_id", "", "knows no leader"),
        ("core", "election_elapsed", TICKS_MAX + 1, "nothing was received from the leader, a,"),
        ("core", "membership", SimpleNamespace(ids={"a"}), "not a member"),
        ("calls", "is_session_accepted", False, "has not accepted the session"),
        ("calls", "is_closing", True, "stopping"),
    ],
)
def test_one_thing_is_missing(watched, part, field, value, reason):
    setattr(getattr(watched, part), field, value)
    assert reason in watched.readiness.not_ready_reason


def test_a_leader_hears_from_no_leader(watched):
    watched.core.role, watched.core.leader_id = Role.LEADER, "b"
    watched.core.election_elapsed = 1000
    assert watched.readiness.not_ready_reason == ""


def test_a_busy_node_is_always_a_little_behind(watched):
    for index in range(11, 60):
        watched.core.known_committed = watched.core.commit_index = watched.core.last_index = index
        watched.replica.applied_index = index - 2
        assert reasons(watched, 1) == [""]


def test_a_node_that_falls_behind_is_not_ready_until_it_has_caught_up(watched):
    """Its log, too, ends before what it knows to be committed elsewhere: everything that it has is applied."""
    watched.core.known_committed = 100
    watched.readiness.tick()
    for index in range(11, 20):
        watched.core.commit_index = watched.core.last_index = watched.replica.applied_index = index
        watched.readiness.tick()
    assert watched.readiness.not_ready_reason == "this node has applied 19 of 100 entries"
    watched.replica.applied_index = 100
    assert reasons(watched, 1) == [""]


async def test_a_busy_node_does_not_flap(make_cluster):
    """Followers know of commits that their disks still write, at almost any moment. They answer all the same."""
    # The disk of a busy machine may need longer than an election timeout of these tests for a write.
    cluster = make_cluster(raft_election_min_ms=1500, raft_election_max_ms=2000)
    await cluster.start()
    await cluster.leader()
    nodes = list(cluster.nodes.values())
    await cluster.until(lambda: all(node.is_ready for node in nodes))
    answered, behind, said = asyncio.Event(), 0, set()

    async def load() -> None:
        for _ in range(30):
            await asyncio.gather(*(node.submit(Add(amount=1)) for node in nodes for _ in range(20)))
        answered.set()

    loading = asyncio.create_task(load())
    while not answered.is_set():
        behind += any(node.applied_index < node.commit_index for node in nodes)
        said |= {node.not_ready_reason for node in nodes}
        await asyncio.sleep(0)
    await loading
    assert behind, "the test saw no moment that counts"
    assert said == {""}


async def test_a_node_that_failed_is_not_ready(cluster):
    await cluster.start()
    leader = await cluster.leader()
    leader.failed(RuntimeError("planned"))
    with pytest.raises(Refused, match="not running"):
        await operations.ready(leader, operations.NoParameters())


async def test_a_start_is_ready_once_its_session_is_accepted(make_cluster):
    """A node that was replaced, or whose session belongs to another start, hears the leader and still gets no answers."""
    cluster = make_cluster()
    await cluster.start()
    node = await cluster.follower()
    await cluster.until(lambda: node.is_ready)
    session = node.replica.sessions.get(node.node_id)
    assert session.incarnation == node.incarnation
    session.incarnation += 1
    assert "session" in node.not_ready_reason
    session.incarnation -= 1
    assert node.is_ready


async def test_a_leader_names_its_commit_index_before_the_log_reaches_it(cluster):
    await cluster.start()
    follower, leader = await cluster.follower(), await cluster.leader()
    core, term = follower.core, follower.core.term
    ahead = core.commit_index + 1000
    core.step(_append(leader, follower, ahead))
    assert (core.known_committed, core.commit_index < ahead) == (ahead, True)
    meta = SnapshotMeta(ahead + 1, term, core.configuration)
    chunk = InstallSnapshot(
        sender=leader.node_id, to=follower.node_id, term=term, meta=meta, offset=1, data=b"", crc=0, done=False
    )
    core.step(chunk)
    assert core.known_committed == ahead + 1


def _append(leader, follower, commit: int) -> AppendEntries:
    core = follower.core
    return AppendEntries(
        sender=leader.node_id,
        to=follower.node_id,
        term=core.term,
        prev_index=core.commit_index,
        prev_term=core.log.known_term(core.commit_index),
        entries=[],
        commit=commit,
        round=0,
    )
