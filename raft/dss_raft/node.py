"""A node: one Raft member with its state machines, as the doors and the subsystems see it.

The objects live in the event loop and are touched from its thread only.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from dss_api.errors import Refused
from dss_api.result import Result
from dss_raft import members
from dss_raft.core import CoreConfig, RaftCore, Role
from dss_raft.core.ready import ReadState
from dss_raft.disk.store import LogStore
from dss_raft.driver import Driver
from dss_raft.net.control import CHANNEL, Control
from dss_raft.net.links import PeerLinks
from dss_raft.net.wire import AnyFrame, AppFrame, ForwardFrame, RaftFrame
from dss_raft.removal import NodeRemoved, RemovalWatch
from dss_raft.replication.clocks import AppliedClock
from dss_raft.replication.commands import Command, OpenSession
from dss_raft.replication.machine import Event, StateMachine
from dss_raft.replication.pending_commands import PendingCommands
from dss_raft.replication.proposals import Proposals
from dss_raft.replication.reads import ReadRounds
from dss_raft.replication.replica import Replica
from dss_raft.replication.snapshot_keeper import SnapshotKeeper, SnapshotPart

if TYPE_CHECKING:
    from dss_raft.config import RaftConfig

log = structlog.get_logger("raft")

TICKS_PER_HEARTBEAT = 5
#: What is in flight without any progress for so long is sent to the leader again.
RESEND_AFTER_S = 1.0
#: A node that was removed is still linked for so long: it may be the one that waits for the answer.
UNLINK_AFTER_S = 1.0


class Node:
    """See the module. Build it inside the loop that will run it, then `await start()`.

    Args:
        machines: the state machines, in the same order on every node.
        on_failure: called once when the node must stop because going on could do harm.
    """

    def __init__(
        self, config: RaftConfig, machines: list[StateMachine], on_failure: Callable[[BaseException], None] | None = None
    ) -> None:
        self.config = config
        self.node_id = config.node_id
        self.incarnation = 0
        self._machines = machines
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._store_directory = Path(config.data_dir) / "raft"
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="raft-store")
        self._leader_seen = ("", 0)
        self._last_progress = 0.0
        self._running = False
        self._event_listeners: dict[type[Event], list[Callable[[Any, int], None]]] = defaultdict(list)
        self._leader_listeners: list[Callable[[str, int], None]] = []
        self._tick_listeners: list[Callable[[], None]] = []
        self._tick_waiters: list[asyncio.Future[None]] = []
        self._peer_listeners: list[Callable[[str], None]] = []
        self._replacement_listeners: list[Callable[[], None]] = []
        self._applied_clock = AppliedClock()
        self._channels: dict[str, Callable[[str, bytes], None]] = {}
        self._control = Control(self.send, members.doers(self))
        self._channels[CHANNEL] = self._control.receive
        self.replica = Replica(config.node_id, machines)
        self._parts: list[SnapshotPart] = []
        #: what subsystems hang on the node for their operations, by name
        self.services: dict[str, Any] = {}
        self.core: RaftCore
        self._store: LogStore
        self._links: PeerLinks
        self._driver: Driver
        self._pending: PendingCommands
        self._reads: ReadRounds
        self._proposals: Proposals
        self._removal: RemovalWatch

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Open the store, restore the last snapshot, and join the cluster.

        Raises:
            StoreRefused, StoreDamaged: the data directory is not this node's, or not sound.
            OSError: the peer port cannot be bound.
        """
        config = self.config
        boot_state = await self._loop.run_in_executor(self._executor, self._open_store)
        tick_ms = config.raft_heartbeat_ms / TICKS_PER_HEARTBEAT
        core_config = CoreConfig(
            node_id=config.node_id,
            election_ticks_min=max(2, round(config.raft_election_min_ms / tick_ms)),
            election_ticks_max=max(3, round(config.raft_election_max_ms / tick_ms)),
            heartbeat_ticks=TICKS_PER_HEARTBEAT,
        )
        self.core = RaftCore(core_config, boot_state, random.Random())
        self._pending = PendingCommands(config.node_id, self.incarnation, self._loop, config.pending_commands_max)
        self._reads = ReadRounds(self.core, self._loop, config.pending_commands_max)
        self._proposals = Proposals(self.core, self.replica)
        snapshots = SnapshotKeeper(
            self.replica,
            self._store,
            self._store_directory,
            self._executor,
            entries_max=config.snapshot_entries,
            bytes_max=config.snapshot_bytes,
            keep_entries=config.snapshot_entries // 4,
        )
        snapshots.parts = self._parts
        if boot_state.snapshot.index > 0:
            await snapshots.restore(boot_state.snapshot)
            self._applied_clock.applied(self.replica.at_ms)
        self._links = PeerLinks(
            node_id=config.node_id,
            cluster_id=config.cluster_id,
            secret=config.cluster_secret.encode(),
            listen=(config.peer_host, config.peer_port),
            peers={peer.id: (peer.host, peer.peer_port) for peer in config.peers},
            on_frame=self._frame_arrived,
            on_up=self._peer_is_up,
            on_down=self._peer_is_down,
        )
        self._driver = Driver(self.core, self._store, self._links, self.replica, snapshots, self._executor, self, tick_ms / 1000)
        self._driver.on_tick.append(self._ticked)
        self._removal = RemovalWatch(self.core, self._links, str(config.data_dir))
        await self._links.start()
        self._running = True
        self._pending.add_unattended(OpenSession())
        self._driver.start()
        log.info(
            "raft.started",
            node=self.node_id,
            incarnation=self.incarnation,
            term=self.core.term,
            last_index=self.core.last_index,
        )

    async def stop(self) -> None:
        """Stop taking part; everything answered is on disk already."""
        if not self._running:
            return
        self._running = False
        self._pending.close()
        await self._driver.stop()
        await self._links.stop()
        await self._loop.run_in_executor(self._executor, self._store.close)
        self._executor.shutdown(wait=True)
        log.info("raft.stopped", node=self.node_id)

    def _open_store(self) -> Any:
        config = self.config
        self._store = LogStore(self._store_directory, config.node_id, config.cluster_id)
        if self._store.is_new:
            self._store.bootstrap(members.first_configuration(config))
        self.incarnation = self._store.next_incarnation()
        return self._store.load()

    # ----------------------------------------------------------------- state

    @property
    def peers(self) -> list[str]:
        """Ids of the other members."""
        return [member.id for member in self.core.configuration.members if member.id != self.node_id]

    @property
    def applied_index(self) -> int:
        return self.replica.applied_index

    def now_ms(self) -> int:
        """Applied time as of now, as well as this node can tell: what leases and ages are measured by."""
        return self._applied_clock.now_ms()

    @property
    def commit_index(self) -> int:
        return self.core.commit_index

    @property
    def term(self) -> int:
        return self.core.term

    @property
    def leader_id(self) -> str:
        """The leader of the current term, "" while none is known."""
        return self.core.leader_id

    @property
    def is_leader(self) -> bool:
        return self.core.role == Role.LEADER

    @property
    def is_ready(self) -> bool:
        """True when a leader is known and everything known to be committed is applied."""
        return self._running and bool(self.core.leader_id) and self.applied_index >= self.core.commit_index > 0

    @property
    def is_taking_snapshot(self) -> bool:
        return self._running and self._driver.snapshots.is_taking

    def machine(self, name: str) -> Any:
        """The state machine called `name`."""
        return self.replica.machines[name]

    def status(self) -> dict[str, Any]:
        """The fields of `GET /raft/status`."""
        tick_ms = self.config.raft_heartbeat_ms / TICKS_PER_HEARTBEAT
        status = members.status(self.core, self._links, tick_ms)
        status["last_applied"] = self.applied_index
        status |= {"boot": self.incarnation, "pending": self._pending.in_flight, "waiting": self._pending.parked}
        return status

    # ------------------------------------------------------------- submitting

    async def submit(self, command: Command, *, timeout_ms: int | None = None, wait_ms: int = 0) -> Result:
        """Put a command through Raft, exactly once in effect, and return its result as applied on this node.

        Args:
            timeout_ms: how long to try, the setting's default when None.
            wait_ms: how long the command itself may wait (a lock, a long poll); added to `timeout_ms`.

        Raises:
            Refused: `no_leader`, `no_quorum` (it had no effect), `unknown_outcome`, `over_limit`, `stopping`.
        """
        if not self._running:
            raise Refused("stopping", "this node is not running")
        timeout = self.config.submit_timeout_ms if timeout_ms is None else timeout_ms
        call = self._pending.add(command, (timeout + wait_ms) / 1000)
        self._driver.wake()
        assert call.future is not None
        try:
            return await call.future
        except asyncio.CancelledError:
            self._pending.abandon(call)
            self._driver.wake()
            raise

    def propose_as_leader(self, command: Command) -> bool:
        """Put a command into this leader's log in its current term. False when this node does not lead, or its log stands still.

        It is never sent again: if leadership is lost it may or may not take effect.
        """
        if not self.is_leader or not self._proposals.add_own(command):
            return False
        self._driver.wake()
        return True

    async def read_index(self) -> None:
        """Wait until this node has applied everything that was answered anywhere before the call.

        Raises:
            Refused: `over_limit`; `no_leader` or `no_quorum` when that takes too long.
        """
        future = self._reads.read()
        self._driver.wake()
        await self._within_deadline(future)

    async def confirm_leadership(self) -> int:
        """Leader only: wait for a quorum to confirm, from now on, that this node leads; the commit index then.

        Raises:
            Refused: `no_leader`.
        """
        future = self._reads.confirm()
        self._driver.wake()
        return await self._within_deadline(future)

    async def _within_deadline(self, future: asyncio.Future[int]) -> int:
        try:
            async with asyncio.timeout(self.config.submit_timeout_ms / 1000):
                return await future
        except TimeoutError:
            raise Refused(self._why_no_answer(), "no leader confirmed the read in time") from None

    def _why_no_answer(self) -> str:
        voters = [member.id for member in self.core.configuration.members if not member.learner]
        reachable = sum(1 for voter in voters if voter == self.node_id or self._links.is_up(voter))
        return "no_leader" if reachable * 2 > len(voters) else "no_quorum"

    # ------------------------------------------------- leadership and members

    async def start_election(self, force: bool = False) -> None:
        """Campaign now. Without `force` a live leader stays."""
        self.core.campaign(force)
        self._driver.wake()

    async def transfer(self, to: str = "") -> dict[str, Any]:
        """Have the leader hand over to `to`, "" for whoever is most up to date. Returns the new `leader_id`.

        Raises:
            Refused: `invalid` (no such voter), `no_leader`, `over_limit` (not now), `unknown_outcome`.
        """
        return await self._ask_leader("transfer", to=to)

    async def add_member(self, node_id: str, url: str) -> dict[str, Any]:
        """Bring in a node: a learner at first, given its vote by the leader when it has caught up.

        Raises:
            Refused: as `transfer`.
        """
        return await self._ask_leader("add_member", node_id=node_id, url=url)

    async def remove_member(self, node_id: str) -> dict[str, Any]:
        """Take a node out of the cluster for good.

        Raises:
            Refused: as `transfer`.
        """
        return await self._ask_leader("remove_member", node_id=node_id)

    async def withdraw(self) -> None:
        """Before a clean stop: have the cluster forget the commands that wait here, lest it gives to callers who will not hear of it."""
        if self._running and self._pending.withdraw():
            self._driver.wake()
            await self.until(lambda: not self._pending.has_unsent and not self._pending.in_flight)

    async def hand_over(self) -> None:
        """Before a clean stop: leave leadership to somebody who is up, so that nobody has to wait for an election."""
        if not self.is_leader or not any(self._links.is_up(peer) for peer in self.peers):
            return
        try:
            await self.transfer()
        except Refused as refusal:
            log.warning("raft.not_handed_over", why=refusal.detail)

    async def _ask_leader(self, what: str, **args: Any) -> dict[str, Any]:
        timeout_s = self.config.submit_timeout_ms / 1000
        return await self._control.ask(self.leader_id, self.is_leader, timeout_s, what, args)

    # -------------------------------------------------------------- listening

    def on_event(self, event_type: type[Event], callback: Callable[[Any, int], None]) -> None:
        """Call `callback(event, index)` for each such event, right after the entry was applied here."""
        self._event_listeners[event_type].append(callback)

    def on_leader_change(self, callback: Callable[[str, int], None]) -> None:
        """Call `callback(leader_id, term)` when this node hears of another leader or term."""
        self._leader_listeners.append(callback)

    def on_tick(self, callback: Callable[[], None]) -> None:
        """Call `callback()` every tick (a fifth of a heartbeat)."""
        self._tick_listeners.append(callback)

    def on_state_replaced(self, callback: Callable[[], None]) -> None:
        """Call `callback()` when a leader's snapshot has taken the place of entries, whose events are not told."""
        self._replacement_listeners.append(callback)

    def on_peer_up(self, callback: Callable[[str], None]) -> None:
        """Call `callback(peer_id)` when a link comes up."""
        self._peer_listeners.append(callback)

    def on_channel(self, channel: str, callback: Callable[[str, bytes], None]) -> None:
        """Call `callback(peer_id, payload)` for what peers `send` on `channel`."""
        self._channels[channel] = callback

    def send(self, peer_id: str, channel: str, payload: bytes) -> None:
        """Tell a peer something, best effort: dropped when the link is down."""
        self._links.send(peer_id, AppFrame(channel, payload))

    def attach(self, part: SnapshotPart) -> None:
        """Make `part` a part of this node's snapshots. Before `start`."""
        self._parts.append(part)

    # ------------------------------------------------- what the driver tells us

    def before_ready(self) -> None:
        """A turn begins: propose or forward what has gathered."""
        self._reads.begin_round()
        leader = self.core.leader_id
        if not leader:
            return
        if leader != self.node_id:
            if self._pending.has_unsent and self._links.is_up(leader):
                self._hand_on(self._pending.next_groups())
        elif not self._driver.is_writing:
            self._hand_on(self._pending.next_groups())
            self._proposals.propose()

    def entries_applied(self) -> None:
        """Entries were applied here: answer callers, tell listeners."""
        replica, pending = self.replica, self._pending
        self._applied_clock.applied(self.replica.at_ms)
        self._proposals.committed(replica.applied_index)
        outcomes = replica.take_outcomes()
        for incarnation, seq, result in outcomes:
            if incarnation == self.incarnation:
                pending.resolve(seq, result)
        session = replica.sessions.get(self.node_id)
        if session is not None and session.incarnation == self.incarnation:
            pending.park_applied(session)
            self._last_progress = self._loop.time()
        for event in replica.take_events():
            for callback in self._event_listeners.get(type(event), ()):
                callback(event, replica.applied_index)
        self._reads.release(replica.applied_index)
        if replica.take_gap():
            self._send_again()
        deadline = replica.next_deadline_ms() if self.is_leader else None
        if deadline is not None and deadline <= replica.at_ms:
            self._proposals.stamp()
            self._driver.wake()

    def state_replaced(self) -> None:
        """A snapshot from the leader has replaced the state."""
        self._applied_clock.applied(self.replica.at_ms)
        self._pending.adopt(self.replica.sessions.get(self.node_id))
        self._reads.release(self.applied_index)
        for callback in self._replacement_listeners:
            callback()

    def read_settled(self, state: ReadState) -> None:
        self._reads.settle(state)
        self._reads.release(self.applied_index)

    def role_changed(self) -> None:
        core = self.core
        leader = (core.leader_id, core.term)
        if leader == self._leader_seen:
            return
        self._leader_seen = leader
        if core.leader_id == self.node_id:
            # The first stamped batch of a term re-arms every lease.
            self._proposals.stamp()
        self._send_again()
        for callback in self._leader_listeners:
            callback(*leader)

    def configuration_changed(self) -> None:
        """Another configuration is in force: link to its members, and soon to nobody else."""
        members.link_members(self._links, self.core.configuration, self.config)
        self._loop.call_later(UNLINK_AFTER_S, self._unlink_others)

    def _unlink_others(self) -> None:
        if self._running:
            members.unlink_others(self._links, self.core.configuration)

    def wake(self) -> None:
        """Something was asked of the core: take a turn soon."""
        self._driver.wake()

    async def until(self, condition: Callable[[], bool]) -> bool:
        """Wait for a state of this node, looked at every tick; False when it did not come within the submit timeout."""
        deadline = self._loop.time() + self.config.submit_timeout_ms / 1000
        while not condition():
            if self._loop.time() > deadline:
                return False
            ticked = self._loop.create_future()
            self._tick_waiters.append(ticked)
            await ticked
        return True

    def failed(self, error: BaseException) -> None:
        """Stop rather than go on wrongly."""
        if isinstance(error, NodeRemoved):
            log.critical("raft.removed", node=self.node_id, why=str(error))
        else:
            log.critical("raft.failed", node=self.node_id, error=f"{type(error).__name__}: {error}", exc_info=error)
        self._running = False
        self._pending.close()
        if self._on_failure is not None:
            self._on_failure(error)

    # ---------------------------------------------------------------- proposing

    def _hand_on(self, groups: list[bytes]) -> None:
        leader = self.core.leader_id
        if leader == self.node_id:
            self._proposals.add_groups(groups)
            return
        for group in groups:
            self._links.send(leader, ForwardFrame(group))

    def _send_again(self) -> None:
        self._last_progress = self._loop.time()
        if self.core.leader_id and self._pending.in_flight:
            self._hand_on(self._pending.groups_again())
            self._driver.wake()

    def _ticked(self) -> None:
        for callback in self._tick_listeners:
            callback()
        waiters, self._tick_waiters = self._tick_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._pending.sweep(self._why_no_answer)
        now = self._loop.time()
        self._removal.look(now)
        if self._pending.in_flight and now - self._last_progress > RESEND_AFTER_S:
            self._send_again()
        if self.is_leader:
            self._proposals.stamp_if_due()

    # -------------------------------------------------------------------- links

    def _frame_arrived(self, peer: str, frame: AnyFrame) -> None:
        if isinstance(frame, RaftFrame):
            self._driver.receive(peer, frame.messages)
        elif isinstance(frame, ForwardFrame):
            if self.is_leader and peer in self.core.progress:
                self._proposals.add_groups([frame.group])
                self._driver.wake()
        elif isinstance(frame, AppFrame) and frame.channel in self._channels:
            self._channels[frame.channel](peer, frame.data)

    def _peer_is_up(self, peer: str) -> None:
        log.info("raft.peer_up", peer=peer)
        if peer == self.core.leader_id:
            self._send_again()
        for callback in self._peer_listeners:
            callback(peer)

    def _peer_is_down(self, peer: str) -> None:
        log.info("raft.peer_down", peer=peer)
