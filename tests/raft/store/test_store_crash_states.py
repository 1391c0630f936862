"""After any crash, the next start finds everything acknowledged, and at most the one write that was in progress.

The tests rebuild every crash state of a scripted history (see `crash_disk`) and open it: thousands of recoveries.
"""

from __future__ import annotations

import functools
import shutil
import zlib
from pathlib import Path

import pytest

from dss_raft.core.ready import BootState
from dss_raft.disk import store as store_module
from dss_raft.disk import wal
from dss_raft.disk.store import LogStore


class Life:
    """A store on a recorded disk, with the state of the model after each acknowledged call."""

    def __init__(self, directory: Path, crash_disk, model, make) -> None:
        self.make = make
        self.disk = crash_disk.Disk(directory)
        self.model = model
        self.store = LogStore(
            directory,
            "node-1",
            "cluster",
            files=crash_disk.RecordingFiles(self.disk),
            database=lambda path: crash_disk.RecordingDatabase(self.disk, path),
        )
        self.incarnation = 0
        if self.store.is_new:
            self.store.bootstrap(make.configuration)
        else:
            assert self.store.load() == model.boot_state()
        self.disk.states.clear()  # a store that was never used may be new again: see test_store_damage.py
        self.expected: list[tuple[BootState, int]] = []
        self.call(lambda: None)

    def call(self, action) -> None:
        action()
        self.expected.append((self.model.boot_state(), self.incarnation))
        self.disk.acknowledged = len(self.expected) - 1

    def write(self, persist) -> None:
        def action() -> None:
            self.store.write(persist)
            self.model.write(persist)

        self.call(action)

    def count_start(self) -> None:
        def action() -> None:
            self.incarnation = self.store.count_start()

        self.call(action)

    def save_snapshot(self, index: int, term: int, data: list[bytes]) -> None:
        def action() -> None:
            self.model.snapshot = self.store.save_snapshot(self.make.meta(index, term), data, 2)

        self.call(action)

    def receive_snapshot(self, index: int, term: int, data: bytes):
        meta = self.make.meta(index, term, len(data), zlib.crc32(data))
        for offset in range(0, len(data), 70):
            chunk = data[offset : offset + 70]
            self.store.write_chunk(meta, offset, chunk, zlib.crc32(chunk))
        return meta


def recover_all(life: Life, crash_disk) -> int:
    """Open every crash state. Returns how many there were."""
    seen = set()
    for state in life.disk.states:
        fingerprint = (state.acknowledged, tuple(sorted((str(path), hash(data)) for path, data in state.image.items())))
        if fingerprint in seen:
            continue
        seen.add(fingerprint)
        target = life.disk.directory.with_name("recovered")
        crash_disk.restore(state.image, life.disk.directory, target)
        allowed = life.expected[state.acknowledged : state.acknowledged + 2]
        store = LogStore(target, "node-1", "cluster")  # a crash alone is never taken for damage
        found = store.load()
        incarnation = store.count_start() - 1
        assert (found, incarnation) in allowed, state.label
        if found.snapshot.index:
            assert len(store.read_snapshot(found.snapshot)) == found.snapshot.size, state.label
        if len(seen) % 10 == 0:
            go_on_and_recover_again(store, found, life.make, target, state.label)
        store.close()
        shutil.rmtree(target)
    return len(seen)


def go_on_and_recover_again(store: LogStore, found: BootState, make, target: Path, label: str) -> None:
    """A recovered store works normally: it accepts writes, and a kill after them loses nothing."""
    last = found.entries[-1].index if found.entries else found.snapshot.index
    more = make.entries(last + 1, last + 2, term=9)
    store.write(make.persist(more, term=9))
    killed = target.with_name("killed")
    shutil.copytree(target, killed)
    again = LogStore(killed, "node-1", "cluster")
    assert again.load().entries == [*found.entries, *more], label
    again.close()
    shutil.rmtree(killed)


@pytest.fixture
def life(directory, crash_disk, new_model, make, monkeypatch):
    # Thousands of states have most of their frames in common.
    monkeypatch.setattr(wal, "_checksum", functools.cache(wal._checksum))
    life = Life(directory, crash_disk, new_model(), make)
    yield life
    life.store.close()


def test_appends_votes_and_truncations(life, make, crash_disk):
    life.count_start()
    life.write(make.persist(make.entries(1, 3)))
    life.write(make.persist([], term=2, vote="node-2"))
    life.write(make.persist(make.entries(3, 20, term=2, size=300), term=2, vote="node-2", truncate_from=3))
    life.write(make.persist([], term=3, vote="", truncate_from=15))
    assert recover_all(life, crash_disk) > 300


def test_a_checkpoint_and_the_reuse_of_the_write_ahead_log(life, make, crash_disk, monkeypatch):
    monkeypatch.setattr(store_module, "CHECKPOINT_BYTES", 1)
    life.write(make.persist(make.entries(1, 30, size=300)))
    life.write(make.persist(make.entries(31, 32)))
    life.write(make.persist(make.entries(30, 33, term=2), term=2, truncate_from=30))
    assert recover_all(life, crash_disk) > 300


def test_an_own_snapshot(life, make, crash_disk):
    life.write(make.persist(make.entries(1, 10)))
    life.save_snapshot(6, 1, [b"first " * 20, b"second"])
    life.write(make.persist(make.entries(11, 12)))
    life.save_snapshot(11, 1, [b"next " * 10])
    assert recover_all(life, crash_disk) > 150


def test_a_received_snapshot_replaces_the_log(life, make, crash_disk):
    life.write(make.persist(make.entries(1, 4)))
    meta = life.receive_snapshot(40, 3, b"the leader's state " * 10)
    life.write(make.persist(make.entries(41, 42, term=3), term=3, snapshot=meta))
    life.write(make.persist(make.entries(43, 43, term=3), term=3))
    assert recover_all(life, crash_disk) > 150


@pytest.mark.parametrize("checkpoint_bytes", [1, 10_000_000])
def test_a_crash_soon_after_a_crash(life, make, crash_disk, directory, monkeypatch, checkpoint_bytes):
    """The torn transaction of the first crash leaves good frames after a bad one. They must not be taken for later ones."""
    monkeypatch.setattr(store_module, "CHECKPOINT_BYTES", checkpoint_bytes)
    life.write(make.persist(make.entries(1, 2)))
    before = life.model.boot_state()
    life.write(make.persist(make.entries(3, 60, size=300)))
    first_frame_lost = next(state for state in life.disk.states if "WAL without" in state.label and state.acknowledged == 1)
    second = directory.with_name("second")
    crash_disk.restore(first_frame_lost.image, directory, second)
    monkeypatch.setattr(store_module, "CHECKPOINT_BYTES", 10_000_000)
    model = type(life.model)()
    model.write(make.persist(list(before.entries)))
    again = Life(second, crash_disk, model, make)
    again.write(make.persist(make.entries(3, 4)))
    again.write(make.persist(make.entries(5, 6)))
    assert recover_all(again, crash_disk) > 50
    again.store.close()
