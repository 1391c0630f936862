"""The nodes compare hashes of their states: a difference raises an alarm, which stays until the other node is rebuilt."""

from __future__ import annotations

import asyncio
import signal
from types import SimpleNamespace

import pytest

from dss_dev.sum_machine import Add, Sum
from dss_raft import metrics, state_hashes
from dss_raft.applying import Applying
from dss_raft.core import Role
from dss_raft.core.messages import Entry, EntryKind
from dss_raft.disk import forked
from dss_raft.disk.forked import IS_AVAILABLE
from dss_raft.formats import WrongFormat
from dss_raft.replication import snapshot_keeper
from dss_raft.replication.batch import encode_batch, encode_command
from dss_raft.replication.commands import HashState
from dss_raft.replication.replica import Replica
from dss_raft.state_hashes import KEPT_MAX, StateHashes


class Member:
    """One node's hashes, and its links to others."""

    def __init__(self, node_id: str, directory) -> None:
        self.stores = {"a": "a0", "b": "b0", "c": "c0"}
        self.core = SimpleNamespace(
            node_id=node_id,
            role=Role.FOLLOWER,
            last_index=0,
            membership=SimpleNamespace(ids=frozenset("abc"), stores=self.stores),
        )
        self.replica = Replica(node_id, [Sum()])
        self.replica.cluster_version = 2
        self.small, self.is_taking = True, False
        self.linked: list[Member] = []
        self.proposed: list[HashState] = []
        self.hashes = StateHashes(self, self.core, self.replica, self, directory, 600, 0)

    def is_small(self, core) -> bool:
        """In place of the keeper of snapshots."""
        return self.small

    def send(self, peer_id: str, channel: str, payload: bytes) -> None:
        assert channel == state_hashes.CHANNEL
        for member in self.linked:
            if member.core.node_id == peer_id:
                member.hashes.receive(self.core.node_id, payload)

    def propose_as_leader(self, command: HashState) -> bool:
        self.proposed.append(command)
        return True

    def at(self, index: int) -> Member:
        """The state is hashed after this entry."""
        self.replica.applied_index = self.core.last_index = index
        self.hashes.begin(0)
        return self

    @property
    def status(self):
        return self.hashes.status()


@pytest.fixture
def members(tmp_path):
    made = [Member(node_id, tmp_path) for node_id in "abc"]
    for member in made:
        member.linked = [other for other in made if other is not member]
    metrics.STATE_DIFFERS.set(0)
    return made


def test_equal_states_agree(members):
    for member in members:
        member.at(7)
    a, b, c = (member.status for member in members)
    assert a == {"index": 7, "agreeing": ["b", "c"], "differing": [], "parts": []}
    assert (b["agreeing"], c["agreeing"]) == (["a", "c"], ["a", "b"])


def test_a_difference_names_the_node_and_the_part_on_all_nodes(members):
    a, b, c = members
    b.replica.machines["sum"].total = 1
    for member in members:
        member.at(7)
    assert a.status == {"index": 7, "agreeing": ["c"], "differing": ["b"], "parts": ["sum"]}
    assert b.status == {"index": 7, "agreeing": [], "differing": ["a", "c"], "parts": ["sum"]}
    assert (c.status["agreeing"], c.status["differing"]) == (["a"], ["b"])
    assert metrics.STATE_DIFFERS._value.get() > 0


def test_a_node_that_did_not_hash_is_no_difference(members):
    a, b, _ = members
    a.small, a.is_taking = False, True
    for member in members:
        member.at(7)
    assert a.status == {"index": None, "agreeing": [], "differing": [], "parts": []}
    assert b.status == {"index": 7, "agreeing": ["c"], "differing": [], "parts": []}


def test_other_indexes_and_versions_are_not_compared(members):
    a, b, c = members
    a.at(7)
    b.replica.machines["sum"].total = 1
    b.at(8)
    c.replica.cluster_version = 3
    c.at(7)
    assert [member.status["differing"] for member in members] == [[], [], []]


def test_what_was_missed_while_a_link_was_down_is_compared_when_it_comes_up(members):
    a, b, _ = members
    links, a.linked, b.linked = a.linked, [], []
    b.replica.machines["sum"].total = 1
    a.at(7)
    b.at(7)
    assert not a.status["differing"]
    a.linked = links
    a.hashes.linked("b")
    assert b.status["differing"] == ["a"]


def test_the_alarm_stays_when_later_states_agree(members):
    a, b, _ = members
    b.replica.machines["sum"].total = 1
    a.at(7)
    b.at(7)
    b.replica.machines["sum"].total = 0
    a.at(8)
    b.at(8)
    a.hashes.ticked(1)
    assert a.status == {"index": 8, "agreeing": ["b"], "differing": ["b"], "parts": ["sum"]}


@pytest.mark.parametrize("how", ["removed", "another store"])
def test_the_alarm_ends_when_the_node_is_rebuilt(members, how):
    a, b, _ = members
    b.replica.machines["sum"].total = 1
    a.at(7)
    b.at(7)
    if how == "removed":
        a.core.membership.ids = frozenset("ac")
    else:
        a.stores["b"] = "b1"
    a.hashes.ticked(1)
    assert a.status == {"index": 7, "agreeing": [], "differing": [], "parts": []}
    assert metrics.STATE_DIFFERS._value.get() == 0


def test_few_hashes_are_kept(members):
    a, b, _ = members
    for index in range(1, 3 * KEPT_MAX):
        a.at(index)
    assert len(a.hashes._own) == len(b.hashes._of_peers["a"]) == KEPT_MAX


def test_a_payload_of_a_newer_release_is_refused_before_it_is_decoded(members):
    with pytest.raises(WrongFormat, match="format 2"):
        members[0].hashes.receive("b", b"\x02later")


def test_a_leader_asks_for_hashes_when_the_time_has_come_and_the_log_has_moved(members):
    a = members[0]
    a.core.role, a.core.last_index = Role.LEADER, 5
    a.hashes.ticked(599)
    assert not a.proposed
    a.hashes.ticked(600)
    a.hashes.ticked(601)
    assert a.proposed == [HashState()]
    a.at(6)
    a.hashes.ticked(2000)
    assert len(a.proposed) == 1, "nothing has happened since"
    a.core.last_index = 7
    a.hashes.ticked(2000)
    assert len(a.proposed) == 2


@pytest.mark.parametrize("reason", ["follower", "alone", "old", "off"])
def test_nobody_else_asks_for_hashes(members, reason):
    a = members[0]
    a.core.role, a.core.last_index = Role.LEADER, 5
    if reason == "follower":
        a.core.role = Role.FOLLOWER
    elif reason == "alone":
        a.core.membership.ids = frozenset("a")
    elif reason == "old":
        a.replica.cluster_version = 1
    else:
        a.hashes._interval_s = 0
    a.hashes.ticked(10_000)
    assert not a.proposed


def entry(index: int, *own) -> Entry:
    return Entry(index, 1, EntryKind.COMMANDS, encode_batch(0, [encode_command(command) for command in own], []))


def test_the_state_is_hashed_right_after_the_entry_that_asks_for_it():
    """Other entries that are committed by then are applied in the same turn."""
    replica = Replica("a", [Sum()])
    replica.cluster_version = 2
    seen = []
    listener = SimpleNamespace(
        hash_state=lambda: seen.append((replica.applied_index, replica.machines["sum"].total)), entries_applied=lambda: None
    )
    core, snapshots = SimpleNamespace(applied=lambda index: None), SimpleNamespace(is_due=lambda core: False)
    applying = Applying(core, replica, snapshots, listener, None, None)
    applying.add([entry(1, Add(amount=1)), entry(2, HashState(), Add(amount=1)), entry(3, Add(amount=1)), entry(4, HashState())])
    applying.turn()
    assert seen == [(2, 2), (4, 3)]


def test_a_request_whose_entry_could_not_be_applied_is_forgotten_with_the_state():
    replica = Replica("a", [Sum()])
    replica.must_hash = True
    replica.restore(replica.first_state)
    assert not replica.must_hash


def test_a_request_that_is_newer_than_the_cluster_has_no_effect():
    replica = Replica("a", [Sum()])
    replica.apply(entry(1, HashState()))
    assert not replica.must_hash


needs_fork = pytest.mark.skipif(not IS_AVAILABLE, reason="this system has no fork() or no pidfd_open()")


@needs_fork
async def test_a_large_state_is_hashed_in_a_child_as_it_was_at_the_entry(members):
    a, b, _ = members
    a.small = False
    a.at(7)
    a.replica.machines["sum"].total = 1
    a.replica.applied_index = 8
    b.at(7)
    async with asyncio.timeout(60):
        while a.status["index"] is None:  # noqa: ASYNC110  (the child's end is no event of this class)
            await asyncio.sleep(0.01)
    assert a.status == {"index": 7, "agreeing": ["b"], "differing": [], "parts": []}
    assert not a.hashes._file.exists()


@needs_fork
async def test_one_child_at_a_time_and_none_after_a_stop(members, monkeypatch):
    a = members[0]
    a.small = False
    monkeypatch.setattr(a.hashes, "_encoded", signal.pause)
    a.at(7)
    child = a.hashes._child
    a.at(8)
    assert a.hashes._child is child
    await a.hashes.stop()
    assert child._descriptor == -1


@needs_fork
async def test_a_child_that_fails_or_hangs_is_no_difference(members, monkeypatch):
    a = members[0]
    a.small = False
    monkeypatch.setattr(a.hashes, "_encoded", lambda: 1 / 0)
    a.at(7)
    async with asyncio.timeout(60):
        while a.hashes._child is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert a.status["index"] is None
    monkeypatch.setattr(a.hashes, "_encoded", signal.pause)
    monkeypatch.setattr(forked.Child.ended, "__defaults__", (0.05,))
    a.at(8)
    async with asyncio.timeout(60):
        while a.hashes._child is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert a.status["index"] is None


# ------------------------------------------------------------- three complete nodes


async def hashed(cluster, above: int = 0) -> None:
    """Wait until all nodes have hashed their states at one later index."""

    def is_done() -> bool:
        indexes = {node.status()["state_hash"]["index"] or 0 for node in cluster.nodes.values()}
        return len(indexes) == 1 and indexes.pop() > above

    await cluster.until(is_done)


@pytest.mark.parametrize("inline_bytes_max", [snapshot_keeper.INLINE_BYTES_MAX, pytest.param(-1, marks=needs_fork)])
async def test_a_state_that_was_changed_behind_its_node_raises_an_alarm_on_all_nodes(make_cluster, monkeypatch, inline_bytes_max):
    monkeypatch.setattr(snapshot_keeper, "INLINE_BYTES_MAX", inline_bytes_max)
    cluster = make_cluster(state_hash_interval_s=0.3)
    await cluster.start()
    leader = await cluster.leader()
    await cluster.until(lambda: leader.replica.cluster_version >= HashState.since)
    await leader.submit(Add(amount=1))
    await hashed(cluster)
    assert [node.status()["state_hash"]["differing"] for node in cluster.nodes.values()] == [[], [], []]
    changed = next(node for node in cluster.nodes.values() if node is not leader)
    changed.machine("sum").total += 1
    await leader.submit(Add(amount=1))
    others = sorted(set(cluster.nodes) - {changed.node_id})

    def differing(node) -> list[str]:
        return node.status()["state_hash"]["differing"]

    await cluster.until(lambda: differing(changed) == others)
    for node_id in others:
        await cluster.until(lambda node=cluster.nodes[node_id]: differing(node) == [changed.node_id])
    assert "sum" in changed.status()["state_hash"]["parts"]
