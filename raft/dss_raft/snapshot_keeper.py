"""Whole-state snapshots: the replica's state and what else belongs to it, so that the log need not grow for ever."""

from __future__ import annotations

import asyncio
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import msgspec

from dss_raft.core import RaftCore
from dss_raft.core.messages import InstallSnapshot, SnapshotMeta
from dss_raft.core.ready import SnapshotChunkWanted
from dss_raft.forked import IS_AVAILABLE as CAN_FORK
from dss_raft.forked import write_in_child
from dss_raft.replica import Replica
from dss_raft.store import LogStore

FORMAT = 1
#: A state that took more than this last time is encoded by a child process; a smaller one takes but a few milliseconds.
INLINE_BYTES_MAX = 256 * 1024


class SnapshotPart(Protocol):
    """State outside the replica that a lagging node must be given, too (the cache's memory at rest)."""

    name: str

    async def before_snapshot(self, index: int) -> None:
        """Make everything up to `index` durable: the log that could repeat it is about to go."""

    async def dump(self) -> bytes:
        """The part's state, at least as new as the index given to `before_snapshot`."""

    def before_restore(self) -> None:
        """The replicated state is about to be replaced: stop trusting what was derived from it."""

    async def load(self, data: bytes) -> None:
        """Replace the part's state; the replicated state has been replaced."""


class _File(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    replica: bytes
    parts: dict[str, bytes]


class SnapshotKeeper:
    """Takes and restores snapshots of one node.

    Args:
        directory: of the store, for the child's file.
        entries_max: a snapshot is due after so many applied entries, or
        bytes_max: after so many bytes of them.
        keep_entries: entries kept behind a snapshot for followers that are a little slow.
    """

    def __init__(
        self,
        replica: Replica,
        store: LogStore,
        directory: Path,
        executor: ThreadPoolExecutor,
        entries_max: int,
        bytes_max: int,
        keep_entries: int,
    ) -> None:
        self.parts: list[SnapshotPart] = []
        self.keep_entries = keep_entries
        self._replica = replica
        self._store = store
        self._child_file = directory / "state.child"
        self._state_bytes = 0
        self._executor = executor
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._taking = False

    def is_due(self, core: RaftCore) -> bool:
        """True when enough has been applied since the last snapshot."""
        if self._taking:
            return False
        since = self._replica.applied_index - core.snapshot.index
        return since >= self._entries_max or core.log.size(core.snapshot.index, self._replica.applied_index) >= self._bytes_max

    async def take(self, core: RaftCore) -> SnapshotMeta | None:
        """Write a snapshot of what is applied now; None when another one is being taken."""
        if self._taking:
            return None
        self._taking = True
        try:
            index = self._replica.applied_index
            meta = core.meta_at(index)
            replica_state = await self._replica_state()
            parts = {}
            for part in self.parts:
                await part.before_snapshot(index)
                parts[part.name] = await part.dump()
            loop = asyncio.get_running_loop()
            # The slow half runs beside the log's writes, which must not wait for it.
            staged = await loop.run_in_executor(None, self._stage, meta, replica_state, parts)
            return await loop.run_in_executor(self._executor, self._commit, staged)
        finally:
            self._taking = False

    async def _replica_state(self) -> bytes:
        if self._state_bytes <= INLINE_BYTES_MAX or not CAN_FORK:
            state = self._replica.snapshot()
        else:
            await write_in_child(self._replica.snapshot, self._child_file)
            loop = asyncio.get_running_loop()
            state = await loop.run_in_executor(None, self._child_file.read_bytes)
            self._child_file.unlink()
        self._state_bytes = len(state)
        return state

    async def restore(self, meta: SnapshotMeta) -> None:
        """Replace the whole state by a stored snapshot."""
        loop = asyncio.get_running_loop()
        data = await loop.run_in_executor(self._executor, self._store.read_snapshot, meta)
        file = msgspec.msgpack.decode(data, type=_File)
        for part in self.parts:
            part.before_restore()
        self._replica.restore(file.replica)
        self._state_bytes = len(file.replica)
        for part in self.parts:
            if part.name in file.parts:
                await part.load(file.parts[part.name])

    @staticmethod
    def chunk(sender: str, wanted: SnapshotChunkWanted, data: bytes, done: bool) -> InstallSnapshot:
        """The message that carries one chunk."""
        return InstallSnapshot(
            sender=sender,
            to=wanted.to,
            term=wanted.term,
            meta=wanted.meta,
            offset=wanted.offset,
            data=data,
            crc=zlib.crc32(data),
            done=done,
        )

    def _stage(self, meta: SnapshotMeta, replica_state: bytes, parts: dict[str, bytes]) -> SnapshotMeta:
        return self._store.stage_snapshot(meta, msgspec.msgpack.encode(_File(FORMAT, replica_state, parts)))

    def _commit(self, staged: SnapshotMeta) -> SnapshotMeta | None:
        if staged.index <= self._store.snapshot_index:
            return None  # the leader's newer snapshot was installed while this one was being encoded
        return self._store.commit_snapshot(staged, self.keep_entries)
