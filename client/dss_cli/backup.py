"""Backup files: the state of a cluster at one index, in one file that can leave the machine.

    magic     8 bytes
    version   4 bytes, big-endian: read before everything that follows
    length    4 bytes: size of the header
    header    JSON, see `Header`
    digest    32 bytes: SHA-256 of everything before it
    body      a node's snapshot, see `dss_raft.replication.snapshot_keeper`; the header has its size and its SHA-256

A file gets its name when all its bytes are synced, so a file with that name is complete. It contains every value and every lock of
the cluster, so only its owner may read it.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import msgspec

MAGIC = b"DSSbackp"
VERSION = 1
#: Longest header: some thousand members.
HEADER_BYTES_MAX = 1024 * 1024
PIECE_BYTES = 1024 * 1024
_PREFIX = struct.Struct(">8sII")
_DIGEST_BYTES = 32


class BackupInvalid(Exception):
    """The file is not a backup that this release can use. The text is one line for the operator."""


class BackupMember(msgspec.Struct, frozen=True):
    """A member of the cluster that was saved."""

    id: str
    url: str
    learner: bool = False


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup contains. Unknown fields of later releases are ignored; what must not be ignored raises `VERSION`."""

    #: the name of the cluster (DSS_CLUSTER_ID)
    cluster: str
    #: the node that was asked
    node: str
    #: everything up to this entry of the log is in the state, and its term
    index: int
    term: int
    #: the configuration in force at `index`
    members: tuple[BackupMember, ...]
    #: wall clock of the node, in ms since 1970
    saved_at_ms: int
    #: of the body
    bytes: int
    sha256: str


def encode_header(header: Header) -> bytes:
    """Everything before the body."""
    encoded = msgspec.json.encode(header)
    start = _PREFIX.pack(MAGIC, VERSION, len(encoded)) + encoded
    return start + hashlib.sha256(start).digest()


class BackupWriter:
    """Writes a backup file next to its final name, and gives it that name at the end. Use it in a `with` statement.

    Raises:
        OSError: from every method.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self._path = path
        self._part = path.with_name(f"{path.name}.part")
        self._header = header
        self._part.unlink(missing_ok=True)
        self._file = open(self._part, "xb", opener=_for_its_owner)  # noqa: SIM115 (closed by `close`)
        self._hash = hashlib.sha256()
        self._file.write(encode_header(header))
        #: bytes of the body so far
        self.written = 0

    def __enter__(self) -> BackupWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        """Add to the body."""
        self._file.write(data)
        self._hash.update(data)
        self.written += len(data)

    def finish(self) -> None:
        """Give the complete file its name, durably.

        Raises:
            BackupInvalid: the body is not what the header says.
        """
        if self.written != self._header.bytes or self._hash.hexdigest() != self._header.sha256:
            raise BackupInvalid("the node sent something other than what it announced; nothing was saved")
        self._file.flush()
        _sync(self._file.fileno())
        self._part.rename(self._path)
        directory = os.open(self._path.absolute().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def close(self) -> None:
        """Close the file, and remove it unless it is finished."""
        if not self._file.closed:
            # What could not be written cannot be flushed either.
            with suppress(OSError):
                self._file.close()
            with suppress(OSError):
                self._part.unlink(missing_ok=True)


def _for_its_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync(descriptor: int) -> None:
    if sys.platform == "darwin":  # fsync leaves the bytes in the cache of the drive there
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def check(path: Path) -> Header:
    """Read the whole file, and return its header.

    Raises:
        BackupInvalid: it is not a complete and intact backup.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        header = _read_header(path, file)
        for _ in _body(path, file, header):
            pass
    return header


def read(path: Path) -> tuple[Header, bytes]:
    """The header and the body of a file. Raises as `check`."""
    with path.open("rb") as file:
        header = _read_header(path, file)
        return header, b"".join(_body(path, file, header))


def _read_header(path: Path, file: BinaryIO) -> Header:
    prefix = file.read(_PREFIX.size)
    if prefix[: len(MAGIC)] != MAGIC[: len(prefix)] or not prefix:
        raise BackupInvalid(f"{path} is not a backup of a cluster")
    if len(prefix) < _PREFIX.size:
        raise BackupInvalid(f"{path} is cut short: it ends within its header")
    _, version, length = _PREFIX.unpack(prefix)
    if version > VERSION:
        raise BackupInvalid(f"{path} has format {version}, and this release reads formats up to {VERSION}: use a newer release")
    if version < 1 or length > HEADER_BYTES_MAX:
        raise BackupInvalid(f"{path} is damaged: its first bytes are wrong")
    rest = file.read(length + _DIGEST_BYTES)
    if len(rest) < length + _DIGEST_BYTES:
        raise BackupInvalid(f"{path} is cut short: it ends within its header")
    encoded, digest = rest[:length], rest[length:]
    if hashlib.sha256(prefix + encoded).digest() != digest:
        raise BackupInvalid(f"{path} is damaged: its header fails its checksum")
    try:
        return msgspec.json.decode(encoded, type=Header)
    except msgspec.MsgspecError as error:
        raise BackupInvalid(f"{path} was not written by this program: {error}") from None


def _body(path: Path, file: BinaryIO, header: Header) -> Iterator[bytes]:
    """The body in pieces. Raises BackupInvalid at its end at the latest."""
    size = os.fstat(file.fileno()).st_size - file.tell()
    if size < header.bytes:
        raise BackupInvalid(f"{path} is cut short: it has {size} of {header.bytes} bytes of the state")
    if size > header.bytes:
        raise BackupInvalid(f"{path} is damaged: {size - header.bytes} bytes follow its end")
    digest = hashlib.sha256()
    while piece := file.read(PIECE_BYTES):
        digest.update(piece)
        yield piece
    if digest.hexdigest() != header.sha256:
        raise BackupInvalid(f"{path} is damaged: its state fails its checksum")
