"""Snapshots in the store: written, read in chunks, received in chunks."""

from __future__ import annotations

import zlib

import pytest

from dss_raft.disk.store import LogStore, SnapshotGone, StoreDamaged


@pytest.fixture
def store(directory, make):
    store = make.store(directory)
    store.write(make.persist(make.entries(1, 20)))
    yield store
    store.close()


def files(directory) -> list[str]:
    return sorted(path.name for path in (directory / "snapshots").iterdir())


def test_a_snapshot_written_in_pieces_reads_back_complete(store, make):
    meta = store.save_snapshot(make.meta(10, 1), iter([b"one ", b"", b"two"]), 0)
    assert (meta.size, meta.crc) == (7, zlib.crc32(b"one two"))
    assert store.read_snapshot(meta) == b"one two"


def test_the_chunks_of_a_snapshot_cover_every_byte(store, make):
    meta = store.save_snapshot(make.meta(10, 1), b"0123456789", 0)
    assert store.read_chunk(meta, 0, 4) == (b"0123", False)
    assert store.read_chunk(meta, 4, 4) == (b"4567", False)
    assert store.read_chunk(meta, 8, 4) == (b"89", True)


def test_the_previous_snapshot_is_kept_for_receivers_and_older_ones_are_not(store, directory, make):
    first = store.save_snapshot(make.meta(5, 1), b"first", 0)
    second = store.save_snapshot(make.meta(6, 1), b"second", 0)
    assert store.read_chunk(first, 0, 10) == (b"first", True)
    third = store.save_snapshot(make.meta(7, 1), b"third", 0)
    with pytest.raises(SnapshotGone):
        store.read_chunk(first, 0, 10)
    assert store.read_chunk(second, 0, 10) == (b"second", True)
    store.close()
    LogStore(directory, "node-1", "cluster").close()
    assert len(files(directory)) == 1
    assert store.read_chunk(third, 0, 10) == (b"third", True)


def test_incomplete_files_are_removed_at_once_or_at_the_next_start(store, directory, make):
    def breaks_off():
        yield b"half"
        raise RuntimeError("the state machine failed")

    with pytest.raises(RuntimeError):
        store.save_snapshot(make.meta(5, 1), breaks_off(), 0)
    assert files(directory) == []
    (directory / "snapshots" / "6-1.new.part").write_bytes(b"left behind by a process that was killed")
    store.write_chunk(make.meta(90, 1, 100, 1), 0, b"half", zlib.crc32(b"half"))
    assert len(files(directory)) == 2
    store.write(make.persist(make.entries(21, 21)))  # none of this stops the log
    store.close()
    LogStore(directory, "node-1", "cluster").close()
    assert files(directory) == []


class Sender:
    """Read all chunks, like the leader in a transfer."""

    def __init__(self, make, data: bytes) -> None:
        self.data = data
        self.meta = make.meta(50, 2, len(data), zlib.crc32(data))

    def send(self, store, offset: int, length: int = 4, meta=None) -> tuple[int, bool]:
        chunk = self.data[offset : offset + length]
        return store.write_chunk(meta or self.meta, offset, chunk, zlib.crc32(chunk))


@pytest.fixture
def sender(make) -> Sender:
    return Sender(make, b"0123456789")


def test_a_received_snapshot_replaces_the_log_of_the_store(store, directory, make, sender):
    assert sender.send(store, 0) == (4, False)
    assert sender.send(store, 4) == (8, False)
    assert sender.send(store, 8) == (10, True)
    store.write(make.persist(make.entries(51, 52, term=2), term=2, snapshot=sender.meta))
    store.close()
    again = LogStore(directory, "node-1", "cluster")
    found = again.load()
    assert found.snapshot == sender.meta
    assert found.entries == make.entries(51, 52, term=2)
    assert again.read_snapshot(sender.meta) == sender.data
    again.close()


def test_repeated_early_and_late_chunks_return_the_offset_to_continue_at(store, sender):
    assert sender.send(store, 4) == (0, False)
    assert sender.send(store, 0) == (4, False)
    assert sender.send(store, 0) == (4, False)
    assert sender.send(store, 8) == (4, False)
    assert sender.send(store, 4) == (8, False)
    assert sender.send(store, 8) == (10, True)
    assert sender.send(store, 8) == (10, True)


def test_a_corrupted_chunk_is_requested_again(store, sender):
    assert store.write_chunk(sender.meta, 0, b"garb", zlib.crc32(b"0123")) == (0, False)
    assert sender.send(store, 0) == (4, False)


@pytest.mark.parametrize("more", [b"89", b"8!", b"89 and more"])
def test_bytes_that_do_not_match_the_announced_snapshot_start_over(store, make, sender, more):
    meta = make.meta(50, 2, 10, zlib.crc32(b"another 10"))
    for offset in (0, 4):
        sender.send(store, offset, meta=meta)
    assert store.write_chunk(meta, 8, more, zlib.crc32(more)) == (0, False)
    assert sender.send(store, 0, meta=meta) == (4, False)


def test_a_newer_snapshot_replaces_one_that_is_partly_received(store, directory, make, sender):
    sender.send(store, 0)
    newer = make.meta(60, 2, 3, zlib.crc32(b"new"))
    assert store.write_chunk(newer, 0, b"new", zlib.crc32(b"new")) == (3, True)
    assert len(files(directory)) == 1


def test_an_own_snapshot_is_not_mixed_up_with_a_received_one_of_the_same_index(store, directory, make):
    own = store.save_snapshot(make.meta(10, 1), b"own bytes", 0)
    theirs = make.meta(10, 1, 5, zlib.crc32(b"their"))
    assert store.write_chunk(theirs, 0, b"their", zlib.crc32(b"their")) == (5, True)
    assert store.read_snapshot(own) == b"own bytes"
    assert store.read_snapshot(theirs) == b"their"


def test_an_own_snapshot_older_than_a_received_one_changes_nothing(store, directory, make, sender):
    staged = store.stage_snapshot(make.meta(10, 1), b"slowly written")
    sender.send(store, 0, length=10)
    store.write(make.persist([], term=2, snapshot=sender.meta))
    store.commit_snapshot(staged, 0)
    store.write(make.persist(make.entries(51, 51, term=2), term=2))
    store.close()
    again = LogStore(directory, "node-1", "cluster")
    assert again.load().snapshot == sender.meta
    assert len(files(directory)) == 1
    again.close()


def test_a_received_snapshot_is_kept_while_own_ones_are_taken_before_its_installation(store, make, sender):
    sender.send(store, 0, length=10)
    for index in (10, 11, 12):
        store.save_snapshot(make.meta(index, 1), b"own", 0)
    store.write(make.persist([], term=2, snapshot=sender.meta))
    assert store.read_snapshot(sender.meta) == sender.data


def test_a_snapshot_that_was_changed_on_disk_is_not_read(store, directory, make):
    meta = store.save_snapshot(make.meta(10, 1), b"0123456789", 0)
    (directory / "snapshots" / files(directory)[0]).write_bytes(b"0123456780")
    with pytest.raises(StoreDamaged, match="fails its checksum"):
        store.read_snapshot(meta)
