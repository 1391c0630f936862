"""Applies what is committed, and replaces the state by snapshots.

When applying an entry raises, this node stops applying, and nothing else: Raft goes on, with votes, acknowledgements and
heartbeats. The state may be half-changed, so nothing may be read from it. Two things end that: a restart, if the fault was this
node's own (no memory, a bug of another version), or a committed `Skip` of the entry. After a `Skip` the state is restored from
the last snapshot, and the log is applied again without the entry.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from time import perf_counter
from typing import Any, Protocol

import msgspec
import structlog

from dss_api.errors import Refused
from dss_api.supervised import report_failure
from dss_raft import metrics
from dss_raft.core import RaftCore
from dss_raft.core.messages import Entry, SnapshotMeta
from dss_raft.disk.store import SnapshotFailed
from dss_raft.replication.replica import AppliedBeforeSkip, ApplyFailed, Replica
from dss_raft.replication.snapshot_keeper import SnapshotKeeper

log = structlog.get_logger("raft")

#: One turn applies entries for about this long at most, so that heartbeats and callers are served during a long replay.
APPLY_BUDGET_S = 0.005
#: While nothing is applied, no snapshot is taken. The log is reported as too long from this many times the size at which one is due.
LOG_ALARM_FACTOR = 2
#: Pauses between attempts to restore a snapshot.
RESTORE_RETRY_S_MIN, RESTORE_RETRY_S_MAX = 0.2, 10.0


class ApplyStop(msgspec.Struct, frozen=True):
    """Why this node has stopped applying."""

    #: the entry that could not be applied
    index: int
    error: str


class ApplyListener(Protocol):
    """Reports to the node."""

    def entries_applied(self) -> None:
        """Entries were applied: take the replica's outcomes and events."""

    def hash_state(self) -> None:
        """The last entry that was applied asks for a hash of the state."""

    def state_replaced(self) -> None:
        """A snapshot has replaced the replicated state."""

    def usable_changed(self) -> None:
        """`Applying.unusable_reason` has changed."""


class Applying:
    """The state machines of one node, fed with committed entries.

    Args:
        spawn: runs a coroutine as a task; its failure stops the node.
        wake: schedules the next turn.
    """

    def __init__(
        self,
        core: RaftCore,
        replica: Replica,
        snapshots: SnapshotKeeper,
        listener: ApplyListener,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        wake: Callable[[], None],
    ) -> None:
        self.stopped: ApplyStop | None = None
        self._core = core
        self._replica = replica
        self._snapshots = snapshots
        self._listener = listener
        self._spawn = spawn
        self._wake = wake
        self._to_apply: deque[Entry] = deque()
        #: the snapshot that must replace the state before anything is applied
        self._restoring: SnapshotMeta | None = None
        self._restore_lock = asyncio.Lock()
        self._taking: asyncio.Task[None] | None = None
        self._rebuilding: asyncio.Task[None] | None = None
        #: until this entry is applied again, the state is older than what callers have seen
        self._usable_from = 0
        self._stops_logged: set[int] = set()
        #: the length of the log, in bytes, that is reported next; 0: the first one
        self._log_alarm_bytes = 0

    @property
    def unusable_reason(self) -> str:
        """Why nothing may be read from the state now; "" if it may."""
        if self.stopped is not None:
            return f"this node cannot apply entry {self.stopped.index} of the log: {self.stopped.error}"
        if self._replica.applied_index < self._usable_from:
            return f"this node builds its state again, up to entry {self._usable_from}"
        return ""

    def add(self, committed: list[Entry]) -> None:
        """Apply these after what was added before."""
        self._to_apply.extend(committed)
        if self.stopped is not None:
            self._look_for_skip(committed)
            self._look_at_log()

    def replace(self, meta: SnapshotMeta) -> None:
        """Replace the state by a snapshot, in place of all that was added before."""
        self._to_apply.clear()
        self._restoring = meta
        self._spawn(self._restore(meta))

    def turn(self) -> None:
        """Apply for a while."""
        if self._restoring is not None or self.stopped is not None or not self._to_apply:
            return
        began = perf_counter()
        replica, to_apply = self._replica, self._to_apply
        failure: ApplyFailed | None = None
        try:
            while to_apply:
                replica.apply(to_apply.popleft())
                if replica.must_hash:
                    replica.must_hash = False
                    self._listener.hash_state()
                if perf_counter() - began > APPLY_BUDGET_S:
                    break
        except ApplyFailed as error:
            failure = error
        self._core.applied(replica.applied_index)
        self._listener.entries_applied()
        metrics.APPLY_SECONDS.observe(perf_counter() - began)
        if failure is not None:
            self._failed(failure)
        elif to_apply:
            self._wake()
        elif self._snapshots.is_due(self._core):
            self._taking = self._spawn(self._take_snapshot())
        if self._usable_from and replica.applied_index >= self._usable_from:
            self._usable_from = 0
            self._listener.usable_changed()

    # ------------------------------------------------------- when applying fails

    def _failed(self, failure: ApplyFailed) -> None:
        self._usable_from = max(self._usable_from, failure.index)
        if isinstance(failure.cause, AppliedBeforeSkip):
            log.warning("raft.rebuild", entry=failure.cause.entry, reason=str(failure.cause))
            self._stop(failure.index, str(failure.cause))
            self._rebuild_without(failure.cause.entry)
            return
        if failure.index not in self._stops_logged:
            self._stops_logged.add(failure.index)
            log.critical("raft.apply_stopped", index=failure.index, error=str(failure), exc_info=failure.cause)
        self._stop(failure.index, f"{type(failure.cause).__name__}: {failure.cause}")
        self._look_for_skip(self._to_apply)

    def _stop(self, index: int, error: str) -> None:
        self.stopped = ApplyStop(index, error)
        metrics.APPLY_STOPPED.set(1)
        self._listener.usable_changed()

    def _look_at_log(self) -> None:
        """Report a log that only grows, each time it has become twice as long."""
        assert self.stopped is not None
        size = self._core.log.size(self._core.snapshot.index, self._core.last_index)
        if size < (self._log_alarm_bytes or LOG_ALARM_FACTOR * self._snapshots.bytes_max):
            return
        self._log_alarm_bytes = 2 * size
        advice = "mend the cause, or stop this node: after a time the leader replaces its log and its state by a snapshot"
        log.critical("raft.log_grows", bytes=size, apply_stopped=self.stopped.index, advice=advice)

    def _go_on(self) -> None:
        self._log_alarm_bytes = 0
        self.stopped = None
        metrics.APPLY_STOPPED.set(0)
        self._listener.usable_changed()

    def _look_for_skip(self, committed: deque[Entry] | list[Entry]) -> None:
        assert self.stopped is not None
        if any(self.stopped.index in self._replica.skips(entry) for entry in committed):
            self._rebuild_without(self.stopped.index)

    def _rebuild_without(self, entry: int) -> None:
        if self._rebuilding is None or self._rebuilding.done():
            self._rebuilding = self._spawn(self._rebuild(entry))

    async def _rebuild(self, entry: int) -> None:
        if self._taking is not None and not self._taking.done():
            await asyncio.wait([self._taking])
        if self._restoring is not None or self.stopped is None:
            return  # the leader's snapshot replaces the state
        meta = self._core.snapshot
        if meta.index >= entry:
            node = self._core.node_id
            advice = f"stop this node, start it with an empty data directory, and run `manage.py member replace {node}`"
            self._stop(self.stopped.index, f"entry {entry} was skipped, but the snapshot of this node contains it; {advice}")
            log.critical("raft.cannot_skip", entry=entry, snapshot=meta.index, advice=advice)
            return
        log.warning("raft.rebuilding", without=entry, from_index=meta.index)
        self._replica.skip(entry)
        self._to_apply = deque(self._core.rewind(meta.index))
        self._restoring = meta
        self._go_on()
        await self._restore(meta)

    # ------------------------------------------------------------------ snapshots

    async def _take_snapshot(self) -> None:
        meta = await self._snapshots.take(self._core)
        if meta is not None:
            self._core.compact(meta, self._snapshots.keep_entries)
            log.info("raft.snapshot", index=meta.index, bytes=meta.size)
            self._wake()

    async def snapshot_from(self, index: int) -> SnapshotMeta | None:
        """A durable snapshot at `index` or later, which has been applied here. None when it cannot be taken now."""
        while self._core.snapshot.index < index:
            if self.stopped is not None or self._restoring is not None:
                return None
            taking = self._taking
            is_new = taking is None or taking.done()
            if taking is None or taking.done():
                taking = self._taking = self._spawn(self._take_snapshot())
            # The task is the driver's: a caller that goes away must not interrupt it.
            await asyncio.wait([taking])
            if is_new and self._core.snapshot.index < index:
                return None
        return self._core.snapshot

    async def _restore(self, meta: SnapshotMeta) -> None:
        # One at a time: an older snapshot must not overwrite the state of a newer one.
        async with self._restore_lock:
            pause_s = RESTORE_RETRY_S_MIN
            while self._restoring is meta:
                try:
                    await self._snapshots.restore(meta)
                    break
                except (SnapshotFailed, Refused, OSError) as error:
                    # Nothing is applied until this or a newer snapshot has been restored. Raft goes on meanwhile.
                    report_failure("snapshot", error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RESTORE_RETRY_S_MAX)
        if self._restoring is not meta:
            return  # a newer snapshot has come up in the meantime
        self._restoring = None
        self._core.applied(self._replica.applied_index)
        log.info("raft.restored", index=meta.index, bytes=meta.size)
        self._listener.state_replaced()
        if self.stopped is not None:
            self._go_on()
        self._wake()
