"""The log store: term, vote, log and snapshots of one node, in one directory, through one thread.

    raft.lock           held by the process that uses the directory
    raft.sqlite3        table `entries` (a row per entry, with its CRC) and table `meta` (identity, state, snapshot)
    raft.acknowledged   the number of the newest acknowledged transaction, written right after each one
    raft.damaged        why the store refused to start earlier; while this file exists, it refuses again
    snapshots/          see `snapshots`

Promises. When `write` returns, all of it is synced. When the process or the machine dies at any moment, the next start finds
every acknowledged write, and perhaps the one that was in progress. When the files are not what was acknowledged, the store
refuses to start, with a message. It never repairs itself by dropping data: a shorter log could elect a leader that lacks
committed entries (Raft paper, 5.4.1).

How damage is distinguished from the torn end of a crash. Each row has a CRC over its index, term, kind and data. The state row
counts transactions and says which indexes the log has, so a missing row is noticed. `wal` finds damage in SQLite's write-ahead
log before SQLite drops what follows it. `raft.acknowledged`, the high-water mark, shows whether the newest transactions are
missing, which nothing inside the database can show. The mark is never ahead of what was synced, so an intact store is never
refused. The file is created durably before anything is acknowledged, and never deleted. Without it the store refuses to start, until
the operator has put back the file or an empty one. An empty file, or one whose last write was torn, tells nothing and is accepted:
a power failure can leave it so.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, NoReturn, TypeVar

import msgspec

from dss_raft.core.messages import Configuration, Entry, SnapshotMeta
from dss_raft.core.ready import BootState, HardState, Persist
from dss_raft.disk import rows, wal
from dss_raft.disk.acknowledged import Acknowledged
from dss_raft.disk.files import (
    SQLITE_BUSY,
    Database,
    Files,
    SnapshotFailed,
    StoreDamaged,
    StoreError,
    StoreFailed,
    StoreRefused,
    what_to_do,
)
from dss_raft.disk.snapshots import SnapshotFiles, SnapshotGone
from dss_raft.formats import WrongFormat

__all__ = ["LogStore", "SnapshotFailed", "SnapshotGone", "StoreDamaged", "StoreError", "StoreFailed", "StoreRefused"]

DATABASE = "raft.sqlite3"
STORE_ID_BYTES = 8
#: Log bytes between two checkpoints: few enough for a quick start after a crash, enough to make the syncs of checkpoints rare.
CHECKPOINT_BYTES = 4 * 1024 * 1024
#: Approximate size of what one transaction adds to the write-ahead log besides its data.
_TRANSACTION_BYTES = 8192
#: SQLite's result codes for a file with wrong content, as opposed to an unreadable file: ERROR (the schema does not parse),
#: CORRUPT, MISMATCH, FORMAT, NOTADB.
_CONTENT_CODES = (1, 11, 20, 24, 26)

T = TypeVar("T")

#: what to do about a directory that must not be used; {node}: the node that it belongs to
_REPLACE = (
    "Move the directory away, start the node with an empty one, and run `manage.py member replace {node}`: it gets the log from the "
    "other members. A cluster of one node needs a backup: `manage.py snapshot restore`"
)

_ADVICE = "This node must not continue with it, because the missing data may have been acknowledged. " + _REPLACE

_MARK_IS_MISSING = (
    "raft.acknowledged is missing. A node never deletes it, so the directory is not as the node left it, and without this file it cannot "
    "know whether the newest acknowledged votes and entries are missing. Put the file back. If it is lost and you are certain that nothing "
    "else in the directory was lost, changed or restored, create it empty. Otherwise the directory must not be used. " + _REPLACE
)


class LogStore:
    """The durable state of one Raft member. Synchronous; one thread at a time.

    Args:
        any_cluster: accept the directory of any cluster; `identity` says which one it is.

    Raises:
        StoreRefused: the directory belongs to another node or cluster, is in use by another process, or is of a newer release.
        StoreDamaged: a CRC is wrong, entries or whole transactions are missing, or a file is missing or unreadable.
        StoreFailed: the disk failed while the store was opened.
    """

    def __init__(
        self,
        directory: Path,
        node_id: str,
        cluster_id: str = "",
        *,
        any_cluster: bool = False,
        files: Files | None = None,
        database: Callable[[Path], Database] = Database,
    ) -> None:
        self.directory = directory
        self._node_id = node_id
        self.is_new = True
        self._files = files or Files()
        self._failed = ""
        self._bytes_since_checkpoint = 0
        self._entries: list[Entry] = []
        self._snapshot: SnapshotMeta | None = None
        self._previous_snapshot: SnapshotMeta | None = None
        self._state = rows.State()
        self._acknowledged = Acknowledged(directory, self._files)
        self._database: Database | None = None
        self._lock = -1
        try:
            self._take_lock()
            self._refuse_if_marked()
            self._snapshots = SnapshotFiles(directory, self._files)
            self._any_cluster = any_cluster
            self._open(rows.Identity(node_id, cluster_id, os.urandom(STORE_ID_BYTES).hex()), database)
        except BaseException as error:
            self.close()
            refusal = self._translate(error)
            if isinstance(refusal, StoreDamaged):
                self._mark_damaged(str(refusal))
            raise refusal from error

    # -- reading ---------------------------------------------------------------------------------------------------------------

    def load(self) -> BootState:
        """What the last run left, verified when the store was opened. Call it once, at start: it hands the entries over."""
        if self._snapshot is None:
            raise StoreError("a new store has nothing to load; call bootstrap first")
        entries, self._entries = self._entries, []
        return BootState(self.hard_state, self._snapshot, entries, self._state.is_outdated)

    @property
    def store_id(self) -> str:
        """Random and unique: it identifies the contents of this directory."""
        return self.identity.store_id

    @property
    def starts(self) -> int:
        """How often a node was started with this directory, this time included."""
        return self._state.starts

    @property
    def is_formed(self) -> bool:
        """True once the store belongs to a cluster: it has members or entries."""
        snapshot = self._snapshot
        return snapshot is not None and bool(snapshot.configuration.members or self._state.last_index)

    @property
    def last_index(self) -> int:
        """The last entry that is durable or covered by a durable snapshot."""
        return self._state.last_index

    @property
    def hard_state(self) -> HardState:
        """The durable term and vote."""
        return HardState(self._state.term, self._state.vote)

    @property
    def snapshot_index(self) -> int:
        """The index of the snapshot that a start would load; -1 before `bootstrap`."""
        return -1 if self._snapshot is None else self._snapshot.index

    @property
    def snapshot_path(self) -> Path | None:
        """The file of the current snapshot; None at index 0, which has no file."""
        return self._snapshots.path(self._snapshot) if self._snapshot is not None and self._snapshot.index else None

    def database_bytes(self) -> int:
        """The size of the database and its write-ahead log. Raises OSError."""
        path, wal_path = self.directory / DATABASE, self.directory / f"{DATABASE}-wal"
        return path.stat().st_size + (wal_path.stat().st_size if wal_path.exists() else 0)

    def read_snapshot(self, meta: SnapshotMeta) -> bytes:
        """All bytes of a snapshot.

        Raises:
            StoreDamaged: they are not what was stored.
            SnapshotFailed: they cannot be read now.
        """
        return self._guard_snapshot("read", lambda: self._snapshots.read(meta))

    def open_snapshot(self, meta: SnapshotMeta) -> BinaryIO:
        """The file of a snapshot, opened for reading.

        Raises:
            SnapshotGone: the snapshot is no longer kept.
            SnapshotFailed: it cannot be opened now.
        """
        return self._guard_snapshot("read", lambda: self._snapshots.open(meta))

    def read_chunk(self, meta: SnapshotMeta, offset: int, length: int) -> tuple[bytes, bool]:
        """Up to `length` bytes from `offset`, and whether they reach the end.

        Raises:
            SnapshotGone: the snapshot is no longer kept.
            SnapshotFailed: it cannot be read now.
        """
        return self._guard_snapshot("read", lambda: self._snapshots.read_chunk(meta, offset, length))

    # -- writing ---------------------------------------------------------------------------------------------------------------

    def bootstrap(self, configuration: Configuration) -> None:
        """Give a new store its first snapshot: index 0, term 0, and the initial members of the cluster."""
        if not self.is_new:
            raise StoreError("the store has been bootstrapped already")
        snapshot = SnapshotMeta(index=0, term=0, configuration=configuration)
        self._commit(self._state, lambda connection: rows.put(connection, "snapshot", snapshot))
        self._snapshot = snapshot
        self.is_new = False

    def form(self, configuration: Configuration) -> None:
        """Make the store, which is empty, one of a cluster with these members."""
        if self.is_formed:
            raise StoreError("the store belongs to a cluster already")
        snapshot = SnapshotMeta(index=0, term=0, configuration=configuration)
        self._commit(self._state, lambda connection: rows.put(connection, "snapshot", snapshot))
        self._snapshot = snapshot

    def count_start(self) -> int:
        """Count a start with this directory, durably: 1, 2, 3, … From now on, releases that do not know this format refuse it."""
        self._commit(msgspec.structs.replace(self._state, starts=self._state.starts + 1), rows.put_schema_version)
        return self._state.starts

    def mark_outdated(self) -> None:
        """Note, durably, that the store was put back to an earlier state."""
        if not self._state.is_outdated:
            self._commit(msgspec.structs.replace(self._state, is_outdated=True))

    def write(self, persist: Persist) -> None:
        """Make one `Persist` durable, in one transaction.

        Raises:
            StoreFailed: it may or may not be on disk. The store refuses all further writes, and the node must stop.
        """
        state, steps = self._plan(persist)
        if self._bytes_since_checkpoint >= CHECKPOINT_BYTES:
            self._guard(lambda: self._checkpoint(truncate=False))
        self._commit(state, steps)
        self._bytes_since_checkpoint += sum(len(entry.data) for entry in persist.entries)
        if persist.snapshot is not None:
            self._adopt(persist.snapshot)

    def save_snapshot(self, meta: SnapshotMeta, data: bytes | Iterable[bytes], keep_entries: int) -> SnapshotMeta:
        """Store a snapshot and drop the entries up to `meta.index - keep_entries`. Returns its metadata with size and CRC."""
        return self.commit_snapshot(self.stage_snapshot(meta, data), keep_entries)

    def stage_snapshot(self, meta: SnapshotMeta, data: bytes | Iterable[bytes]) -> SnapshotMeta:
        """The slow part of `save_snapshot`: write and sync the file. It may run in any thread, concurrently with `write`.

        Raises:
            SnapshotFailed: the file could not be written. Nothing refers to it, so the store continues.
        """
        return self._guard_snapshot("write", lambda: self._snapshots.write(meta, data))

    def commit_snapshot(self, meta: SnapshotMeta, keep_entries: int) -> SnapshotMeta:
        """The quick part: make `meta`, as `stage_snapshot` returned it, the current snapshot.

        It has no effect if a newer snapshot was received while this one was being written.
        """
        if self._snapshot is None or meta.index > self._state.last_index:
            self._fail(f"snapshot of index {meta.index} is beyond the end of the log, {self._state.last_index}")
        if meta.index <= self._snapshot.index:
            return meta
        first = max(self._state.first_index, meta.index - keep_entries + 1)

        def steps(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM entries WHERE idx < ?", (first,))
            rows.put(connection, "snapshot", meta)

        self._commit(msgspec.structs.replace(self._state, first_index=first), steps)
        self._adopt(meta)
        return meta

    def write_chunk(self, meta: SnapshotMeta, offset: int, data: bytes, crc: int) -> tuple[int, bool]:
        """Store a received chunk. Returns (offset to continue at, whether the snapshot is complete, synced and right).

        Raises:
            SnapshotFailed: it could not be written. What was received is dropped; the transfer begins again.
        """
        try:
            return self._guard_snapshot("receive", lambda: self._snapshots.write_chunk(meta, offset, data, crc))
        except SnapshotFailed:
            with contextlib.suppress(OSError):
                self._snapshots.drop_incoming()
            raise

    def close(self) -> None:
        """Close the database, which moves the log into the database file, and release the directory."""
        database, self._database = self._database, None
        try:
            if database is not None:
                database.close()
        finally:
            self._acknowledged.close()
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    # -- one write ---------------------------------------------------------------------------------------------------------------

    def _plan(self, persist: Persist) -> tuple[rows.State, Callable[[sqlite3.Connection], None]]:
        """The state after `persist`, and the SQL statements for it. A write that would break the log fails before any I/O."""
        state, entries, snapshot = self._state, persist.entries, persist.snapshot
        first, last = state.first_index, state.last_index
        truncate_from = persist.truncate_from if 0 < persist.truncate_from <= last else 0
        if truncate_from:
            last = truncate_from - 1
        if snapshot is not None:
            first, last = snapshot.index + 1, snapshot.index
            if not self._snapshots.path(snapshot).exists():
                self._fail(f"snapshot {snapshot.index} must replace the log, but its file is missing")
        elif self._snapshot is None or last < self._snapshot.index:
            self._fail(f"the log would end at {last}, before its snapshot")
        if persist.hard_state.term < state.term:
            self._fail(f"term {persist.hard_state.term} after term {state.term}")
        if entries and (entries[0].index != last + 1 or entries[-1].index != last + len(entries)):
            self._fail(f"entries {entries[0].index} to {entries[-1].index} do not follow index {last}")
        entry_rows = [rows.entry_row(entry) for entry in entries]

        def steps(connection: sqlite3.Connection) -> None:
            if snapshot is not None:
                connection.execute("DELETE FROM entries")
                rows.put(connection, "snapshot", snapshot)
            elif truncate_from:
                connection.execute("DELETE FROM entries WHERE idx >= ?", (truncate_from,))
            if entry_rows:
                connection.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", entry_rows)

        new = msgspec.structs.replace(
            state,
            term=persist.hard_state.term,
            vote=persist.hard_state.vote,
            first_index=first,
            last_index=last + len(entries),
        )
        return new, steps

    def _commit(self, state: rows.State, steps: Callable[[sqlite3.Connection], None] | None = None) -> None:
        """Run one durable transaction. It writes `state` last."""
        state = msgspec.structs.replace(state, sequence=self._state.sequence + 1)
        database = self._require_database()

        def all_steps(connection: sqlite3.Connection) -> None:
            if steps is not None:
                steps(connection)
            rows.put(connection, "state", state)

        self._guard(lambda: database.transaction(all_steps))
        self._state = state
        self._bytes_since_checkpoint += _TRANSACTION_BYTES
        self._guard(lambda: self._acknowledged.write(self._state.sequence))

    def _checkpoint(self, *, truncate: bool) -> None:
        """Checkpoint, and sync the high-water mark: if the next WAL header is torn, the mark shows that nothing is missing."""
        self._require_database().checkpoint(truncate=truncate)
        self._bytes_since_checkpoint = 0
        self._acknowledged.write(self._state.sequence)
        self._acknowledged.sync()

    def _adopt(self, snapshot: SnapshotMeta) -> None:
        """`snapshot` is in the database now. The file of the previous one stays, for members that are receiving it."""
        self._previous_snapshot, self._snapshot = self._snapshot, snapshot
        keep = [meta for meta in (snapshot, self._previous_snapshot) if meta is not None]
        with contextlib.suppress(OSError):  # the next snapshot, or the next start, removes what is left
            self._snapshots.remove_others(keep)

    def _guard(self, action: Callable[[], T]) -> T:
        """Run an action that uses the disk. After a failure the store does not write again."""
        if self._failed:
            raise StoreFailed(f"{self.directory}: the log store stopped earlier: {self._failed}")
        try:
            return action()
        except (OSError, sqlite3.Error) as error:
            self._fail(str(error), what_to_do(error))

    def _guard_snapshot(self, what: str, action: Callable[[], T]) -> T:
        """Run what touches only the file of a snapshot; its failure leaves the log as it is."""
        if self._failed:
            raise StoreFailed(f"{self.directory}: the log store stopped earlier: {self._failed}")
        try:
            return action()
        except OSError as error:
            raise SnapshotFailed(f"cannot {what} a snapshot: {error}") from error

    def _fail(self, reason: str, advice: str = "") -> NoReturn:
        self._failed = self._failed or reason
        text = f"{self.directory}: the log store cannot write: {reason}. It does not retry; the node must stop"
        raise StoreFailed(f"{text}. {advice}" if advice else text)

    def _require_database(self) -> Database:
        if self._database is None:
            raise StoreError("the log store is closed")
        return self._database

    # -- opening ---------------------------------------------------------------------------------------------------------------

    def _take_lock(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.directory / "raft.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip()
            raise StoreRefused(f"another running process (pid {holder or 'unknown'}) uses this data directory") from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _refuse_if_marked(self) -> None:
        marker = self.directory / "raft.damaged"
        if marker.exists():
            raise StoreDamaged(f"an earlier start found: {marker.read_text(errors='replace').strip()}")

    def _mark_damaged(self, text: str) -> None:
        """Make the next start refuse, too, even if SQLite has changed its files by then."""
        marker = self.directory / "raft.damaged"
        with contextlib.suppress(OSError):
            if not marker.exists():
                marker.write_text(text + "\n")

    def _advice(self) -> str:
        return _ADVICE.format(node=self._node_id)

    def _translate(self, error: BaseException) -> BaseException:
        """The error that is raised for an error while opening; its text is for the person who started the node."""
        if isinstance(error, sqlite3.Error):
            code = getattr(error, "sqlite_errorcode", _CONTENT_CODES[0]) & 0xFF
            if code == SQLITE_BUSY:
                return StoreRefused(f"{self.directory}: another process has {DATABASE} open")
            if code in _CONTENT_CODES:
                return StoreDamaged(f"{self.directory}: SQLite cannot read {DATABASE}: {error}. {self._advice()}")
        if isinstance(error, sqlite3.Error | OSError):
            return StoreFailed(f"{self.directory}: cannot open the log store: {error}. {what_to_do(error)}")
        if isinstance(error, StoreDamaged):
            return StoreDamaged(f"{self.directory}: {error}. {self._advice()}")
        if isinstance(error, StoreRefused | WrongFormat):
            return StoreRefused(f"{self.directory}: {error}")
        return error

    def _open(self, identity: rows.Identity, open_database: Callable[[Path], Database]) -> None:
        path = self.directory / DATABASE
        report = self._inspect_wal()
        acknowledged = self._acknowledged.read()
        used = self._acknowledged.exists() or self._snapshots.any()
        if used and not (path.exists() and path.stat().st_size):
            raise StoreDamaged(f"{DATABASE} is missing or empty, although this directory has been used before")
        database = self._database = open_database(path)
        if not used and rows.is_empty(database.connection):
            database.transaction(lambda connection: rows.create(connection, identity))
            self._files.sync_directory(self.directory)
        rows.check_schema(database.connection)
        self._take_identity(database, identity)
        self._read(database.connection)
        if not self.is_new and not self._acknowledged.exists():
            raise StoreRefused(_MARK_IS_MISSING.format(node=self._node_id))
        if acknowledged is not None and acknowledged > self._state.sequence:
            raise StoreDamaged(f"the newest {acknowledged - self._state.sequence} acknowledged transactions are missing")
        if not report.header_valid and acknowledged != self._state.sequence:
            raise StoreDamaged("the header of the write-ahead log is damaged, and so is everything after it")
        # This syncs what a killed process wrote but did not sync, before anything relies on it. And the next generation of the
        # write-ahead log does not begin among frames of this one; `wal` relies on that.
        self._acknowledged.open()
        self._checkpoint(truncate=True)
        self._snapshots.remove_unfinished()
        self._snapshots.remove_others([self._snapshot] if self._snapshot else [])

    def _inspect_wal(self) -> wal.WalReport:
        path = self.directory / f"{DATABASE}-wal"
        report = wal.inspect(path.read_bytes() if path.exists() else b"")
        if report.damage:
            raise StoreDamaged(report.damage)
        return report

    def _read(self, connection: sqlite3.Connection) -> None:
        self._state = rows.require(connection, "state", rows.State)
        self._snapshot = rows.get(connection, "snapshot", SnapshotMeta)
        if self._snapshot is None:
            if self._state.last_index:
                raise StoreDamaged("the row `snapshot` is missing")
            return
        self.is_new = False
        self._entries = rows.read_entries(connection, self._state, self._snapshot)
        if self._snapshot.index:
            self._snapshots.check(self._snapshot)

    def _take_identity(self, database: Database, given: rows.Identity) -> None:
        """Check whose directory this is. One of a release without store ids gets one."""
        stored = rows.require(database.connection, "identity", rows.Identity)
        if stored.node_id != given.node_id:
            raise StoreRefused(
                f"it belongs to node {stored.node_id!r}, not to {given.node_id!r}: give each node its own data directory"
            )
        if stored.cluster_id != given.cluster_id and not self._any_cluster:
            raise StoreRefused(f"it belongs to cluster {stored.cluster_id!r}, not to {given.cluster_id!r}: use another one")
        if not stored.store_id:
            stored = given
            database.transaction(lambda connection: rows.put(connection, "identity", given))
        self.identity = stored
