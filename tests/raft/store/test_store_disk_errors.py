"""When the disk fails, the write fails, nothing is retried, and what was acknowledged before is still there."""

from __future__ import annotations

import errno
import resource
import shutil
import sqlite3
import zlib

import pytest

from dss_raft.disk.files import Database, Files
from dss_raft.disk.store import LogStore, SnapshotFailed, StoreFailed


def assert_stopped_with_nothing_lost(store: LogStore, directory, make, words: str) -> None:
    with pytest.raises(StoreFailed, match=f"stopped earlier.*{words}"):
        store.write(make.persist(make.entries(4, 4)))
    with pytest.raises(StoreFailed, match="stopped earlier"):
        store.count_start()
    shutil.copytree(directory, directory.with_name("afterwards"), dirs_exist_ok=True)
    store.close()
    found = LogStore(directory.with_name("afterwards"), "node-1", "cluster").load()
    assert found.entries[:3] == make.entries(1, 3)
    assert len(found.entries) in (3, 103), "the failed write is there as a whole or not at all"


def test_a_full_disk(directory, make):
    store = make.store(directory)
    store.write(make.persist(make.entries(1, 3)))
    database = store._database
    assert database is not None
    database.connection.execute("PRAGMA max_page_count = 5")  # makes SQLite return SQLITE_FULL
    with pytest.raises(StoreFailed, match="disk is full"):
        store.write(make.persist(make.entries(4, 103, size=4000)))
    assert_stopped_with_nothing_lost(store, directory, make, "full")


def test_an_input_output_error(directory, make):
    store = make.store(directory)
    store.write(make.persist(make.entries(1, 3)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))  # real writes beyond this size fail in this process
    try:
        with pytest.raises(StoreFailed, match="does not retry"):
            store.write(make.persist(make.entries(4, 103, size=4000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_stopped_with_nothing_lost(store, directory, make, "")


def test_a_failed_sync_of_a_commit_is_never_retried(directory, make):
    """After one failed fsync the kernel may report the next as good although the bytes are lost."""

    class FailsOnce(Database):
        fails = False

        def transaction(self, steps) -> None:
            super().transaction(steps)
            if self.fails:
                self.fails = False
                raise sqlite3.OperationalError("disk I/O error")

    databases: list[FailsOnce] = []

    def open_database(path) -> FailsOnce:
        databases.append(FailsOnce(path))
        return databases[0]

    store = LogStore(directory, "node-1", "cluster", database=open_database)
    store.bootstrap(make.configuration)
    store.write(make.persist(make.entries(1, 3)))
    databases[0].fails = True
    with pytest.raises(StoreFailed, match="disk I/O error"):
        store.write(make.persist(make.entries(4, 103)))
    assert_stopped_with_nothing_lost(store, directory, make, "disk I/O error")


@pytest.mark.parametrize("broken", ["create", "write", "sync", "rename", "sync_directory"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.EIO])
def test_a_snapshot_that_cannot_be_stored_stops_nothing(directory, make, broken, number):
    files = Files()
    store = LogStore(directory, "node-1", "cluster", files=files)
    store.bootstrap(make.configuration)
    store.write(make.persist(make.entries(1, 3)))
    sound = getattr(files, broken)

    def fail(*_: object) -> None:
        raise OSError(number, "it does not work")

    setattr(files, broken, fail)
    with pytest.raises(SnapshotFailed, match="it does not work"):
        store.save_snapshot(make.meta(2, 1), b"state", 0)
    assert not list(directory.glob("**/*.part")), "a full disk gets its space back"
    setattr(files, broken, sound)
    store.write(make.persist(make.entries(4, 5)))
    meta = store.save_snapshot(make.meta(4, 1), b"later state", 0)
    assert store.read_snapshot(meta) == b"later state"
    store.close()
    found = LogStore(directory, "node-1", "cluster").load()
    assert (found.snapshot, [entry.index for entry in found.entries]) == (meta, [5])


@pytest.mark.parametrize("broken", ["create", "write", "sync", "rename", "sync_directory"])
def test_a_received_snapshot_that_cannot_be_stored_is_received_again(directory, make, broken):
    files = Files()
    store = LogStore(directory, "node-1", "cluster", files=files)
    store.bootstrap(make.configuration)
    data = b"somebody's state"
    meta = make.meta(7, 1, len(data), zlib.crc32(data))
    sound = getattr(files, broken)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    setattr(files, broken, fail)
    with pytest.raises(SnapshotFailed, match="No space left"):
        store.write_chunk(meta, 0, data, zlib.crc32(data))
    setattr(files, broken, sound)
    assert store.write_chunk(meta, 0, data, zlib.crc32(data)) == (len(data), True)
    assert store.read_snapshot(meta) == data
    store.close()


def test_files_that_cannot_be_opened_stop_no_reader_of_a_snapshot(directory, make):
    store = make.store(directory)
    store.write(make.persist(make.entries(1, 3)))
    meta = store.save_snapshot(make.meta(2, 1), b"state", 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(SnapshotFailed, match="Too many open files"):
            store.read_chunk(meta, 0, 100)
        with pytest.raises(SnapshotFailed, match="Too many open files"):
            store.read_snapshot(meta)
        with pytest.raises(SnapshotFailed, match="Too many open files"):
            store.save_snapshot(make.meta(3, 1), b"state", 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert store.read_chunk(meta, 0, 100) == (b"state", True)
    assert store.save_snapshot(make.meta(3, 1), b"state", 0).index == 3
    store.close()
