"""The high-water mark: the number of the newest acknowledged transaction, 13 bytes in a file of its own, synced at checkpoints.

    version   1 byte; it is read first. The file of releases up to 662b62d has 12 bytes and no version
    number    8 bytes, little-endian
    checksum  4 bytes: CRC-32 of the number

A write without a sync costs microseconds and survives the death of the process. So after a kill the mark says exactly how far the
database must reach. After a power failure it may be older, but never older than the last checkpoint, and never ahead of the
database.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from dss_raft.disk.files import Files
from dss_raft.formats import Format

FILE = "raft.acknowledged"
FORMAT = Format(FILE, 1)
_LAYOUT = struct.Struct("<BQI")
_LAYOUT_V0 = struct.Struct("<QI")


class Acknowledged:
    """The number in `raft.acknowledged`. Methods raise OSError."""

    def __init__(self, directory: Path, files: Files) -> None:
        self._path = directory / FILE
        self._files = files
        self._descriptor = -1

    def read(self) -> int | None:
        """The number. None: it does not exist yet, or its last write was torn.

        Raises:
            WrongFormat: a newer release wrote it.
        """
        packed = self._path.read_bytes() if self._path.exists() else b""
        if len(packed) == _LAYOUT_V0.size:
            sequence, crc = _LAYOUT_V0.unpack(packed)
        elif packed and packed[0] > 0:
            FORMAT.of_binary(packed)
            if len(packed) != _LAYOUT.size:
                return None
            _, sequence, crc = _LAYOUT.unpack(packed)
        else:
            return None
        return sequence if _crc(sequence) == crc else None

    def exists(self) -> bool:
        return self._path.exists()

    def open(self) -> None:
        self._descriptor = self._files.open(self._path)
        self._files.sync_directory(self._path.parent)

    def write(self, sequence: int) -> None:
        self._files.write(self._descriptor, _LAYOUT.pack(FORMAT.version, sequence, _crc(sequence)), 0)

    def sync(self) -> None:
        self._files.sync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            self._files.close(self._descriptor)
            self._descriptor = -1


def _crc(sequence: int) -> int:
    return zlib.crc32(sequence.to_bytes(8, "little"))
