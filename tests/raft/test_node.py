"""Three complete nodes in one loop, with real sockets and stores: what a caller can rely on."""

from __future__ import annotations

import asyncio
import errno
import threading

import msgspec
import pytest

from dss_api.errors import Refused
from dss_api.supervised import FAILURES
from dss_dev.sum_machine import Add, Wait
from dss_raft import calls, members, operations, removal
from dss_raft.answers import ServiceState
from dss_raft.clock_exchange import ClockExchange
from dss_raft.core.messages import AppendEntries
from dss_raft.disk.forked import ChildFailed
from dss_raft.disk.store import LogStore, StoreFailed
from dss_raft.net.wire import RaftFrame
from dss_raft.replication import snapshot_keeper
from dss_raft.replication.batch import Group, encode_command
from dss_raft.replication.pending_commands import GATHER_FROM
from dss_raft.replication.snapshot_keeper import SnapshotKeeper

IDS = ("a", "b", "c")


def totals(cluster) -> set[int]:
    return {node.machine("sum").total for node in cluster.nodes.values()}


async def test_every_node_accepts_commands_and_all_agree(cluster):
    await cluster.start()
    await cluster.leader()
    results = await asyncio.gather(*(node.submit(Add(amount=1)) for node in cluster.nodes.values() for _ in range(50)))
    assert sorted(result.body["total"] for result in results) == list(range(1, 151))
    await asyncio.gather(*(node.read_index() for node in cluster.nodes.values()))
    assert totals(cluster) == {150}


async def test_a_follower_with_many_calls_sends_one_group_at_a_time(cluster, monkeypatch):
    await cluster.start()
    follower = await cluster.follower()
    await follower.submit(Add(amount=1))
    unapplied: list[int] = []
    send = follower._calls._send

    def watched(groups: list[bytes]) -> None:
        first_seq = msgspec.msgpack.decode(groups[0], type=Group[msgspec.Raw]).first_seq
        unapplied.append(first_seq - 1 - follower.replica.sessions.get(follower.node_id).last_seq)
        send(groups)

    monkeypatch.setattr(follower._calls, "_send", watched)
    calls = []
    for _ in range(100):
        calls += [asyncio.create_task(follower.submit(Add(amount=1))) for _ in range(GATHER_FROM)]
        await asyncio.sleep(0)
    await asyncio.gather(*calls)
    assert set(unapplied) == {0}
    assert follower.machine("sum").total == 1 + 100 * GATHER_FROM


async def test_a_read_sees_what_another_node_has_answered(cluster):
    await cluster.start()
    leader, follower = await cluster.leader(), await cluster.follower()
    for expected in range(1, 20):
        await leader.submit(Add(amount=1))
        await follower.read_index()
        assert follower.machine("sum").total == expected


async def test_a_waiting_command_on_one_node_is_answered_by_another(cluster):
    await cluster.start()
    leader, follower = await cluster.leader(), await cluster.follower()
    waiting = asyncio.create_task(follower.submit(Wait(target=5, lease_ms=60_000), wait_ms=60_000))
    await cluster.until(lambda: leader.machine("sum").waiters)
    await leader.submit(Add(amount=5))
    assert (await waiting).body == {"total": 5}


async def test_a_caller_who_hangs_up_leaves_no_waiter_behind(cluster):
    await cluster.start()
    follower = await cluster.follower()
    waiting = asyncio.create_task(follower.submit(Wait(target=5, lease_ms=60_000), wait_ms=60_000))
    await cluster.until(lambda: follower.machine("sum").waiters)
    waiting.cancel()
    await cluster.until(lambda: not any(node.machine("sum").waiters for node in cluster.nodes.values()))


async def test_a_node_that_stops_leaves_no_waiter_behind(cluster):
    await cluster.start()
    follower = await cluster.follower()
    waiting = asyncio.create_task(follower.submit(Wait(target=5, lease_ms=60_000), wait_ms=60_000))
    others = [node for node in cluster.nodes.values() if node is not follower]
    await cluster.until(lambda: all(node.machine("sum").waiters for node in cluster.nodes.values()))
    await follower.withdraw()
    with pytest.raises(Refused, match="stopping"):
        await waiting
    await cluster.stop(follower.node_id)
    await cluster.until(lambda: not any(node.machine("sum").waiters for node in others))


async def test_a_deadline_expires_without_calls(cluster):
    await cluster.start()
    follower = await cluster.follower()
    result = await follower.submit(Wait(target=5, lease_ms=50), wait_ms=5000)
    assert result.code == "wait_timeout"


async def test_commands_survive_the_loss_of_the_leader_exactly_once(cluster):
    await cluster.start()
    follower = await cluster.follower()
    calls = [asyncio.create_task(follower.submit(Add(amount=1), timeout_ms=20_000)) for _ in range(200)]
    await asyncio.sleep(0)
    await cluster.stop((await cluster.leader()).node_id)
    calls += [asyncio.create_task(follower.submit(Add(amount=1), timeout_ms=20_000)) for _ in range(200)]
    await asyncio.gather(*calls)
    await asyncio.gather(*(node.read_index() for node in cluster.nodes.values()))
    assert totals(cluster) == {400}


async def test_calls_are_refused_without_a_majority_and_accepted_with_one_again(cluster):
    await cluster.start()
    leader = await cluster.leader()
    await leader.submit(Add(amount=1))
    stopped = [node_id for node_id in IDS if node_id != leader.node_id]
    await cluster.stop(*stopped)
    await cluster.until(lambda: not leader.is_leader)
    with pytest.raises(Refused) as refusal:
        await leader.submit(Add(amount=10), timeout_ms=300)
    assert refusal.value.code == "no_quorum"
    with pytest.raises(Refused) as refusal:
        await leader.confirm_leadership()
    assert refusal.value.code == "no_leader"
    await cluster.start(stopped[0])
    assert (await leader.submit(Add(amount=1), timeout_ms=20_000)).body == {"total": 2}


async def test_all_nodes_restore_their_state(cluster):
    await cluster.start()
    leader = await cluster.leader()
    await leader.submit(Add(amount=7))
    term = leader.term
    await cluster.stop()
    await cluster.start()
    leader = await cluster.leader()
    assert leader.term > term
    await leader.submit(Add(amount=1))
    await asyncio.gather(*(node.read_index() for node in cluster.nodes.values()))
    assert totals(cluster) == {8}


async def test_a_node_that_is_far_behind_receives_a_snapshot(make_cluster):
    cluster = make_cluster(snapshot_entries=20)
    await cluster.start()
    away = (await cluster.follower()).node_id
    await cluster.stop(away)
    leader = await cluster.leader()
    for _ in range(100):
        await leader.submit(Add(amount=1))
    await cluster.until(lambda: leader.status()["snapshot_index"] > 60)
    await cluster.start(away)
    late = cluster.nodes[away]
    await late.read_index()
    assert late.machine("sum").total == 100
    assert late.status()["snapshot_index"] > 60
    assert (await late.submit(Add(amount=1))).body == {"total": 101}


async def test_leadership_can_be_transferred_from_any_node(cluster):
    await cluster.start()
    leader, follower = await cluster.leader(), await cluster.follower()
    assert await follower.transfer(follower.node_id) == {"leader_id": follower.node_id}
    await cluster.until(lambda: follower.is_leader and not leader.is_leader)
    assert (await leader.submit(Add(amount=1))).body == {"total": 1}


async def test_the_voters_tell_for_whom_they_have_voted(cluster):
    told = []
    await cluster.start()
    leader, follower = await cluster.leader(), await cluster.follower()
    for node in cluster.nodes.values():
        node.on_vote(lambda *vote, voter=node.node_id: told.append((voter, *vote)))
    await leader.transfer(follower.node_id)
    term = follower.core.term
    given = {voter: candidate for voter, candidate, its_term, granted in told if granted and its_term == term}
    assert set(given.values()) == {follower.node_id}
    assert follower.node_id not in given, "its own vote needs no message"


async def test_a_node_transfers_leadership_once_in_an_election_timeout(cluster):
    """Whichever node is asked. A node that stops may always hand over, and a transfer to the leader itself is none."""
    await cluster.start()
    for node in cluster.nodes.values():
        # Elections keep their timeouts. Between two lines of this test, a busy machine may stand still for longer than one.
        node.config.raft_election_max_ms = 60_000
    first, second = await cluster.leader(), await cluster.follower()
    await second.transfer(second.node_id)
    await cluster.until(lambda: second.is_leader)
    await second.transfer(first.node_id)
    await cluster.until(lambda: first.is_leader and second.leader_id == first.node_id)
    for asked in (first, second):
        with pytest.raises(Refused) as refusal:
            await asked.transfer()
        assert (refusal.value.code, "RAFT_ELECTION_MAX_MS (60000 ms)" in refusal.value.detail) == ("over_limit", True)
    assert await second.transfer(first.node_id) == {"leader_id": first.node_id}
    await first.hand_over()
    await cluster.until(lambda: not first.is_leader)


async def test_a_leader_that_stops_does_not_wait_for_others_that_have_stopped(make_cluster, monkeypatch):
    """All nodes of a machine stop together: the one that began to take over is gone, and no other one can."""
    cluster = make_cluster(submit_timeout_ms=600_000)
    await cluster.start()
    leader = await cluster.leader()
    others = [node_id for node_id in cluster.nodes if node_id != leader.node_id]
    asked = asyncio.Event()

    def transfer(to: str) -> None:
        leader.core.abdicate()
        leader.core.messages = []
        asked.set()

    monkeypatch.setattr(leader.core, "transfer", transfer)
    handing = asyncio.create_task(leader.hand_over())
    await asked.wait()
    await cluster.stop(*others)
    async with asyncio.timeout(60):
        await handing


async def test_leadership_is_not_transferred_to_a_node_without_a_vote(cluster):
    await cluster.start()
    with pytest.raises(Refused) as refusal:
        await (await cluster.follower()).transfer("x")
    assert refusal.value.code == "invalid"


async def test_a_fourth_node_joins_gets_a_vote_and_can_be_removed(cluster):
    await cluster.start()
    follower = await cluster.follower()
    for _ in range(20):
        await follower.submit(Add(amount=1))
    await cluster.start("d")
    newcomer = cluster.nodes["d"]
    answer = await follower.add_member("d", cluster.url("d"))
    assert "d" in [member["id"] for member in answer["members"]]
    await cluster.until(lambda: [m.learner for m in newcomer.core.configuration.members] == [False] * 4)
    await newcomer.read_index()
    assert newcomer.machine("sum").total == 20
    assert (await newcomer.submit(Add(amount=1))).body == {"total": 21}

    await newcomer.remove_member("d")
    await cluster.until(lambda: all(len(n.core.configuration.members) == 3 for i, n in cluster.nodes.items() if i != "d"))
    with pytest.raises(Refused) as refusal:
        await newcomer.submit(Add(amount=100), timeout_ms=1500)
    assert refusal.value.code in {"no_leader", "no_quorum", "unknown_outcome"}
    assert (await follower.submit(Add(amount=1))).body == {"total": 22}


async def test_a_node_stays_linked_for_its_time_although_the_members_have_changed_before(cluster, monkeypatch):
    """A node that asks for its own removal soon after another change gets the answer."""
    monkeypatch.setattr("dss_raft.node.UNLINK_AFTER_S", 0.1)
    await cluster.start()
    leader = await cluster.leader()
    loop, unlinked_at = asyncio.get_running_loop(), []
    monkeypatch.setattr(members, "unlink_others", lambda core, _: core is leader.core and unlinked_at.append(loop.time()))
    leader.configuration_changed()
    first_at = loop.time()
    await cluster.until(lambda: loop.time() > first_at + 0.03)
    second_at = loop.time()
    leader.configuration_changed()
    await cluster.until(lambda: unlinked_at)
    assert unlinked_at[0] >= second_at + 0.1


@pytest.fixture
def quick_removal(monkeypatch):
    """Ask immediately and often: what takes seconds in a cluster takes milliseconds here."""
    monkeypatch.setattr(removal, "ASK_AFTER_S", 0.6)
    monkeypatch.setattr(removal, "ASK_EVERY_S", 0.1)


@pytest.mark.parametrize("gone", ["a", "c"])
async def test_a_node_that_was_removed_while_down_finds_out(cluster, quick_removal, gone):
    """ "a" dials the others itself; "c" is dialed by them and must ask."""
    await cluster.start()
    await cluster.leader()
    await cluster.stop(gone)
    await (await cluster.leader()).remove_member(gone)
    await cluster.until(lambda: all(gone not in node.peers for node in cluster.nodes.values()))
    await cluster.start(gone)
    await cluster.until(lambda: gone in cluster.failures)
    assert isinstance(cluster.failures[gone], removal.NodeRemoved)
    assert str(cluster.directory / gone) in str(cluster.failures[gone])
    with pytest.raises(Refused) as refusal:
        await cluster.nodes[gone].submit(Add(amount=1))
    assert refusal.value.code == "stopping"
    assert len(cluster.failures) == 1


@pytest.mark.parametrize("gone", ["a", "c"])
async def test_a_removed_node_is_told_after_all_have_restarted(cluster, quick_removal, gone):
    """The others link to the members in their logs, although `PEERS` still names the node."""
    await cluster.start()
    await cluster.leader()
    await cluster.stop(gone)
    await (await cluster.leader()).remove_member(gone)
    await cluster.until(lambda: all(gone not in node.peers for node in cluster.nodes.values()))
    await cluster.stop()
    await cluster.start()
    await cluster.until(lambda: gone in cluster.failures)
    assert isinstance(cluster.failures[gone], removal.NodeRemoved)
    assert len(cluster.failures) == 1


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_learner_that_has_not_caught_up_is_told_that_it_was_removed(cluster, quick_removal, restarts):
    """It has not even got the configuration that made it a learner."""
    await cluster.start()
    await cluster.start("d")
    joining = cluster.nodes["d"]
    take = joining._links.on_frame

    def take_heartbeats_only(peer, frame):
        if not isinstance(frame, RaftFrame) or all(isinstance(m, AppendEntries) and not m.entries for m in frame.messages):
            take(peer, frame)

    joining._links.on_frame = take_heartbeats_only
    await (await cluster.leader()).add_member("d", cluster.url("d"))
    await cluster.until(lambda: joining.leader_id)
    assert not joining.core.configuration.members
    if restarts:
        await cluster.stop("d")
    await (await cluster.leader()).remove_member("d")
    if restarts:
        await cluster.start("d")
    await cluster.until(lambda: "d" in cluster.failures)
    assert isinstance(cluster.failures["d"], removal.NodeRemoved)
    assert len(cluster.failures) == 1


async def test_a_learner_that_has_caught_up_is_told_that_it_was_removed(cluster, quick_removal, monkeypatch):
    monkeypatch.setattr("dss_raft.core.leader._promote_a_learner", lambda core: None)
    await cluster.start()
    await cluster.start("d")
    leader = await cluster.leader()
    await leader.add_member("d", cluster.url("d"))
    await cluster.until(lambda: "d" in cluster.nodes["d"].core.membership.learners)
    await leader.remove_member("d")
    await cluster.until(lambda: "d" in cluster.failures)
    assert isinstance(cluster.failures["d"], removal.NodeRemoved)


async def test_a_node_that_waits_to_be_added_is_not_removed(cluster, quick_removal):
    await cluster.start()
    await cluster.start("d")
    waiting = cluster.nodes["d"]
    began = waiting.core.ticks
    await cluster.until(lambda: waiting.core.ticks > began + 60)
    assert not cluster.failures
    await (await cluster.leader()).add_member("d", cluster.url("d"))
    await cluster.until(lambda: "d" in waiting.core.membership.voters)


async def test_one_member_is_enough_to_tell_a_removed_node(cluster, quick_removal):
    """Of the members that "a" knows, only "d" remains."""
    await cluster.start()
    await cluster.start("d")
    await (await cluster.leader()).add_member("d", cluster.url("d"))
    await cluster.until(lambda: all("d" in node.core.membership.voters for node in cluster.nodes.values()))
    await cluster.stop("a")
    await (await cluster.leader()).transfer("d")
    await cluster.until(lambda: cluster.nodes["d"].is_ready)
    for gone in ("a", "b", "c"):
        await (await cluster.leader()).remove_member(gone)
    await cluster.stop("b", "c")
    await cluster.start("a")
    await cluster.until(lambda: "a" in cluster.failures)
    assert isinstance(cluster.failures["a"], removal.NodeRemoved)


@pytest.mark.parametrize("late", ["a", "c"])
async def test_a_member_that_lags_is_brought_up_to_date_by_a_leader_that_it_does_not_know(cluster, late):
    await cluster.start()
    await cluster.leader()
    await cluster.stop(late)
    await cluster.start("d")
    await (await cluster.leader()).add_member("d", cluster.url("d"))
    await cluster.until(lambda: all("d" in node.core.membership.voters for node in cluster.nodes.values()))
    await (await cluster.leader()).transfer("d")
    await cluster.start(late)
    await cluster.until(lambda: cluster.nodes[late].is_ready)
    assert cluster.nodes[late].leader_id == "d"
    assert not cluster.failures


async def test_members_that_joined_are_linked_after_all_have_restarted(cluster):
    """`PEERS` of the first three does not name the fourth, and two of the first three were removed."""
    await cluster.start()
    await cluster.start("d")
    await (await cluster.leader()).add_member("d", cluster.url("d"))
    await cluster.until(lambda: all("d" in node.core.membership.voters for node in cluster.nodes.values()))
    for gone in ("a", "b"):
        await (await cluster.leader()).remove_member(gone)
        await cluster.until(lambda gone=gone: gone not in cluster.nodes["c"].peers)
    await cluster.stop()
    await cluster.start("c", "d")
    assert (await cluster.nodes["c"].submit(Add(amount=1))).body == {"total": 1}
    assert (await cluster.nodes["d"].submit(Add(amount=1))).body == {"total": 2}


async def test_a_change_that_would_lose_the_quorum_is_refused(cluster):
    await cluster.start()
    leader = await cluster.leader()
    asked = await cluster.follower()
    (stopped,) = set(cluster.nodes) - {leader.node_id, asked.node_id}
    await cluster.stop(stopped)
    for force in (False, True):
        with pytest.raises(Refused) as refusal:
            await asked.remove_member(asked.node_id, force, "a test")
        assert refusal.value.code == "quorum_at_risk"
        rule = "2 of the 2 voters of the new configuration must be reachable"
        assert refusal.value.detail == f"{rule}, but only 1 is: {leader.node_id}"
        assert refusal.value.extra["may_force"] is False
    assert (await asked.submit(Add(amount=1))).body == {"total": 1}
    answer = await asked.remove_member(stopped)
    assert stopped not in [member["id"] for member in answer["members"]]


async def test_a_removal_that_leaves_no_spare_voter_must_be_forced(cluster):
    await cluster.start()
    await cluster.start("d")
    await (await cluster.leader()).add_member("d", cluster.url("d"))
    await cluster.until(lambda: all("d" in node.core.membership.voters for node in cluster.nodes.values()))
    asked = await cluster.follower()
    stopped = next(name for name, node in cluster.nodes.items() if node is not asked and not node.is_leader)
    await cluster.stop(stopped)
    with pytest.raises(Refused) as refusal:
        await asked.remove_member(asked.node_id)
    assert refusal.value.code == "quorum_at_risk"
    assert refusal.value.extra["may_force"] is True
    assert f"Bring {stopped} back or remove it first" in refusal.value.detail
    answer = await asked.remove_member(asked.node_id, True, "a test")
    assert len(answer["members"]) == 3


async def test_a_leader_that_was_removed_finds_out(cluster, quick_removal):
    await cluster.start()
    leader = await cluster.leader()
    await (await cluster.follower()).remove_member(leader.node_id)
    await cluster.until(lambda: leader.node_id in cluster.failures)
    assert isinstance(cluster.failures[leader.node_id], removal.NodeRemoved)


async def test_an_isolated_node_does_not_believe_that_it_was_removed(cluster, quick_removal, monkeypatch):
    """Neither does a member whose peers are down, nor a node that waits to be added."""
    await cluster.start()
    await cluster.leader()
    await cluster.stop("a", "b")
    await cluster.start("d")
    asked = []
    monkeypatch.setattr(cluster.nodes["c"]._links, "probe", asked.append)
    await cluster.until(lambda: len(asked) > 2 * 2 * removal.ROUNDS)
    assert not cluster.failures
    await cluster.start("a", "b")
    await cluster.nodes["c"].submit(Add(amount=1))


async def test_a_member_needs_an_address(cluster):
    await cluster.start()
    with pytest.raises(Refused) as refusal:
        await (await cluster.follower()).add_member("d", "nonsense")
    assert refusal.value.code == "invalid"
    assert "`url`" in refusal.value.detail


@pytest.mark.parametrize("is_leader", [True, False])
async def test_a_refused_change_names_its_field_on_every_node(cluster, is_leader):
    await cluster.start()
    node = await (cluster.leader() if is_leader else cluster.follower())
    for call, field in (
        (node.add_member("d", "nonsense"), "url"),
        (node.add_member("a", cluster.url("a")), "id"),
        (node.remove_member("d"), "id"),
        (node.transfer("d"), "to"),
    ):
        with pytest.raises(Refused) as refusal:
            await call
        assert (refusal.value.code, refusal.value.extra) == ("invalid", {"field": field})


async def test_leadership_is_confirmed_only_to_the_leader(cluster):
    await cluster.start()
    leader, follower = await cluster.leader(), await cluster.follower()
    assert await leader.confirm_leadership() >= 1
    with pytest.raises(Refused) as refusal:
        await follower.confirm_leadership()
    assert refusal.value.code == "no_leader"
    assert follower.propose_as_leader(Add(amount=1)) is False


async def test_a_node_whose_disk_fails_stops_and_the_others_continue(cluster):
    await cluster.start()
    leader, follower = await cluster.leader(), await cluster.follower()
    failures = []
    leader._on_failure = failures.append

    write = leader._store.write

    def fail(persist):
        # The node writes entries of its own, too. The disk fails when the command is among them.
        if not any(b"sum.add" in bytes(entry.data) for entry in persist.entries):
            return write(persist)
        raise StoreFailed("no space left on the device")

    leader._store.write = fail
    call = asyncio.create_task(leader.submit(Add(amount=1)))
    await cluster.until(lambda: failures)
    with pytest.raises(Refused) as refusal:
        await call
    assert refusal.value.code == "unknown_outcome", "it may have reached the others before the disk failed"
    assert isinstance(failures[0], StoreFailed)
    with pytest.raises(Refused) as refusal:
        await leader.submit(Add(amount=1))
    assert refusal.value.code == "stopping"
    await cluster.until(lambda: follower.leader_id not in ("", leader.node_id))
    assert (await follower.submit(Add(amount=1), timeout_ms=20_000)).code == ""


async def test_commands_continue_while_a_snapshot_of_large_state_is_taken(make_cluster, monkeypatch):
    monkeypatch.setattr("dss_raft.replication.snapshot_keeper.INLINE_BYTES_MAX", 0)
    cluster = make_cluster(snapshot_entries=20)
    await cluster.start()
    leader = await cluster.leader()
    for _ in range(100):
        await leader.submit(Add(amount=1))
    await cluster.until(lambda: all(node.status()["snapshot_index"] > 60 for node in cluster.nodes.values()))
    await cluster.stop()
    await cluster.start()
    leader = await cluster.leader()
    await leader.read_index()
    assert leader.machine("sum").total == 100


@pytest.mark.parametrize(
    "failure",
    [
        ChildFailed("the process was killed"),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("can't start new thread"),
        MemoryError(),
        Refused("memory_unavailable", "SQLite: database or disk is full"),
    ],
    ids=["child", "EMFILE", "ENOSPC", "thread", "memory", "part"],
)
@pytest.mark.parametrize("where", ["child", "part", "stage"])
async def test_a_snapshot_that_fails_is_counted_and_taken_later(make_cluster, monkeypatch, failure, where):
    """The log still holds everything, so there is no reason to stop."""
    monkeypatch.setattr(snapshot_keeper, "INLINE_BYTES_MAX", 0)
    monkeypatch.setattr(snapshot_keeper, "RETRY_S_MIN", 0.05)
    attempts, before = [], FAILURES.labels("snapshot")._value.get()
    broken = True
    write_in_child, stage = snapshot_keeper.write_in_child, SnapshotKeeper._stage

    def fail() -> None:
        if broken:
            attempts.append(1)
            raise failure

    async def child(encode, path):
        if where == "child":
            fail()
        await write_in_child(encode, path)

    def staged(self, *args):
        if where == "stage":
            fail()
        return stage(self, *args)

    class Part:
        name = "part"

        async def before_snapshot(self, index):
            if where == "part":
                fail()

        async def dump(self):
            return []

    monkeypatch.setattr(snapshot_keeper, "write_in_child", child)
    monkeypatch.setattr(SnapshotKeeper, "_stage", staged)
    cluster = make_cluster(snapshot_entries=20)
    await cluster.start()
    for node in cluster.nodes.values():
        node._parts.append(Part())
    leader = await cluster.leader()
    for _ in range(50):
        await leader.submit(Add(amount=1))
    await cluster.until(lambda: len(attempts) >= 3)
    assert not cluster.failures
    assert FAILURES.labels("snapshot")._value.get() - before == len(attempts)
    assert leader.status()["snapshot_index"] == 0
    broken = False
    while not all(node.status()["snapshot_index"] for node in cluster.nodes.values()):
        await leader.submit(Add(amount=1))
    assert not cluster.failures


async def test_large_commands_wait_while_the_log_is_long_and_small_ones_do_not(make_cluster, monkeypatch):
    """The log is in memory until a snapshot is written, however slowly."""
    monkeypatch.setattr(calls, "HELD_FROM_BYTES", len(encode_command(Wait(target=1))))
    may_go_on = asyncio.Event()

    class Part:
        name = "part"

        async def before_snapshot(self, index):
            await may_go_on.wait()

        async def dump(self):
            return []

    cluster = make_cluster(snapshot_bytes=1024)
    await cluster.start()
    for node in cluster.nodes.values():
        node._parts.append(Part())
    leader, follower = await cluster.leader(), await cluster.follower()
    while not all(node.core.log.size(0, node.core.last_index) > 2 * 1024 for node in (leader, follower)):
        await leader.submit(Add(amount=1))
    for node in (leader, follower):
        with pytest.raises(Refused) as refusal:
            await node.submit(Wait(target=1), timeout_ms=100)
        assert refusal.value.code == "over_limit"
        assert (await node.submit(Add(amount=1))).code == ""
    waiting = [asyncio.create_task(node.submit(Wait(target=10**6), timeout_ms=20_000, wait_ms=0)) for node in (leader, follower)]
    may_go_on.set()
    await cluster.until(lambda: len(leader.machine("sum").waiters) == 2)
    await leader.submit(Add(amount=10**6))
    assert [(await call).code for call in waiting] == ["", ""]


async def test_a_slow_disk_forms_before_it_accepts_the_log(cluster, monkeypatch):
    """Two members have formed and elected a leader while the third one still writes the first configuration."""
    form, may_go_on = LogStore.form, threading.Event()

    def slow_form(store, configuration):
        if store.identity.node_id == "c":
            may_go_on.wait()
        form(store, configuration)

    monkeypatch.setattr(LogStore, "form", slow_form)
    try:
        await cluster.start()
        leader = await cluster.leader()
        assert (await leader.submit(Add(amount=1))).body == {"total": 1}
        assert "about to join" in cluster.nodes["c"].not_ready_reason
    finally:
        may_go_on.set()
    await cluster.until(lambda: cluster.nodes["c"].is_ready and cluster.nodes["c"].machine("sum").total == 1)
    assert not cluster.failures


async def test_a_peer_hears_the_clock_of_a_new_link_at_once(cluster, monkeypatch):
    """What comes before a node has said who it is, is dropped."""
    monkeypatch.setattr(ClockExchange, "ticked", lambda exchange, now_s: None)
    await cluster.start()
    await cluster.leader()
    await cluster.until(lambda: all(set(node.peers) <= set(node._member_clocks._heard) for node in cluster.nodes.values()))


async def test_the_services_of_a_node_are_shown_and_do_not_make_it_unready(cluster):
    away = ServiceState(name="engine", state="away", detail="10.0.0.9:6379 does not answer", since_ms=1)
    await cluster.start()
    leader = await cluster.leader()
    leader.show_service(lambda: away)
    await leader.submit(Add(amount=1))
    await cluster.until(lambda: not leader.not_ready_reason)
    assert leader.status()["services"] == [msgspec.structs.asdict(away)]
    told = [await operation(leader, operations.NoParameters()) for operation in (operations.ready, operations.health)]
    assert [answer.services for answer in told] == [{"engine": "away"}] * 2, "these need no token: no addresses"
