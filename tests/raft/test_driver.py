"""The driver with a core, a store and a state that answer at unlucky moments."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from dss_api.errors import Refused
from dss_api.supervised import FAILURES
from dss_raft.core import InvariantViolation, Role
from dss_raft.core.messages import AppendReply, Configuration, Entry, EntryKind, InstallSnapshot, Member, SnapshotMeta, VoteReply
from dss_raft.core.ready import HardState, Persist, Ready, SnapshotChunkWanted
from dss_raft.disk.store import SnapshotFailed, SnapshotGone
from dss_raft.disk.store_thread import StoreThread
from dss_raft.driver import Driver
from dss_raft.replication.snapshot_keeper import SnapshotKeeper

CONFIGURATION = Configuration((Member("a", "http://a:1"),))


def snapshot(index: int) -> SnapshotMeta:
    return SnapshotMeta(index, 1, CONFIGURATION)


def ready(**what: Any) -> Ready:
    nothing: dict[str, Any] = {"persist": None, "messages": [], "committed": [], "read_states": []}
    return Ready(**{**nothing, "chunks_wanted": [], "chunks_received": [], **what})


class Core:
    """Returns what the test puts into `readies`, and records the calls."""

    node_id, term, role, leader_id, commit_index, configuration = "a", 1, Role.LEADER, "a", 0, CONFIGURATION

    def __init__(self) -> None:
        self.readies: deque[Ready] = deque()
        self.applied_to: list[int] = []
        self.found_outdated: list[str] = []
        self.is_broken = False

    def take_ready(self) -> Ready | None:
        return self.readies.popleft() if self.readies else None

    def persisted(self, number: int) -> None:
        if self.is_broken:
            raise InvariantViolation("nothing was being written")

    def applied(self, index: int) -> None:
        self.applied_to.append(index)

    def tick(self) -> None: ...


class Store:
    last_index, hard_state = 4, HardState(2, "b")

    def write(self, persist: Persist) -> None: ...

    def read_chunk(self, meta: SnapshotMeta, offset: int, length: int) -> tuple[bytes, bool]:
        raise SnapshotGone(f"snapshot {meta.index} is no longer kept")


class Snapshots:
    """Restores when the test says so, and in that order."""

    keep_entries = 0

    def __init__(self) -> None:
        self.restoring: dict[int, asyncio.Event] = {}

    async def restore(self, meta: SnapshotMeta) -> None:
        event = self.restoring[meta.index] = asyncio.Event()
        await event.wait()

    def is_due(self, core: Any) -> bool:
        return False


class Stage:
    """A driver with test doubles."""

    def __init__(self) -> None:
        self.core, self.store, self.snapshots = Core(), Store(), Snapshots()
        self.failures: asyncio.Queue[BaseException] = asyncio.Queue()
        self.sent: list[str] = []
        self.applied: list[int] = []
        self.replaced = asyncio.Event()
        self.store_thread = StoreThread(asyncio.get_running_loop())
        listener = SimpleNamespace(
            before_ready=lambda: None,
            entries_applied=lambda: None,
            state_replaced=self.replaced.set,
            read_settled=lambda state: None,
            role_changed=lambda: None,
            vote_answered=lambda candidate, term, granted: None,
            configuration_changed=lambda: None,
            failed=self.failures.put_nowait,
        )
        links = SimpleNamespace(send=lambda peer, frame: self.sent.append(peer))
        replica = SimpleNamespace(applied_index=0, must_hash=False, apply=lambda entry: self.applied.append(entry.index))
        parts: Any = (self.core, self.store, links, replica, self.snapshots, self.store_thread, listener)
        self.driver = Driver(*parts, tick_s=3600)

    def say(self, **what: Any) -> None:
        self.core.readies.append(ready(**what))
        self.driver.wake()

    async def work_is_done(self) -> None:
        """Wait until the tasks of the driver have ended."""
        await asyncio.sleep(0)
        await self.until(lambda: not self.driver._tasks)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the loop run until the condition is true."""
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110  (doubles have no events of their own)
                await asyncio.sleep(0)


@pytest.fixture
async def stage():
    stage = Stage()
    stage.driver.start()
    yield stage
    await stage.driver.stop()
    stage.store_thread.close()


async def test_a_snapshot_that_disappears_during_a_transfer_is_no_failure(stage):
    stage.say(chunks_wanted=[SnapshotChunkWanted("b", 1, snapshot(5), 0)])
    await stage.work_is_done()
    assert stage.failures.empty()
    assert not stage.sent


async def test_a_chunk_that_cannot_be_read_or_stored_is_no_failure(stage):
    def fail(*args: Any) -> Any:
        raise SnapshotFailed("too many open files")

    stage.store.read_chunk = stage.store.write_chunk = fail
    chunk = InstallSnapshot(sender="b", to="a", term=1, meta=snapshot(5), offset=0, data=b"x", crc=0, done=True)
    before = FAILURES.labels("snapshot")._value.get()
    stage.say(chunks_wanted=[SnapshotChunkWanted("b", 1, snapshot(5), 0)], chunks_received=[chunk])
    await stage.work_is_done()
    assert stage.failures.empty()
    assert not stage.sent
    assert FAILURES.labels("snapshot")._value.get() == before + 2


@pytest.mark.parametrize("error", [SnapshotFailed("too many open files"), Refused("memory_unavailable"), OSError("no memory")])
async def test_a_snapshot_that_cannot_be_restored_is_restored_later(stage, monkeypatch, error):
    monkeypatch.setattr("dss_raft.applying.RESTORE_RETRY_S_MIN", 0.0)
    attempts = 0

    async def restore(meta: SnapshotMeta) -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise error

    stage.snapshots.restore = restore
    stage.say(restore=snapshot(9), committed=[Entry(10, 1, EntryKind.COMMANDS, b"")])
    await stage.replaced.wait()
    await stage.work_is_done()
    assert stage.applied == [10]
    assert stage.failures.empty()


async def test_a_fault_in_a_task_of_the_driver_stops_the_node(stage):
    def fail(*args: Any) -> Any:
        raise ValueError("a fault of this program")

    stage.store.read_chunk = fail
    stage.say(chunks_wanted=[SnapshotChunkWanted("b", 1, snapshot(5), 0)])
    async with asyncio.timeout(60):
        assert isinstance(await stage.failures.get(), ValueError)


async def test_a_violation_after_a_write_stops_the_node(stage):
    stage.core.is_broken = True
    stage.say(persist=Persist(1, HardState(1, "a"), 0, []))
    async with asyncio.timeout(60):
        assert isinstance(await stage.failures.get(), InvariantViolation)


@pytest.mark.parametrize(
    ("promise", "is_kept"),
    [
        (AppendReply(sender="a", to="b", term=2, ok=True, match=4, prev_index=4), True),
        (AppendReply(sender="a", to="b", term=2, ok=True, match=5, prev_index=5), False),
        (VoteReply(sender="a", to="b", term=2, granted=True), True),
        (VoteReply(sender="a", to="c", term=2, granted=True), False),
        (VoteReply(sender="a", to="b", term=3, granted=True), False),
        (VoteReply(sender="a", to="c", term=1, granted=True), True),
        (VoteReply(sender="a", to="c", term=2, granted=False), True),
    ],
)
async def test_acknowledgements_and_votes_are_sent_only_if_the_store_has_them(stage, promise, is_kept):
    """The node stops itself, whatever the core believes."""
    stage.say(messages=[promise])
    await stage.work_is_done()
    assert stage.sent == [promise.to] * is_kept
    assert stage.failures.empty() == is_kept


async def test_the_newest_snapshot_wins_even_if_the_older_one_takes_longer(stage):
    """Snapshots are restored one at a time, and those overtaken while waiting never. Later entries wait for the last one."""
    stage.say(restore=snapshot(5))
    await stage.until(lambda: 5 in stage.snapshots.restoring)
    stage.say(restore=snapshot(7))
    await asyncio.sleep(0)
    stage.say(restore=snapshot(9), committed=[Entry(10, 1, EntryKind.COMMANDS, b"")])
    await stage.until(lambda: len(stage.driver._tasks) == 3)
    assert list(stage.snapshots.restoring) == [5], "two at once would mix their states"
    stage.snapshots.restoring[5].set()
    await stage.until(lambda: 9 in stage.snapshots.restoring)
    assert not stage.replaced.is_set()
    assert not stage.applied
    stage.snapshots.restoring[9].set()
    await stage.replaced.wait()
    await stage.work_is_done()
    assert list(stage.snapshots.restoring) == [5, 9]
    assert stage.applied == [10]


async def test_an_own_snapshot_older_than_a_received_one_is_not_used(tmp_path, stage):
    """The leader's snapshot of index 9 is installed while this node still encodes its own of index 5."""
    committed: list[int] = []
    store = SimpleNamespace(
        snapshot_index=0,
        stage_snapshot=lambda meta, pieces: meta,
        commit_snapshot=lambda meta, keep: committed.append(meta.index),
    )
    replica = SimpleNamespace(applied_index=5, snapshot=lambda: b"state")

    class Memory:
        name = "memory"

        async def before_snapshot(self, index: int) -> None:
            store.snapshot_index = 9

        async def dump(self) -> list[bytes]:
            return []

    keeper_parts: Any = (replica, store, tmp_path, stage.store_thread)
    keeper = SnapshotKeeper(*keeper_parts, entries_max=1, bytes_max=1, keep_entries=0)
    memory: Any = Memory()
    keeper.parts = [memory]
    core: Any = SimpleNamespace(
        meta_at=snapshot, snapshot=snapshot(0), log=SimpleNamespace(size=lambda after, to: 0), configuration=CONFIGURATION
    )
    assert await keeper.take(core) is None
    assert not committed


@pytest.mark.parametrize(("entry_bytes", "kept"), [(1, 250), (100, 10), (5000, 0)])
async def test_entries_before_a_snapshot_are_kept_in_number_and_in_bytes(tmp_path, stage, entry_bytes, kept):
    """They are in memory: 2,500 entries of a megabyte would be more than a node has."""
    store = SimpleNamespace(snapshot_index=0, stage_snapshot=lambda meta, pieces: meta, kept=None)

    def commit_snapshot(meta, keep):
        store.kept = keep
        return meta

    store.commit_snapshot = commit_snapshot
    replica = SimpleNamespace(applied_index=1000, snapshot=lambda: b"state")
    keeper_parts: Any = (replica, store, tmp_path, stage.store_thread)
    keeper = SnapshotKeeper(*keeper_parts, entries_max=1000, bytes_max=2000, keep_entries=250)
    log = SimpleNamespace(size=lambda after, to: (to - after) * entry_bytes)
    core: Any = SimpleNamespace(meta_at=snapshot, snapshot=snapshot(0), log=log, configuration=CONFIGURATION)
    assert await keeper.take(core) is not None
    assert (keeper.keep_entries, store.kept) == (kept, kept)
