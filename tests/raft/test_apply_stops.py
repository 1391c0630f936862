"""Nodes that cannot apply an entry, with a planted bug: Raft goes on, nothing half-changed is shown, and a skip ends it."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from dss_api.errors import Refused
from dss_dev.sum_machine import Add, Sum, Wait
from dss_raft.core import Role
from dss_raft.core.messages import Configuration, Entry, EntryKind
from dss_raft.core.ready import HardState, Persist
from dss_raft.disk.store import LogStore
from dss_raft.members import first_members
from dss_raft.replication.batch import encode_batch, encode_command, encode_group
from dss_raft.replication.commands import OpenSession, Skip

POISON = 13


class Bugs:
    """Where the planted bug is; names of nodes."""

    nodes: set[str] = {"a", "b", "c"}


@pytest.fixture
def bugs():
    Bugs.nodes = {"a", "b", "c"}
    return Bugs


@pytest.fixture
def poisoned(make_cluster, bugs, monkeypatch):
    """Nodes that cannot add 13, and are half-changed when they try."""

    class Poisoned(Sum):
        owner = ""

        def apply(self, command, at_ms, index, origin):
            if isinstance(command, Add) and command.amount == POISON and self.owner in bugs.nodes:
                self.total += 1_000_000
                raise ZeroDivisionError("13 is not a number")
            return super().apply(command, at_ms, index, origin)

    def make(**settings):
        cluster = make_cluster(Poisoned, **settings)
        create = cluster.create

        def create_owned(node_id):
            node = create(node_id)
            node.machine("sum").owner = node_id
            return node

        cluster.create = create_owned
        return cluster

    return make


def states(cluster):
    return {node.replica.snapshot() for node in cluster.nodes.values()}


def is_stopped(node) -> bool:
    return node.apply_stop is not None


async def poison(node) -> int:
    """Have the entry committed; its index."""
    with pytest.raises(Refused) as refusal:
        await node.submit(Add(amount=POISON))
    assert refusal.value.code in ("unknown_outcome", "not_ready")
    stop = node.apply_stop
    return 0 if stop is None else stop.index


async def agree(cluster, last: int) -> None:
    """All have applied as far as the furthest, and have one state."""
    nodes = cluster.nodes.values()
    await cluster.until(lambda: len({n.applied_index for n in nodes}) == 1 and all(n.is_ready for n in nodes))
    assert {node.machine("sum").total for node in nodes} == {last}
    await cluster.until(lambda: len(states(cluster)) == 1)


async def test_an_entry_that_no_node_can_apply_stops_applying_and_not_raft(poisoned):
    cluster = poisoned()
    await cluster.start()
    leader = await cluster.leader()
    await leader.submit(Add(amount=1))
    index = await poison(leader)
    await cluster.until(lambda: all(is_stopped(node) for node in cluster.nodes.values()))
    assert not cluster.failures
    for node in cluster.nodes.values():
        assert node.apply_stop.index == index
        assert "ZeroDivisionError: 13 is not a number" in node.apply_stop.error
        assert node.status()["apply_stopped"] == {"index": index, "error": node.apply_stop.error}
        assert not node.is_ready
        assert str(index) in node.not_ready_reason
        for call in (node.submit(Add(amount=1)), node.read_index()):
            with pytest.raises(Refused) as refusal:
                await call
            assert refusal.value.code == "not_ready"
            assert str(index) in refusal.value.detail
    term = leader.term
    await next(node for node in cluster.nodes.values() if not node.is_leader).start_election(force=True)
    await cluster.until(
        lambda: any(
            node.is_leader and node.core.log.term(node.commit_index) == node.term > term for node in cluster.nodes.values()
        )
    )


async def test_a_skip_ends_it_on_every_node_and_their_states_agree(poisoned):
    cluster = poisoned()
    await cluster.start()
    leader, follower = await cluster.leader(), await cluster.follower()
    await follower.submit(Add(amount=1))
    waiting = asyncio.create_task(follower.submit(Wait(target=500, lease_ms=60_000), wait_ms=60_000))
    await cluster.until(lambda: all(node.machine("sum").waiters for node in cluster.nodes.values()))
    index = await poison(leader)
    await cluster.until(lambda: all(is_stopped(node) for node in cluster.nodes.values()))
    with pytest.raises(Refused) as refusal:
        await waiting
    assert refusal.value.code == "unknown_outcome", "it may be answered by others, and not here"
    answer = await follower.skip(index, "a planted bug")
    assert answer["skipped"] == index
    assert index < answer["index"]
    await cluster.until(lambda: not any(is_stopped(node) for node in cluster.nodes.values()))
    assert (await follower.submit(Add(amount=2))).body == {"total": 3}
    assert (await leader.submit(Add(amount=4))).body == {"total": 7}
    await cluster.until(lambda: not any(node.machine("sum").waiters for node in cluster.nodes.values()))
    await agree(cluster, 7)
    assert await leader.skip(index, "again") == answer, "a repeat changes nothing"


async def test_a_restart_replays_the_skip(poisoned):
    cluster = poisoned()
    await cluster.start()
    leader = await cluster.leader()
    await leader.submit(Add(amount=1))
    index = await poison(leader)
    await cluster.until(lambda: all(is_stopped(node) for node in cluster.nodes.values()))
    await (await cluster.leader_at_all()).skip(index, "a planted bug")
    await leader.submit(Add(amount=2))
    await cluster.stop()
    await cluster.start()
    await (await cluster.leader()).submit(Add(amount=4))
    await agree(cluster, 7)


async def test_a_node_that_could_apply_it_now_takes_its_effect_back(poisoned, bugs):
    """The bug is gone after a restart, and the skip comes later in the log: the entry must have no effect all the same."""
    cluster = poisoned()
    await cluster.start()
    leader = await cluster.leader()
    await leader.submit(Add(amount=1))
    index = await poison(leader)
    await cluster.until(lambda: all(is_stopped(node) for node in cluster.nodes.values()))
    await (await cluster.leader_at_all()).skip(index, "a planted bug")
    await leader.submit(Add(amount=2))
    await cluster.stop()
    bugs.nodes = set()
    await cluster.start()
    await (await cluster.leader()).submit(Add(amount=4))
    await agree(cluster, 7)


async def test_a_skip_begins_at_the_last_snapshot(poisoned):
    cluster = poisoned(snapshot_entries=20)
    await cluster.start()
    leader = await cluster.leader()
    for _ in range(50):
        await leader.submit(Add(amount=1))
    await cluster.until(lambda: all(node.status()["snapshot_index"] > 20 for node in cluster.nodes.values()))
    index = await poison(leader)
    await cluster.until(lambda: all(is_stopped(node) for node in cluster.nodes.values()))
    await (await cluster.leader_at_all()).skip(index, "a planted bug")
    for _ in range(50):
        await leader.submit(Add(amount=1))
    await agree(cluster, 100)


async def test_a_bug_of_one_node_is_mended_by_a_restart_and_never_by_a_skip(poisoned, bugs):
    cluster = poisoned()
    await cluster.start()
    leader, follower = await cluster.leader(), await cluster.follower()
    bugs.nodes = {follower.node_id}
    assert (await leader.submit(Add(amount=POISON))).body == {"total": POISON}
    await cluster.until(lambda: is_stopped(follower))
    index = follower.apply_stop.index
    assert (await leader.submit(Add(amount=1))).body == {"total": POISON + 1}, "the others go on"
    with pytest.raises(Refused) as refusal:
        await follower.skip(index, "why not")
    assert refusal.value.code == "not_skippable"
    assert leader.node_id in refusal.value.detail
    assert "restart" in refusal.value.detail
    await cluster.stop(follower.node_id)
    bugs.nodes = set()
    await cluster.start(follower.node_id)
    await cluster.leader()
    await agree(cluster, POISON + 1)


async def test_the_log_of_a_node_that_cannot_apply_grows_with_an_alarm_until_it_is_stopped(poisoned, bugs):
    """It takes no snapshots. Stopped for long enough, it gets the leader's snapshot when it starts, although its bug is still there."""
    cluster = poisoned(snapshot_entries=40, snapshot_bytes=1000)
    await cluster.start()
    leader, broken = await cluster.leader(), await cluster.follower()
    bugs.nodes = {broken.node_id}
    await leader.submit(Add(amount=POISON))
    await cluster.until(lambda: is_stopped(broken))
    with capture_logs() as logs:
        for _ in range(200):
            await leader.submit(Add(amount=1))
        await cluster.until(lambda: broken.commit_index == leader.commit_index)
    assert broken.core.snapshot.index < broken.apply_stop.index < leader.core.snapshot.index
    alarms = [event for event in logs if event["event"] == "raft.log_grows"]
    sizes = [event["bytes"] for event in alarms]
    assert sizes[0] >= 2 * 1000
    assert all(later >= 2 * earlier for earlier, later in pairwise(sizes))
    assert {event["apply_stopped"] for event in alarms} == {broken.apply_stop.index}

    last = broken.core.last_index
    await cluster.stop(broken.node_id)
    while leader.core.log.base_index <= last:
        await leader.submit(Add(amount=1))
    await cluster.start(broken.node_id)
    healed = cluster.nodes[broken.node_id]
    await cluster.until(lambda: not is_stopped(healed) and healed.applied_index == leader.applied_index)
    assert healed.core.last_index - healed.core.log.base_index < 100
    await cluster.until(lambda: len(states(cluster)) == 1)


async def test_a_leader_that_cannot_apply_hands_over_to_one_that_can(poisoned, bugs):
    cluster = poisoned()
    await cluster.start()
    leader = await cluster.leader()
    bugs.nodes = {leader.node_id}
    others = [node for node in cluster.nodes.values() if node is not leader]
    await poison(leader)
    await cluster.until(lambda: any(node.is_leader for node in others) and not leader.is_leader)
    assert (await others[0].submit(Add(amount=1))).body == {"total": POISON + 1}
    assert leader.core.role is Role.FOLLOWER
    await cluster.until(lambda: leader.core.log.durable == others[0].core.log.durable)
    assert is_stopped(leader), "it takes part in Raft, and shows nothing"


async def test_no_skip_while_a_member_does_not_answer(poisoned):
    cluster = poisoned()
    await cluster.start()
    leader, follower = await cluster.leader(), await cluster.follower()
    index = await poison(leader)
    await cluster.until(lambda: all(is_stopped(node) for node in cluster.nodes.values()))
    await cluster.stop(follower.node_id)
    with pytest.raises(Refused) as refusal:
        await (await cluster.leader_at_all()).skip(index, "a planted bug")
    assert refusal.value.code == "not_skippable"
    assert follower.node_id in refusal.value.detail


@pytest.mark.parametrize("index", [0, 1, 10_000])
async def test_no_skip_of_an_entry_at_which_nobody_has_stopped(cluster, index):
    await cluster.start()
    leader = await cluster.leader()
    await leader.submit(Add(amount=1))
    with pytest.raises(Refused) as refusal:
        await leader.skip(index, "why not")
    assert refusal.value.code == "not_skippable"


async def test_an_effect_is_taken_back_when_a_skip_was_committed_after_all(cluster):
    """A member may apply the entry between its answer and the commit of the skip."""
    await cluster.start()
    leader = await cluster.leader()
    await leader.submit(Add(amount=1))
    result = await leader.submit(Add(amount=100))
    assert leader.propose_skip(Skip(entry=result.index, reason="r", by="a"))
    await cluster.until(lambda: all(node.replica.skipped.get(result.index) for node in cluster.nodes.values()))
    await leader.submit(Add(amount=2))
    await agree(cluster, 3)


async def test_a_skip_of_what_a_snapshot_contains_stops_the_node_and_says_what_to_do(make_cluster):
    cluster = make_cluster(snapshot_entries=20)
    await cluster.start()
    leader = await cluster.leader()
    first = await leader.submit(Add(amount=1))
    for _ in range(50):
        await leader.submit(Add(amount=1))
    await cluster.until(lambda: all(node.status()["snapshot_index"] > first.index for node in cluster.nodes.values()))
    assert leader.propose_skip(Skip(entry=first.index, reason="r", by="a"))
    await cluster.until(
        lambda: all(
            node.apply_stop and f"manage.py member replace {node.node_id}" in node.apply_stop.error
            for node in cluster.nodes.values()
        )
    )
    assert not cluster.failures


async def test_a_directory_whose_log_holds_an_undecodable_command_starts(cluster):
    """As a node of release 0.2.0 left it: it proposed what it could not apply."""
    poisoned = b"\x82\xa2op\xa7sum.add\xa6amount\xcf\xff\xff\xff\xff\xff\xff\xff\xff"[:-9] + b"\xa1x"
    session = encode_group("a", 1, 1, [], [encode_command(OpenSession()), encode_command(Add(amount=5)), poisoned])
    entries = [
        Entry(1, 1, EntryKind.NOOP, b""),
        Entry(2, 1, EntryKind.COMMANDS, encode_batch(1, [], [session])),
        Entry(3, 1, EntryKind.COMMANDS, b"no batch"),
    ]
    for node_id in ("a", "b", "c"):
        store = LogStore(cluster.directory / node_id / "raft", node_id, "test")
        store.bootstrap(Configuration(tuple(sorted(first_members(cluster.config(node_id)), key=lambda member: member.id))))
        store.count_start()
        store.write(Persist(1, HardState(1, "a"), 0, entries))
        store.close()
    await cluster.start()
    leader = await cluster.leader()
    assert (await leader.submit(Add(amount=2))).body == {"total": 7}
    await agree(cluster, 7)
    assert not cluster.failures


async def test_an_entry_is_shown(poisoned):
    cluster = poisoned()
    await cluster.start()
    leader = await cluster.leader()
    index = await poison(leader)
    shown = leader.show_entry(index)
    assert (shown.kind, shown.committed, shown.applied, shown.skipped) == ("commands", True, False, False)
    assert [(g.node, [(c.op, c.fields) for c in g.commands]) for g in shown.groups] == [
        (leader.node_id, [("sum.add", {"amount": POISON})])
    ]
    with pytest.raises(Refused) as refusal:
        leader.show_entry(index + 1000)
    assert refusal.value.code == "not_found"


async def test_a_node_is_not_ready_while_nothing_is_committed(cluster):
    await cluster.start()
    leader = await cluster.leader()
    await leader.submit(Add(amount=1))
    for node in cluster.nodes.values():
        node._links.send = lambda peer, frame, send=node._links.send: (
            False if any(getattr(m, "entries", None) for m in getattr(frame, "messages", ())) else send(peer, frame)
        )
    call = asyncio.create_task(leader.submit(Add(amount=1), timeout_ms=20_000))
    await cluster.until(lambda: not leader.is_ready)
    assert leader.is_leader, "heartbeats pass: the leader keeps its role"
    assert "committed" in leader.not_ready_reason
    for node in cluster.nodes.values():
        del node._links.send
    assert (await call).body == {"total": 2}
    await cluster.until(lambda: all(node.is_ready for node in cluster.nodes.values()))


async def test_a_node_is_ready_although_entries_will_be_applied_in_its_next_turn(cluster, monkeypatch):
    """Under load that is nearly always so. Entries that are not applied for an election timeout are a reason."""
    await cluster.start()
    leader = await cluster.leader()
    turn = leader._driver.applying.turn
    seen = []

    def look_and_turn():
        if leader.core.commit_index > leader.applied_index:
            seen.append(leader.not_ready_reason)
        turn()

    monkeypatch.setattr(leader._driver.applying, "turn", look_and_turn)
    for _ in range(20):
        await leader.submit(Add(amount=1))
    assert len(seen) >= 20
    assert not any(seen), seen
    monkeypatch.setattr(leader._driver.applying, "turn", lambda: None)
    call = asyncio.create_task(leader.submit(Add(amount=1), timeout_ms=20_000))
    await cluster.until(lambda: not leader.is_ready)
    assert "has applied" in leader.not_ready_reason
    monkeypatch.setattr(leader._driver.applying, "turn", turn)
    assert (await call).body == {"total": 21}
    await cluster.until(lambda: leader.is_ready)


async def test_a_node_is_forced_to_campaign_once_in_an_election_timeout(make_cluster):
    cluster = make_cluster()
    await cluster.start()
    leader = await cluster.leader()
    follower = await cluster.follower()
    # Elections keep their timeouts. A busy machine may stand still for longer than one.
    follower.config.raft_election_max_ms = 60_000
    term = follower.term
    await leader.start_election(force=True)
    await leader.start_election(force=True)
    assert leader.term == term, "a leader has no reason to campaign"
    await follower.start_election(force=True)
    assert follower.term == term + 1
    with pytest.raises(Refused) as refusal:
        await follower.start_election(force=True)
    assert refusal.value.code == "over_limit"
    assert "RAFT_ELECTION_MAX_MS" in refusal.value.detail
    assert follower.term == term + 1
    await follower.start_election(force=False)
