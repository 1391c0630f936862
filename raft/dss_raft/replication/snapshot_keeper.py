"""Snapshots of the whole state: the replica and further parts. They bound the length of the log."""

from __future__ import annotations

import asyncio
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import monotonic, perf_counter
from typing import Protocol

import msgspec
import structlog

from dss_api import heap
from dss_api.supervised import FAILURES
from dss_raft import metrics
from dss_raft.core import InvariantViolation, RaftCore
from dss_raft.core.messages import InstallSnapshot, SnapshotMeta
from dss_raft.core.ready import SnapshotChunkWanted
from dss_raft.disk.files import StoreDamaged, StoreFailed
from dss_raft.disk.forked import IS_AVAILABLE as CAN_FORK
from dss_raft.disk.forked import write_in_child
from dss_raft.disk.store import LogStore
from dss_raft.disk.store_thread import StoreThread
from dss_raft.formats import Format
from dss_raft.replication.machine import Restoring
from dss_raft.replication.replica import Replica

log = structlog.get_logger("raft")

#: A snapshot file consists of this, the version (a digit), the length of the header (4 bytes), the header, the replica's state and the
#: parts.
MAGIC = b"DSSsnap"
FORMAT = Format("this snapshot", 2, oldest=2)
PIECE_BYTES = 1024 * 1024
#: State up to this size is encoded in the process, in a few milliseconds; larger state is encoded by a child process.
INLINE_BYTES_MAX = 256 * 1024
#: A restore occupies the event loop for about this long at a time, like applying.
RESTORE_BUDGET_S = 0.005


#: Pauses after an attempt that failed.
RETRY_S_MIN, RETRY_S_MAX = 1.0, 60.0


class SnapshotPart(Protocol):
    """State outside the replica that a lagging node must receive, too (the backing store of the cache)."""

    name: str

    async def before_snapshot(self, index: int) -> None:
        """Make everything up to `index` durable, because the log that could repeat it is about to be dropped."""

    async def dump(self) -> Iterable[bytes]:
        """The state, at least as new as the index given to `before_snapshot`; in pieces, because a large copy blocks the loop.

        They are read more than once, in other threads.
        """

    def before_restore(self) -> None:
        """The replicated state is about to be replaced: stop relying on what was derived from it."""

    async def load(self, data: memoryview) -> None:
        """Replace the state of the part by the joined pieces. The replicated state has been replaced already."""


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    """The sizes in bytes of what follows; the parts are in this order."""

    replica: int
    parts: dict[str, int]


class SnapshotKeeper:
    """Takes and restores snapshots of one node.

    Args:
        directory: the directory of the store, for the file of the child process.
        entries_max: a snapshot is due after this many applied entries,
        bytes_max: or after this many bytes of them.
        keep_entries: entries that are kept before a snapshot, for followers that are slightly behind. Fewer are kept if they are
            longer than half of `bytes_max`: they are in memory.
    """

    def __init__(
        self,
        replica: Replica,
        store: LogStore,
        directory: Path,
        store_thread: StoreThread,
        entries_max: int,
        bytes_max: int,
        keep_entries: int,
    ) -> None:
        self.parts: list[SnapshotPart] = []
        self._keep_entries_max = keep_entries
        #: entries that are kept before the snapshot that was taken last
        self.keep_entries = 0
        self._replica = replica
        self._store = store
        self._child_file = directory / "state.child"
        self._state_bytes = 0
        #: after a failed attempt: the pause before the next one, and the earliest time for it
        self._pause_s = 0.0
        self._not_before = 0.0
        self._store_thread = store_thread
        self._entries_max = entries_max
        self.bytes_max = bytes_max
        self._taking = False

    @property
    def is_taking(self) -> bool:
        """True while a snapshot is being taken."""
        return self._taking

    def is_due(self, core: RaftCore) -> bool:
        """True when enough has been applied since the last snapshot."""
        if self._taking or (self._not_before and monotonic() < self._not_before):
            return False
        applied, last = self._replica.applied_index, core.snapshot.index
        return applied - last >= self._entries_max or core.log.size(last, applied) >= self.bytes_max

    def is_small(self, core: RaftCore) -> bool:
        """True if the applied state is small enough to be encoded in the process. It cannot have grown by more than the log since then."""
        log_bytes = core.log.size(core.snapshot.index, self._replica.applied_index)
        return self._state_bytes + log_bytes <= INLINE_BYTES_MAX or not CAN_FORK

    async def take(self, core: RaftCore) -> SnapshotMeta | None:
        """Write a snapshot of the applied state. None when another one is being taken, or when this one failed.

        Raises:
            StoreFailed, InvariantViolation: the node must stop. Every other failure is logged and counted, and a later call tries
                again: the log still holds everything, it only becomes longer than intended.
        """
        if self._taking:
            return None
        self._taking = True
        began = perf_counter()
        try:
            index = self._replica.applied_index
            meta = core.meta_at(index)
            self.keep_entries = self._entries_to_keep(core, index)
            replica_state = await self._replica_state(self.is_small(core))
            parts: dict[str, Iterable[bytes]] = {}
            for part in self.parts:
                await part.before_snapshot(index)
                parts[part.name] = await part.dump()
            # The slow part runs concurrently with writes of the log, which must not wait for it.
            staged = await asyncio.get_running_loop().run_in_executor(None, self._stage, meta, replica_state, parts)
            snapshot = await self._store_thread.run(self._commit, staged)
            self._pause_s = self._not_before = 0.0
            metrics.SNAPSHOT_SECONDS.observe(perf_counter() - began)
            return snapshot
        except (StoreFailed, InvariantViolation):
            raise
        except Exception as error:
            self._pause_s = min(max(RETRY_S_MIN, 2 * self._pause_s), RETRY_S_MAX)
            self._not_before = monotonic() + self._pause_s
            FAILURES.labels("snapshot").inc()
            log.warning("raft.no_snapshot", reason=f"{type(error).__name__}: {error}", next_attempt_after_s=self._pause_s)
            return None
        finally:
            self._taking = False
            # The parts are large, and are freed when this returns.
            asyncio.get_running_loop().call_soon(heap.trim)

    def _entries_to_keep(self, core: RaftCore, index: int) -> int:
        counts = range(1, min(self._keep_entries_max, index) + 1)
        return bisect_right(counts, self.bytes_max // 2, key=lambda count: core.log.size(index - count, index))

    async def _replica_state(self, is_small: bool) -> bytes | Path:
        """The encoded state, or the file that contains it."""
        if is_small:
            state = self._replica.snapshot()
            self._state_bytes = len(state)
            return state
        await write_in_child(self._replica.snapshot, self._child_file)
        self._state_bytes = self._child_file.stat().st_size
        return self._child_file

    async def restore(self, meta: SnapshotMeta) -> None:
        """Replace the whole state by a stored snapshot. The event loop keeps running, so that heartbeats are answered.

        Raises:
            WrongFormat, UnsupportedVersion: another release wrote it.
            StoreDamaged: it is not a snapshot.
        """
        replica_state, parts = await self._read(meta)
        install = await _in_turns(self._replica.restoring(replica_state))
        for part in self.parts:
            part.before_restore()
        install()
        self._state_bytes = len(replica_state)
        for part in self.parts:
            if part.name in parts:
                await part.load(parts[part.name])

    async def _read(self, meta: SnapshotMeta) -> tuple[memoryview, dict[str, memoryview]]:
        """The replica's state and the parts. At index 0 there is no file: the log begins there."""
        if meta.index == 0:
            return memoryview(self._replica.first_state), {part.name: memoryview(b"") for part in self.parts}
        return split(await self._store_thread.run(self._store.read_snapshot, meta))

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

    def _stage(self, meta: SnapshotMeta, replica_state: bytes | Path, parts: dict[str, Iterable[bytes]]) -> SnapshotMeta:
        try:
            return self._store.stage_snapshot(meta, pieces(replica_state, parts))
        finally:
            # Not in the loop: freeing a large file takes a while.
            self._child_file.unlink(missing_ok=True)

    def _commit(self, staged: SnapshotMeta) -> SnapshotMeta | None:
        if staged.index <= self._store.snapshot_index:
            return None  # the leader's newer snapshot was installed while this one was being encoded
        return self._store.commit_snapshot(staged, self.keep_entries)


async def _in_turns(restoring: Restoring) -> Callable[[], None]:
    """Run all slices, yielding to the event loop after each `RESTORE_BUDGET_S`. Returns what installs the result."""
    began = perf_counter()
    while True:
        try:
            next(restoring)
        except StopIteration as end:
            install: Callable[[], None] = end.value
            return install
        if perf_counter() - began > RESTORE_BUDGET_S:
            await asyncio.sleep(0)
            began = perf_counter()


def pieces(replica_state: bytes | Path, parts: dict[str, Iterable[bytes]]) -> Iterator[bytes]:
    """The bytes of a snapshot file, in small pieces: copying a large one would hold the interpreter's lock."""
    size = replica_state.stat().st_size if isinstance(replica_state, Path) else len(replica_state)
    header = msgspec.msgpack.encode(_Header(size, {name: sum(map(len, pieces)) for name, pieces in parts.items()}))
    yield MAGIC + b"%d" % FORMAT.version + len(header).to_bytes(4, "big") + header
    if isinstance(replica_state, Path):
        with replica_state.open("rb", buffering=0) as file:
            while piece := file.read(PIECE_BYTES):
                yield piece
    else:
        yield replica_state
    for pieces in parts.values():
        yield from pieces


def split(data: bytes) -> tuple[memoryview, dict[str, memoryview]]:
    """The replica's state and the parts in a snapshot file, without copying them.

    Raises:
        WrongFormat: another release wrote it.
        StoreDamaged: it is not a snapshot.
    """
    view = memoryview(data)
    start = len(MAGIC) + 5
    if len(view) < start or view[: len(MAGIC)] != MAGIC or not 0 <= view[len(MAGIC)] - ord("0") <= 9:
        raise StoreDamaged("it is not a snapshot of this program")
    FORMAT.require(view[len(MAGIC)] - ord("0"))
    end = start + int.from_bytes(view[start - 4 : start], "big")
    header = msgspec.msgpack.decode(view[start:end], type=_Header)
    sizes = [header.replica, *header.parts.values()]
    if end + sum(sizes) != len(view):
        raise StoreDamaged(f"the snapshot has {len(view)} bytes instead of {end + sum(sizes)}")
    slices = []
    for size in sizes:
        slices.append(view[end : end + size])
        end += size
    return slices[0], dict(zip(header.parts, slices[1:], strict=True))
