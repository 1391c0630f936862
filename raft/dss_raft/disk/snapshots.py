"""Snapshot files: `snapshots/<index>-<term>-<crc>.snap`, and `….part` while one is being written or received.

A snapshot gets its final name when all its bytes are synced. Because of the CRC-32 in the name, a received snapshot never
overwrites one of this node with the same index. The database names the current snapshot; files it does not name are leftovers.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import msgspec

from dss_raft.core.messages import SnapshotMeta
from dss_raft.disk.files import Files, SnapshotFailed, StoreDamaged

DIRECTORY = "snapshots"


class SnapshotGone(SnapshotFailed):
    """A newer snapshot has replaced it; send that one."""


class SnapshotFiles:
    """Writes, reads and receives snapshot files. Methods raise OSError when the disk fails.

    `write`, `read` and `read_chunk` may run in any thread; `write_chunk` must always run in the same thread.
    """

    def __init__(self, directory: Path, files: Files) -> None:
        self._directory = directory / DIRECTORY
        self._files = files
        self._incoming: _Incoming | None = None
        #: complete, but perhaps not named by the database yet
        self._received: SnapshotMeta | None = None
        if not self._directory.is_dir():
            self._directory.mkdir()
            files.sync_directory(directory)

    def path(self, meta: SnapshotMeta) -> Path:
        return self._directory / f"{meta.index}-{meta.term}-{meta.crc:08x}.snap"

    def any(self) -> bool:
        """Whether there is any complete snapshot file."""
        return any(self._directory.glob("*.snap"))

    def write(self, meta: SnapshotMeta, data: bytes | Iterable[bytes]) -> SnapshotMeta:
        """Store all bytes of a snapshot. Returns its metadata with size and CRC."""
        part = self._directory / f"{meta.index}-{meta.term}.new.part"
        descriptor = self._files.create(part)
        size, crc = 0, 0
        try:
            for piece in (data,) if isinstance(data, bytes) else data:
                self._files.write(descriptor, piece, size)
                size, crc = size + len(piece), zlib.crc32(piece, crc)
            meta = msgspec.structs.replace(meta, size=size, crc=crc)
            self._finish(descriptor, part, self.path(meta))
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            self._files.close(descriptor)
        return meta

    def check(self, meta: SnapshotMeta) -> None:
        """Raises StoreDamaged when the file is missing or has the wrong size. `read` checks the bytes."""
        try:
            size = self.path(meta).stat().st_size
        except FileNotFoundError:
            raise StoreDamaged(f"snapshot file {self.path(meta)} is missing") from None
        if size != meta.size:
            raise StoreDamaged(f"snapshot file {self.path(meta)} has {size} bytes instead of {meta.size}")

    def read(self, meta: SnapshotMeta) -> bytes:
        """All bytes of a snapshot. Raises StoreDamaged when they are not what was written."""
        self.check(meta)
        data = self.path(meta).read_bytes()
        if zlib.crc32(data) != meta.crc:
            raise StoreDamaged(f"snapshot file {self.path(meta)} fails its checksum")
        return data

    def open(self, meta: SnapshotMeta) -> BinaryIO:
        """The file of a snapshot. While it is open it can be read, even if a newer snapshot replaces it."""
        try:
            return self.path(meta).open("rb", buffering=0)
        except FileNotFoundError:
            raise SnapshotGone(f"snapshot {meta.index} of term {meta.term} is no longer kept") from None

    def read_chunk(self, meta: SnapshotMeta, offset: int, length: int) -> tuple[bytes, bool]:
        """Up to `length` bytes from `offset`, and whether they reach the end."""
        try:
            with self.path(meta).open("rb") as file:
                data = os.pread(file.fileno(), length, offset)
        except FileNotFoundError:
            raise SnapshotGone(f"snapshot {meta.index} of term {meta.term} is no longer kept") from None
        return data, offset + len(data) >= meta.size

    def write_chunk(self, meta: SnapshotMeta, offset: int, data: bytes, crc: int) -> tuple[int, bool]:
        """Store a received chunk. Returns the offset to continue at, and whether the snapshot is complete and synced.

        A chunk that does not follow the last one, or fails its CRC, changes nothing. If the complete file does not match `meta`,
        it is thrown away, and the transfer starts again from 0.
        """
        if self.path(meta).exists():
            return meta.size, True
        incoming = self._incoming
        if incoming is None or incoming.meta != meta:
            self.drop_incoming()
            part = self.path(meta).with_suffix(".received.part")
            incoming = self._incoming = _Incoming(meta, part, self._files.create(part))
        if offset != incoming.size or zlib.crc32(data) != crc:
            return incoming.size, False
        self._files.write(incoming.descriptor, data, incoming.size)
        incoming.size += len(data)
        incoming.crc = zlib.crc32(data, incoming.crc)
        if incoming.size < meta.size:
            return incoming.size, False
        if (incoming.size, incoming.crc) != (meta.size, meta.crc):
            self.drop_incoming()
            return 0, False
        self._finish(incoming.descriptor, incoming.part, self.path(meta))
        self._files.close(incoming.descriptor)
        self._incoming, self._received = None, meta
        return meta.size, True

    def drop_incoming(self) -> None:
        """Delete a snapshot that is only partly received."""
        if self._incoming is not None:
            self._files.close(self._incoming.descriptor)
            self._files.remove(self._incoming.part)
            self._incoming = None

    def remove_others(self, keep: Iterable[SnapshotMeta]) -> None:
        """Delete all snapshot files except `keep`, the one being received, and the one received last."""
        kept = {self.path(meta) for meta in keep}
        if self._received is not None:
            kept.add(self.path(self._received))
        if self._incoming is not None:
            kept.add(self._incoming.part)
        for path in sorted(self._directory.iterdir()):
            if path not in kept and path.name.endswith((".snap", ".received.part")):
                self._files.remove(path)

    def remove_unfinished(self) -> None:
        """At start: delete the files that a crash left incomplete."""
        for path in sorted(self._directory.glob("*.part")):
            self._files.remove(path)

    def _finish(self, descriptor: int, part: Path, path: Path) -> None:
        """Sync the bytes first, then rename: a file with its final name is complete."""
        self._files.sync(descriptor)
        self._files.rename(part, path)
        self._files.sync_directory(self._directory)


class _Incoming:
    """A snapshot that is being received from the leader."""

    __slots__ = ("crc", "descriptor", "meta", "part", "size")

    def __init__(self, meta: SnapshotMeta, part: Path, descriptor: int) -> None:
        self.meta = meta
        self.part = part
        self.descriptor = descriptor
        self.size = 0
        self.crc = 0
