"""The I/O of the log store: all its writes go through one of the two classes here.

`Files` is plain file I/O. `Database` is one SQLite file, used in two kinds of steps only: a transaction appends to the
write-ahead log and syncs it once; a checkpoint copies synced pages into the database file and syncs that. Tests replace both
classes by recorders, and rebuild from the record every state that a crash can leave.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

from dss_api.errors import ForOperator

SQLITE_BUSY = 5
SQLITE_READONLY = 8
SQLITE_FULL = 13
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StoreError(ForOperator):
    """The store cannot do this. The text is for the operator."""


class StoreRefused(StoreError):
    """The directory is intact, but this node cannot use it: it belongs to another node, is in use, or was written by a newer version."""


class StoreDamaged(StoreError):
    """The data on disk is not what was acknowledged. The store never repairs it by dropping data."""


class StoreFailed(StoreError):
    """A write or its fsync failed. The state on disk is unknown, so nothing may be retried and the node must stop."""


class SnapshotFailed(StoreError):
    """A snapshot could not be written, received or read. The log is not affected: try again later."""


def what_to_do(error: BaseException) -> str:
    """What the operator can do about an error of the disk; the data are as safe as they were."""
    is_full = getattr(error, "sqlite_errorcode", 0) & 0xFF == SQLITE_FULL or getattr(error, "errno", 0) in _NO_SPACE
    if is_full:
        return "Free some space on its file system, then start the node again: nothing that was answered is lost"
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == SQLITE_READONLY or getattr(error, "errno", 0) in (
        errno.EROFS,
        errno.EACCES,
    ):
        return "Make the directory writable for the user of this node, then start the node again"
    return "Check the disk and the limits of the process, then start the node again"


class Files:
    """Plain files, and the syncs that make them durable. Every method raises OSError."""

    def create(self, path: Path) -> int:
        """Create an empty file, opened for reading and writing. Its name is durable after `sync_directory`."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def open(self, path: Path) -> int:
        """Open an existing file with its content, or create one."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, descriptor: int, data: bytes, offset: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written

    def sync(self, descriptor: int) -> None:
        if sys.platform == "darwin":  # fsync leaves the bytes in the cache of the drive there
            import fcntl

            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        else:
            os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def sync_directory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Database:
    """One SQLite file in WAL mode with `synchronous=FULL`, held exclusively. Methods raise sqlite3.Error.

    Checkpoints are explicit, because SQLite's automatic ones swallow their errors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # The store is opened in one thread and then used by its worker, never by both at the same time.
        self.connection = sqlite3.connect(path, timeout=1, isolation_level=None, check_same_thread=False)
        try:
            # Exclusive: no other process can open the file, and the WAL index needs no shared memory file.
            self._pragma("locking_mode", "exclusive")
            self._pragma("journal_mode", "wal", expected="wal")
            self._pragma("synchronous", "full")
            self._pragma("fullfsync", "on")
            self._pragma("checkpoint_fullfsync", "on")
            self._pragma("wal_autocheckpoint", "0")
            # Pages of an unfinished transaction stay in memory, so that the WAL holds whole transactions only.
            self._pragma("cache_spill", "off")
            if self.connection.execute("PRAGMA synchronous").fetchone() != (2,):
                raise sqlite3.OperationalError("SQLite did not accept synchronous=FULL")
        except BaseException:
            self.connection.close()
            raise

    def transaction(self, steps: Callable[[sqlite3.Connection], None]) -> None:
        """Run `steps` and commit. The transaction is durable on return, or has no effect."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            steps(self.connection)
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    def checkpoint(self, *, truncate: bool = False) -> None:
        """Copy the WAL into the database file. Afterwards the WAL is overwritten, or emptied (`truncate`)."""
        mode = "TRUNCATE" if truncate else "PASSIVE"
        busy, _, _ = self.connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        if busy:
            raise sqlite3.OperationalError("checkpoint blocked by another connection")

    def close(self) -> None:
        self.connection.close()

    def _pragma(self, name: str, value: str, expected: str | None = None) -> None:
        row = self.connection.execute(f"PRAGMA {name}={value}").fetchone()
        if expected is not None and (row is None or row[0] != expected):
            raise sqlite3.OperationalError(f"SQLite did not accept {name}={value}")
