"""Nodes when a disk stalls, a link breaks during a snapshot, large state is loaded, or there are too many calls."""

from __future__ import annotations

import asyncio
import threading

import msgspec
import pytest

from dss_api.errors import Refused
from dss_dev.sum_machine import Add, Sum
from dss_raft import driver
from dss_raft.replication import snapshot_keeper

#: where a leader must stay: the disk of a busy machine may need longer than an election timeout of these tests for a write
PATIENT = {"raft_election_min_ms": 750, "raft_election_max_ms": 1000}


class Stall:
    """Holds every write of a node's store until it is released."""

    def __init__(self, node) -> None:
        self._write = node._store.write
        self._go_on = threading.Event()
        node._store.write = self._held

    def _held(self, persist) -> None:
        self._go_on.wait()
        self._write(persist)

    def end(self) -> None:
        self._go_on.set()


@pytest.fixture
def stall():
    """`stall(node)`; a stall ends with the test, otherwise the node could not stop."""
    made: list[Stall] = []

    def make(node) -> Stall:
        made.append(Stall(node))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture
async def patient_cluster(make_cluster, stall):
    return make_cluster(**PATIENT)


@pytest.fixture
async def cluster(cluster, stall):
    """The stalls end before the nodes stop, because a node waits for its write."""
    return cluster


async def test_a_leader_whose_disk_stalls_steps_down_and_its_call_takes_effect_once(cluster, stall):
    """Its heartbeats would keep it leader permanently, and no call would be answered (hashicorp/raft#503)."""
    await cluster.start()
    leader = await cluster.leader()
    others = [node for node in cluster.nodes.values() if node is not leader]
    disk = stall(leader)
    call = asyncio.create_task(leader.submit(Add(amount=1), timeout_ms=20_000))
    await cluster.until(lambda: not leader.is_leader)
    await cluster.until(lambda: any(node.is_leader for node in others))
    await others[0].submit(Add(amount=10), timeout_ms=20_000)
    assert not call.done(), "nothing is applied here that is not durable here"
    disk.end()
    await call
    await asyncio.gather(*(node.read_index() for node in cluster.nodes.values()))
    assert {node.machine("sum").total for node in cluster.nodes.values()} == {11}


async def test_a_follower_whose_disk_stalls_does_not_disturb_the_others(patient_cluster, stall):
    cluster = patient_cluster
    await cluster.start()
    leader, follower = await cluster.leader(), await cluster.follower()
    term = leader.term
    disk = stall(follower)
    ticks = leader.core.ticks
    while leader.core.ticks < ticks + 3 * leader.core.config.election_ticks_max:
        await leader.submit(Add(amount=1))
        await asyncio.sleep(0.01)
    assert (leader.is_leader, leader.term, follower.leader_id) == (True, term, leader.node_id)
    assert follower.machine("sum").total < leader.machine("sum").total
    disk.end()
    await follower.read_index()
    assert follower.machine("sum").total == leader.machine("sum").total


async def test_a_snapshot_transfer_continues_after_its_link_broke(make_cluster, monkeypatch):
    """Every link of the new node is cut during the transfer. No byte is sent twice, and no node loses its leader."""
    monkeypatch.setattr(driver, "SNAPSHOT_CHUNK_BYTES", 8)
    cluster = make_cluster(snapshot_entries=20, **PATIENT)
    await cluster.start()
    away = (await cluster.follower()).node_id
    await cluster.stop(away)
    leader = await cluster.leader()
    for _ in range(100):
        await leader.submit(Add(amount=1))
    await cluster.until(lambda: leader.status()["snapshot_index"] > 60)
    term = leader.term
    stored: list[tuple[int, int]] = []

    await cluster.start(away)
    late = cluster.nodes[away]
    write_chunk = late._store.write_chunk

    def noted(meta, offset, data, crc):
        stored.append((meta.index, offset))
        if len(stored) == 5:
            late._loop.call_soon_threadsafe(cut)
        return write_chunk(meta, offset, data, crc)

    def cut() -> None:
        for peer in late._links.up_peers():
            late._links._links[peer].abort()

    late._store.write_chunk = noted
    await late.read_index()
    assert late.machine("sum").total == 100
    assert len(stored) > 10
    first = stored[0][0]
    offsets = [offset for index, offset in stored if index == first]
    assert sorted(set(offsets)) == list(range(0, max(offsets) + 1, 8))
    assert len(offsets) - len(set(offsets)) <= 1, "at most the chunk whose answer was lost comes again"
    assert leader.term == term


class Slow(Sum):
    """A machine whose state loads in as many slices as the test wants."""

    may_end = True
    slices = 0

    def snapshot(self) -> bytes:
        return msgspec.msgpack.encode(super().snapshot())

    def restoring(self, state):
        Slow.slices += 1
        yield
        while not Slow.may_end:
            Slow.slices += 1
            yield
        return lambda: self.restore(msgspec.msgpack.decode(state))


async def test_a_leader_stays_while_the_only_other_node_loads_large_state(make_cluster, monkeypatch):
    """Loading takes many election timeouts, and there is no majority without the node that loads."""
    monkeypatch.setattr(snapshot_keeper, "RESTORE_BUDGET_S", 0)
    cluster = make_cluster(Slow, snapshot_entries=20, **PATIENT)
    await cluster.start()
    leader = await cluster.leader()
    away, down = (node.node_id for node in cluster.nodes.values() if node is not leader)
    await cluster.stop(away)
    for _ in range(100):
        await leader.submit(Add(amount=1))
    await cluster.until(lambda: leader.status()["snapshot_index"] > 60)
    monkeypatch.setattr(Slow, "may_end", False)
    monkeypatch.setattr(Slow, "slices", 0)
    await cluster.start(away)
    late = cluster.nodes[away]
    await cluster.until(lambda: Slow.slices > 0)
    await cluster.stop(down)
    term, ticks = leader.term, leader.core.ticks
    await cluster.until(lambda: leader.core.ticks > ticks + 4 * leader.core.config.election_ticks_max)
    assert (leader.is_leader, leader.term, late.leader_id) == (True, term, leader.node_id)
    assert leader.core.status().peers[0].contact_ticks < leader.core.config.election_ticks_min
    assert late.machine("sum").total == 0, "a state that is loaded in part must not be visible"
    assert not late.is_ready
    monkeypatch.setattr(Slow, "may_end", True)
    await late.read_index()
    assert late.machine("sum").total == 100
    assert (await late.submit(Add(amount=1))).body == {"total": 101}


async def test_calls_and_reads_above_the_limit_are_refused(make_cluster):
    """Without a majority no call ends; the number of waiting calls must stay bounded."""
    cluster = make_cluster(pending_commands_max=5)
    await cluster.start("a")
    node = cluster.nodes["a"]
    free = node.config.pending_commands_max - 1  # the node's own first command waits, too
    calls = [asyncio.create_task(node.submit(Add(amount=1), timeout_ms=200)) for _ in range(free)]
    reads = [asyncio.create_task(node.read_index()) for _ in range(node.config.pending_commands_max)]
    await asyncio.sleep(0)
    for one_more in (node.submit(Add(amount=1)), node.read_index()):
        with pytest.raises(Refused, match="over_limit"):
            await one_more
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert {error.code for error in ended} == {"no_quorum"}
    for read in reads:
        read.cancel()
