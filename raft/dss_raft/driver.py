"""Runs the Raft core: the only place that carries out its `Ready`.

Everything happens in turns of the event loop. A turn proposes what has been gathered, takes the core's `Ready`, sends its
messages, gives at most one write to the store's thread, and applies what is committed. While a write is in progress, new
proposals are gathered for the next one, so there is one fsync per batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from time import perf_counter
from typing import Any, Protocol

import structlog

from dss_api.supervised import Tasks, report_failure
from dss_raft import metrics
from dss_raft.applying import Applying, ApplyListener
from dss_raft.core import InvariantViolation, RaftCore, Role
from dss_raft.core.messages import AnyMessage, AppendReply, InstallSnapshot, TimeoutNow, VoteReply
from dss_raft.core.ready import HardState, Persist, ReadState, Ready, SnapshotChunkWanted
from dss_raft.disk.store import LogStore, SnapshotFailed, SnapshotGone, StoreFailed
from dss_raft.disk.store_thread import StoreThread
from dss_raft.net.links import PeerLinks
from dss_raft.net.wire import RaftFrame, Reason
from dss_raft.replication.replica import Replica
from dss_raft.replication.snapshot_keeper import SnapshotKeeper

log = structlog.get_logger("raft")

SNAPSHOT_CHUNK_BYTES = 512 * 1024


class DriverListener(ApplyListener, Protocol):
    """What the driver reports to its node."""

    def before_ready(self) -> None:
        """A turn begins: propose or forward what has been gathered."""

    def read_settled(self, state: ReadState) -> None:
        """A ReadIndex round has been answered."""

    def role_changed(self) -> None:
        """The term, the role or the leader has changed."""

    def configuration_changed(self) -> None:
        """Another configuration is in force."""

    def vote_answered(self, candidate: str, term: int, granted: bool) -> None:
        """This node has answered another one that asked for its vote."""

    def peers_outdated(self, peers: list[str]) -> None:
        """The stores of these peers have lost entries that they had acknowledged to this leader."""

    def failed(self, error: BaseException) -> None:
        """The node must stop, because continuing could do harm."""


class Driver:
    """Runs the turns of one node.

    Args:
        tick_s: length of a core tick in seconds.
    """

    def __init__(
        self,
        core: RaftCore,
        store: LogStore,
        links: PeerLinks,
        replica: Replica,
        snapshots: SnapshotKeeper,
        store_thread: StoreThread,
        listener: DriverListener,
        tick_s: float,
    ) -> None:
        self.core = core
        self.store = store
        self.links = links
        self.replica = replica
        self.snapshots = snapshots
        self._store_thread = store_thread
        self._listener = listener
        self._tick_s = tick_s
        self._loop = asyncio.get_running_loop()
        self._turn_is_due = False
        self._tick_timer: asyncio.TimerHandle | None = None
        self._tick_due_s = 0.0
        self._loop_delay = metrics.LoopDelay()
        self._write: asyncio.Future[None] | None = None
        self._stopped = False
        self._role_seen = (-1, -1, "")
        self._configuration = core.configuration
        self._tasks = Tasks()
        self.applying = Applying(core, replica, snapshots, listener, self._spawn, self.wake)
        self.on_tick: list[Callable[[], None]] = []

    @property
    def is_writing(self) -> bool:
        """True while a write is in progress: what is proposed now is written by the next one."""
        return self._write is not None

    def start(self) -> None:
        self._set_tick_timer()
        self.wake()

    async def stop(self) -> None:
        """Stop taking turns, and wait for the write in progress."""
        self._stopped = True
        if self._tick_timer is not None:
            self._tick_timer.cancel()
        await self._tasks.stop()
        if self._write is not None:
            await asyncio.wait([self._write])

    def wake(self) -> None:
        """Schedule a turn. Everything that comes up until then goes into the same turn."""
        if not self._turn_is_due and not self._stopped:
            self._turn_is_due = True
            self._loop.call_soon(self._turn)

    def receive(self, peer: str, messages: list[AnyMessage], store: str) -> None:
        """Handle messages from the link to `peer`, whose store is `store`. Messages with another sender are refused."""
        try:
            for message in messages:
                if message.sender == peer:
                    self.core.step(message, store)
                else:
                    metrics.peer_refused(Reason.WRONG_NODE)
        except Exception as error:
            self._fail(error)
        self.wake()

    def _set_tick_timer(self) -> None:
        self._tick_due_s = self._loop.time() + self._tick_s
        self._tick_timer = self._loop.call_at(self._tick_due_s, self._tick)

    def _tick(self) -> None:
        if self._stopped:
            return
        self._loop_delay.observe(max(0.0, self._loop.time() - self._tick_due_s))
        self._set_tick_timer()
        try:
            self.core.tick()
            for callback in self.on_tick:
                callback()
        except Exception as error:
            self._fail(error)
        if not self._turn_is_due:
            # Now, and not in the next iteration of the loop, which an idle node would run for this alone.
            self._turn()

    def _turn(self) -> None:
        self._turn_is_due = False
        if self._stopped:
            return
        try:
            self._listener.before_ready()
            ready = self.core.take_ready()
            while ready is not None:
                self._carry_out(ready)
                ready = self.core.take_ready()
            self.applying.turn()
            if self.core.found_outdated:
                found, self.core.found_outdated = self.core.found_outdated, []
                self._listener.peers_outdated(found)
            self._report_changes()
        except Exception as error:
            self._fail(error)

    def _carry_out(self, ready: Ready) -> None:
        if ready.messages:
            self._send(ready.messages)
        if ready.persist is not None:
            self._begin_write(ready.persist)
        for state in ready.read_states:
            self._listener.read_settled(state)
        for wanted in ready.chunks_wanted:
            self._spawn(self._send_chunk(wanted))
        for chunk in ready.chunks_received:
            self._spawn(self._store_chunk(chunk))
        if ready.restore is not None:
            self.applying.replace(ready.restore)
        self.applying.add(ready.committed)

    def _send(self, messages: list[AnyMessage]) -> None:
        by_peer: dict[str, list[AnyMessage]] = {}
        for message in messages:
            if isinstance(message, AppendReply):
                self._require_durable(message.match <= self.store.last_index, message)
                metrics.append_answered(message.ok)
            elif isinstance(message, VoteReply):
                hard = self.store.hard_state
                promised = HardState(message.term, message.to)
                self._require_durable(not message.granted or hard.term > message.term or hard == promised, message)
                metrics.vote_answered(message.granted)
                self._listener.vote_answered(message.to, message.term, message.granted)
            by_peer.setdefault(message.to, []).append(message)
        for peer, its_messages in by_peer.items():
            self.links.send(peer, RaftFrame(its_messages))

    @staticmethod
    def _require_durable(is_durable: bool, promise: AnyMessage) -> None:
        """Check invariant 9 again before sending, against the store: the core's own account could be wrong."""
        if not is_durable:
            raise InvariantViolation(f"{promise} would be sent before what it says is durable")

    def _begin_write(self, persist: Persist) -> None:
        began = perf_counter()
        self._write = self._store_thread.run(self.store.write, persist)

        def written(done: asyncio.Future[None]) -> None:
            self._write = None
            error = done.exception()
            if error is not None:
                self._fail(error)
                return
            metrics.FSYNC_SECONDS.observe(perf_counter() - began)
            try:
                self.core.persisted(persist.number)
            except Exception as violation:
                self._fail(violation)
            if not self._turn_is_due:
                self._turn()

        self._write.add_done_callback(written)

    def _report_changes(self) -> None:
        core = self.core
        role = (core.term, int(core.role), core.leader_id)
        if role != self._role_seen:
            self._role_seen = role
            metrics.role_changed(int(core.role))
            log.info("raft.role", term=core.term, role=core.role.name, leader=core.leader_id, commit=core.commit_index)
            self._listener.role_changed()
            self.wake()
        if core.configuration is not self._configuration:
            self._configuration = core.configuration
            log.info("raft.members", members=[f"{m.id}{' (learner)' if m.learner else ''}" for m in core.configuration.members])
            self._listener.configuration_changed()

    async def _send_chunk(self, wanted: SnapshotChunkWanted) -> None:
        try:
            data, done = await self._store_thread.run(self.store.read_chunk, wanted.meta, wanted.offset, SNAPSHOT_CHUNK_BYTES)
        except SnapshotGone:
            return  # a newer snapshot has replaced it; the core requests that one when this transfer makes no progress
        except SnapshotFailed as error:
            report_failure("snapshot", error)
            return  # the core requests the chunk again
        chunk = self.snapshots.chunk(self.core.node_id, wanted, data, done)
        self.links.send(wanted.to, RaftFrame([chunk]))

    async def _store_chunk(self, chunk: InstallSnapshot) -> None:
        try:
            next_offset, complete = await self._store_thread.run(
                self.store.write_chunk, chunk.meta, chunk.offset, chunk.data, chunk.crc
            )
        except SnapshotFailed as error:
            report_failure("snapshot", error)
            return  # the leader sends a chunk again, and learns that the transfer begins again
        self.core.chunk_stored(chunk.meta, next_offset, complete)
        self.wake()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._tasks.spawn("raft", work, self._fail)

    def _fail(self, error: BaseException) -> None:
        if not self._stopped:
            self._stopped = True
            if isinstance(error, StoreFailed):
                self._abdicate()
            self._listener.failed(error)

    def _abdicate(self) -> None:
        """The disk fails, the core does not: the others need not wait for an election timeout."""
        try:
            was_leader = self.core.role is Role.LEADER
            self.core.abdicate()
            messages, self.core.messages = self.core.messages, []
            self._send(messages)
            if was_leader:
                log.warning("raft.abdicated", to=[message.to for message in messages if isinstance(message, TimeoutNow)])
        except InvariantViolation as violation:  # the node stops in any case
            log.error("raft.not_handed_over", error=str(violation))
