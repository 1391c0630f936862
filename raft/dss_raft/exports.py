"""Snapshots of this node that callers are reading, for backups.

A caller begins an export and then reads it in chunks, at its own pace. The node keeps the file open in the meantime, so a newer
snapshot may replace it. An export that is not read for a while ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from dataclasses import dataclass
from typing import BinaryIO

from dss_api.errors import Refused
from dss_raft.applying import Applying
from dss_raft.core.messages import Member, SnapshotMeta
from dss_raft.disk.store import LogStore, SnapshotFailed
from dss_raft.disk.store_thread import StoreThread
from dss_raft.replication.clocks import wall_clock_ms

CHUNK_BYTES = 512 * 1024
EXPORTS_MAX = 2
#: A snapshot of the whole state is written and hashed for a caller at most once in this time.
SNAPSHOT_INTERVAL_S = 5.0
#: An export ends when it is not read for this long.
IDLE_S = 60.0
_PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Offered:
    """A snapshot that a caller may read: what it contains."""

    #: the name of the cluster
    cluster: str
    node: str
    #: everything up to this entry of the log is in the state, and its term
    index: int
    term: int
    #: the configuration in force at `index`
    members: tuple[Member, ...]
    #: wall clock of the node, in ms since 1970
    saved_at_ms: int
    bytes: int
    sha256: str


class _Export:
    __slots__ = ("busy", "file", "size", "used_at_s")

    def __init__(self, file: BinaryIO, size: int, now_s: float) -> None:
        self.file = file
        self.size = size
        self.used_at_s = now_s
        #: how many threads read the file
        self.busy = 0


class Exports:
    """The exports of one node.

    Args:
        store_thread: the thread of `store`.
    """

    def __init__(self, node_id: str, cluster_id: str, applying: Applying, store: LogStore, store_thread: StoreThread) -> None:
        self._node_id = node_id
        self._cluster_id = cluster_id
        self._applying = applying
        self._store = store
        self._store_thread = store_thread
        self._loop = asyncio.get_running_loop()
        self._exports: dict[str, _Export] = {}
        self._is_beginning = False
        self._began_at_s = float("-inf")

    def require_room(self) -> None:
        """Raises:
        Refused: `over_limit`.
        """
        if len(self._exports) + self._is_beginning >= EXPORTS_MAX:
            detail = (
                f"{EXPORTS_MAX} snapshots are already being saved from this node; one that is not read ends after {IDLE_S:g} s"
            )
            raise Refused("over_limit", detail, limit="exports_max", maximum=EXPORTS_MAX)
        if self._is_beginning or self._loop.time() < self._began_at_s + SNAPSHOT_INTERVAL_S:
            detail = f"a node takes one snapshot at a time for callers, and at most one every {SNAPSHOT_INTERVAL_S:g} s; try again later"
            raise Refused("over_limit", detail, limit="snapshot_interval_s")

    async def begin(self, index: int) -> tuple[str, Offered]:
        """Offer a snapshot of the state at `index`, which is applied here, or later. Returns the export's id and what it contains.

        Raises:
            Refused: `over_limit`; `not_ready` when no snapshot can be taken now.
        """
        self.require_room()
        self._is_beginning = True
        self._began_at_s = self._loop.time()
        try:
            meta = await self._applying.snapshot_from(index)
            if meta is None or meta.index == 0:
                raise Refused("not_ready", "this node cannot take a snapshot now; its log says why", node=self._node_id)
            file = await self._open(meta)
            try:
                digest = await self._loop.run_in_executor(None, _digest, file)
            except BaseException:
                file.close()
                raise
        finally:
            self._is_beginning = False
        export_id = secrets.token_hex(16)
        self._exports[export_id] = _Export(file, meta.size, self._loop.time())
        return export_id, Offered(
            cluster=self._cluster_id,
            node=self._node_id,
            index=meta.index,
            term=meta.term,
            members=tuple(meta.configuration.members),
            saved_at_ms=wall_clock_ms(),
            bytes=meta.size,
            sha256=digest,
        )

    async def read(self, export_id: str, offset: int) -> bytes:
        """Up to `CHUNK_BYTES` from `offset`; empty at the end, which also ends the export.

        Raises:
            Refused: `not_found`.
        """
        export = self._exports.get(export_id)
        if export is None:
            raise Refused(
                "not_found",
                "this node no longer has that snapshot open: it was restarted, or the snapshot was not read for a while",
            )
        if offset >= export.size:
            self._end(export_id, export)
            return b""
        export.busy += 1
        try:
            data = await self._loop.run_in_executor(None, os.pread, export.file.fileno(), CHUNK_BYTES, offset)
        except OSError as error:
            raise Refused("not_ready", f"the snapshot cannot be read: {error.strerror}", node=self._node_id) from None
        finally:
            export.busy -= 1
            export.used_at_s = self._loop.time()
        return data

    def close_idle(self) -> None:
        """End the exports that are not read."""
        if self._exports:
            oldest_s = self._loop.time() - IDLE_S
            for export_id, export in list(self._exports.items()):
                if export.used_at_s < oldest_s:
                    self._end(export_id, export)

    def close(self) -> None:
        """End all exports; the node stops."""
        for export_id, export in list(self._exports.items()):
            self._end(export_id, export)

    async def _open(self, meta: SnapshotMeta) -> BinaryIO:
        try:
            return await self._store_thread.run(self._store.open_snapshot, meta)
        except SnapshotFailed as error:
            raise Refused("not_ready", str(error), node=self._node_id) from None

    def _end(self, export_id: str, export: _Export) -> None:
        if not export.busy and self._exports.pop(export_id, None) is not None:
            export.file.close()


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    offset = 0
    while piece := os.pread(file.fileno(), _PIECE_BYTES, offset):
        digest.update(piece)
        offset += len(piece)
    return digest.hexdigest()
