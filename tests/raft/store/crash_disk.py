"""Records what a store does to its disk, and rebuilds every state that a crash can leave.

The rules are those of POSIX, not of a friendly file system. What was written to a file is durable after a sync of the file; a
new, changed or removed name after a sync of the directory. Until then any part of it may be there: all subsets (in order) of
the last few operations, the last of them torn. A SQLite transaction in WAL mode appends frames and syncs once (a new header is
synced before). A checkpoint writes pages of the database, syncs it, and may then truncate the WAL. `test_store_syscalls.py`
checks that SQLite really does this.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from dss_raft.disk.files import Database, Files
from dss_raft.disk.wal import FRAME_HEADER_BYTES, HEADER_BYTES

PAGE = 4096
FRAME = FRAME_HEADER_BYTES + PAGE
#: Number of unsynced operations of which all subsets are tried; older ones are either all there or all lost.
PENDING_MAX = 4

Image = dict[Path, bytes]


class Write(NamedTuple):
    inode: int
    offset: int
    data: bytes


class Name(NamedTuple):
    """Names that change together: path -> inode, or None for a removed one."""

    changes: dict[Path, int | None]


class State(NamedTuple):
    """One possible disk after a crash."""

    label: str
    image: Image
    #: calls of the store that had returned
    acknowledged: int


class Disk:
    """A file system that knows what is durable. `states` collects the crash states of all operations on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.acknowledged = 0
        self.states: list[State] = []
        self._contents: dict[int, bytes] = {}
        self._names: dict[Path, int] = {}
        self._pending: list[Write | Name] = []
        self._sqlite: Image = {}
        self._inodes = itertools.count(1)

    # -- plain files -------------------------------------------------------------------------------------------------------------

    def inode(self, path: Path) -> int | None:
        names = dict(self._names)
        for operation in self._pending:
            if isinstance(operation, Name):
                _rename(names, operation)
        return names.get(path)

    def create(self, path: Path) -> int:
        inode = next(self._inodes)
        self._contents[inode] = b""
        self._add(Name({path: inode}), f"create {path.name}")
        return inode

    def write(self, inode: int, offset: int, data: bytes) -> None:
        self._add(Write(inode, offset, data), "write")

    def names(self, changes: dict[Path, int | None]) -> None:
        self._add(Name(changes), "names")

    def sync(self, inode: int) -> None:
        for operation in self._pending:
            if isinstance(operation, Write) and operation.inode == inode:
                self._contents[inode] = _overlay(self._contents[inode], operation.offset, operation.data)
        self._pending = [op for op in self._pending if not (isinstance(op, Write) and op.inode == inode)]

    def sync_directory(self) -> None:
        for operation in self._pending:
            if isinstance(operation, Name):
                _rename(self._names, operation)
        self._pending = [op for op in self._pending if not isinstance(op, Name)]

    def _add(self, operation: Write | Name, label: str) -> None:
        self._pending.append(operation)
        for variant, files in self._unsynced():
            self._crash(f"{label}, {variant}", files, self._sqlite)

    # -- SQLite ------------------------------------------------------------------------------------------------------------------

    def sqlite_opened(self, after: Image) -> None:
        self._sqlite = after

    def sqlite_committed(self, wal: Path, after: Image) -> None:
        before = self._sqlite
        assert {path: data for path, data in before.items() if path != wal} == {p: d for p, d in after.items() if p != wal}
        for label, torn in _torn_wals(before.get(wal, b""), after[wal]):
            self._crash_sqlite(f"commit, {label}", {**before, wal: torn})
        self._sqlite = after
        self._crash_sqlite("committed", after)

    def sqlite_checkpointed(self, database: Path, wal: Path, after: Image) -> None:
        before = self._sqlite
        for label, torn in _torn_databases(before[database], after[database]):
            self._crash_sqlite(f"checkpoint, {label}", {**before, database: torn})
        self._crash_sqlite("checkpoint, WAL not yet truncated", {**before, database: after[database]})
        self._sqlite = after
        self._crash_sqlite("checkpointed", after)

    def _crash_sqlite(self, label: str, sqlite: Image) -> None:
        self._crash(f"{label}, unsynced lost", self._files([]), sqlite)
        self._crash(f"{label}, unsynced there", self._files(self._pending), sqlite)

    # -- states ------------------------------------------------------------------------------------------------------------------

    def _crash(self, label: str, files: Image, sqlite: Image) -> None:
        self.states.append(State(f"{len(self.states)}: {label}", {**files, **sqlite}, self.acknowledged))

    def _unsynced(self) -> Iterator[tuple[str, Image]]:
        old, recent = self._pending[:-PENDING_MAX], self._pending[-PENDING_MAX:]
        for base_label, base in (("older lost", []), ("older there", old)) if old else (("", []),):
            for size in range(len(recent) + 1):
                for subset in itertools.combinations(recent, size):
                    yield f"{base_label} {size} of {len(recent)}", self._files([*base, *subset])
                    if subset and isinstance(subset[-1], Write):
                        last = subset[-1]
                        for cut in _positions(len(last.data)):
                            torn = last._replace(data=last.data[:cut])
                            yield f"{base_label} {size} of {len(recent)} torn at {cut}", self._files([*base, *subset[:-1], torn])

    def _files(self, applied: list[Write | Name]) -> Image:
        contents, names = dict(self._contents), dict(self._names)
        for operation in applied:
            if isinstance(operation, Write):
                contents[operation.inode] = _overlay(contents[operation.inode], operation.offset, operation.data)
            else:
                _rename(names, operation)
        return {path: contents[inode] for path, inode in names.items()}


class RecordingFiles(Files):
    """Real file I/O that is also recorded on the disk."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._open: dict[int, int] = {}

    def create(self, path: Path) -> int:
        descriptor = super().create(path)
        self._open[descriptor] = self._disk.create(path)
        return descriptor

    def open(self, path: Path) -> int:
        descriptor = super().open(path)
        self._open[descriptor] = self._disk.inode(path) or self._disk.create(path)
        return descriptor

    def write(self, descriptor: int, data: bytes, offset: int) -> None:
        super().write(descriptor, data, offset)
        self._disk.write(self._open[descriptor], offset, data)

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        self._disk.sync(self._open[descriptor])

    def rename(self, source: Path, target: Path) -> None:
        inode = self._disk.inode(source)
        super().rename(source, target)
        self._disk.names({source: None, target: inode})

    def remove(self, path: Path) -> None:
        super().remove(path)
        self._disk.names({path: None})

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        self._disk.sync_directory()


class RecordingDatabase(Database):
    """A real SQLite database. A comparison of the files before and after each step shows what it wrote."""

    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk = disk
        self._wal = path.with_name(path.name + "-wal")
        super().__init__(path)
        disk.sqlite_opened(self._image())

    def transaction(self, steps: Callable) -> None:
        super().transaction(steps)
        self._disk.sqlite_committed(self._wal, self._image())

    def checkpoint(self, *, truncate: bool = False) -> None:
        super().checkpoint(truncate=truncate)
        self._disk.sqlite_checkpointed(self.path, self._wal, self._image())

    def _image(self) -> Image:
        return {path: path.read_bytes() for path in (self.path, self._wal) if path.exists()}


def restore(image: Image, source: Path, target: Path) -> None:
    """Write the files of a crash state, which was recorded under `source`, below `target`."""
    (target / "snapshots").mkdir(parents=True)
    for path, data in image.items():
        (target / path.relative_to(source)).write_bytes(data)


def _torn_wals(before: bytes, after: bytes) -> Iterator[tuple[str, bytes]]:
    """The WAL while a transaction is written: its header, a sync, its frames, which may reach the disk in any order."""
    if before[:HEADER_BYTES] != after[:HEADER_BYTES]:
        for cut in range(HEADER_BYTES + 1):
            yield f"WAL header torn at {cut}", _overlay(before, 0, after[:cut])
        before = _overlay(before, 0, after[:HEADER_BYTES])
    pieces = [piece for piece in _pieces(after) if before[piece] != after[piece]]
    for number, piece in enumerate(pieces):
        written = before
        for earlier in pieces[:number]:
            written = _overlay(written, earlier.start, after[earlier])
        for cut in _positions(piece.stop - piece.start):
            yield f"WAL torn at {piece.start + cut}", _overlay(written, piece.start, after[piece.start : piece.start + cut])
        without, alone = before, _overlay(before, piece.start, after[piece])
        for other in pieces:
            if other != piece:
                without = _overlay(without, other.start, after[other])
        yield f"WAL without {piece.start}", without
        yield f"WAL with {piece.start} alone", alone


def _torn_databases(before: bytes, after: bytes) -> Iterator[tuple[str, bytes]]:
    """The database file while a checkpoint writes pages, in any order."""
    pages = [slice(start, start + PAGE) for start in range(0, len(after), PAGE)]
    pages = [page for page in pages if before[page] != after[page]]
    for number, page in enumerate(pages):
        written = before
        for earlier in pages[:number]:
            written = _overlay(written, earlier.start, after[earlier])
        for cut in (0, 1, 100, 512, 2048, 4095):
            yield f"page at {page.start} torn at {cut}", _overlay(written, page.start, after[page.start : page.start + cut])
        without = after[: page.start] + before[page].ljust(PAGE, b"\0") + after[page.stop :]
        yield f"without the page at {page.start}", without


def _pieces(wal: bytes) -> Iterator[slice]:
    """A frame is written in two pieces: its header, its page."""
    for start in range(HEADER_BYTES, len(wal), FRAME):
        yield slice(start, start + FRAME_HEADER_BYTES)
        yield slice(start + FRAME_HEADER_BYTES, start + FRAME)


def _positions(length: int) -> list[int]:
    """The places where a write may be torn: every byte of a short one, some of a page."""
    return list(range(length)) if length <= 32 else [0, 1, 511, 512, length // 2, length - 512, length - 1]


def _overlay(content: bytes, offset: int, data: bytes) -> bytes:
    return content[:offset].ljust(offset, b"\0") + data + content[offset + len(data) :]


def _rename(names: dict[Path, int], operation: Name) -> None:
    for path, inode in operation.changes.items():
        if inode is None:
            names.pop(path, None)
        else:
            names[path] = inode
