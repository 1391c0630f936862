"""A node: one Raft member with its state machines, as entry points and subsystems see it.

`start` puts the parts together: the core, the store, the peer links, the replica, the driver and the calls. All of them belong to
the event loop and are used from its thread only.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from dss_api.errors import ForOperator, Refused
from dss_api.request_id import RequestId
from dss_api.result import Result
from dss_raft import clock_exchange, identity, log_view, members, metrics, state_hashes
from dss_raft.answers import LogEntry, ServiceState
from dss_raft.apply_recovery import ApplyRecovery
from dss_raft.applying import ApplyStop
from dss_raft.calls import Calls, Superseded
from dss_raft.clock_exchange import ClockExchange
from dss_raft.cluster_version import ClusterVersion
from dss_raft.core import CoreConfig, RaftCore, Role
from dss_raft.core.formation import Formation
from dss_raft.core.messages import Configuration
from dss_raft.core.ready import ReadState
from dss_raft.disk.store import LogStore
from dss_raft.disk.store_thread import StoreThread
from dss_raft.driver import Driver
from dss_raft.exports import Exports
from dss_raft.formats import WrongFormat
from dss_raft.identity import Identities
from dss_raft.listeners import Listeners
from dss_raft.net.certificates import CertificateFiles, Credentials, FileCredentials, SecretCredentials
from dss_raft.net.control import CHANNEL, Control
from dss_raft.net.links import PeerLinks
from dss_raft.net.wire import AnyFrame, AppFrame, ForwardFrame, RaftFrame
from dss_raft.readiness import Readiness
from dss_raft.removal import NodeRemoved, RemovalWatch
from dss_raft.replication import founding
from dss_raft.replication.access_tokens import last_with_token
from dss_raft.replication.client_requests import REFUSALS
from dss_raft.replication.clocks import AppliedClock, MemberClocks, StampClock, boot_time, wall_clock_ms
from dss_raft.replication.commands import Command, Once, OpenSession, Skip
from dss_raft.replication.machine import StateMachine
from dss_raft.replication.replica import Fault, Replica
from dss_raft.replication.snapshot_keeper import SnapshotKeeper, SnapshotPart
from dss_raft.replication.users import may_begin_users
from dss_raft.state_hashes import StateHashes
from dss_raft.versions import KNOWS_TLS, LATEST, MIN, MUTUAL_TLS, RELEASE, Announced, Supported, UnsupportedVersion

if TYPE_CHECKING:
    from dss_raft.config import RaftConfig

log = structlog.get_logger("raft")

TICKS_PER_HEARTBEAT = 5
#: What can wait for a heartbeat is not done every tick.
TICKS_PER_UPKEEP = TICKS_PER_HEARTBEAT
#: A removed node stays linked for this time: it may be the one that waits for the answer to its removal.
UNLINK_AFTER_S = 1.0
#: While the log is longer than this many times DSS_SNAPSHOT_BYTES, large commands wait.
LOG_SNAPSHOTS_MAX = 2
#: Incarnations are below this limit: JSON numbers of all readers are exact up to there.
INCARNATION_MAX = 2**53 - 1


class Node(Listeners):
    """See the module. Create it inside the event loop that runs it, then `await start()`.

    Args:
        machines: the state machines, in the same order on every node.
        on_failure: called once when the node must stop because continuing could do harm.
        wall_ms: replaces `wall_clock_ms`.
    """

    def __init__(
        self,
        config: RaftConfig,
        machines: list[StateMachine],
        on_failure: Callable[[BaseException], None] | None = None,
        wall_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        super().__init__()
        self.config = config
        self.node_id = config.node_id
        self.incarnation = 0
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._store_directory = Path(config.data_dir) / "raft"
        self._store_thread = StoreThread(self._loop)
        self._leader_seen = ("", 0)
        #: removed nodes are unlinked then
        self._unlinking: asyncio.TimerHandle | None = None
        self._running = False
        self._has_started = False
        self._tick_waiters: list[asyncio.Future[None]] = []
        self._applied_clock = AppliedClock(wall_ms)
        self._member_clocks = MemberClocks(config.node_id, wall_ms)
        self._channels: dict[str, Callable[[str, bytes], None]] = {}
        self._recovery = ApplyRecovery(self)
        self._control = Control(self.send, {**members.handlers(self), **self._recovery.handlers()})
        self._channels[CHANNEL] = self._control.receive
        #: why the replicated state cannot be used now; "" when it can
        self.unusable_reason = ""
        self._forced_election_at_s = float("-inf")
        supported = Supported(MIN, config.cluster_version_max)
        if supported != RELEASE:
            log.info("raft.cluster_version_held", at=supported.max, release=LATEST, by="DSS_CLUSTER_VERSION_MAX")
        self.replica = Replica(config.node_id, machines, supported)
        self._parts: list[SnapshotPart] = []
        #: objects that subsystems attach to the node for their operations, by name
        self.services: dict[str, Any] = {}
        self._service_states: list[Callable[[], ServiceState]] = []
        #: the last entry at the start that may add a token: until it is applied, the node does not know whether calls need one
        self.tokens_up_to = 0
        #: whether the log may have had the command that adds the first users when this node started
        self.had_first_users = False
        self.core: RaftCore
        self._store: LogStore
        self._links: PeerLinks
        self._driver: Driver
        self._calls: Calls
        self._removal: RemovalWatch
        #: snapshots that callers read, for backups
        self.exports: Exports
        self._readiness: Readiness
        self._clocks: ClockExchange
        self._hashes: StateHashes
        self._identities: Identities
        self._version: ClusterVersion
        self._adding_checks: list[Callable[[str], bool]] = []
        self._opening_delays: list[Callable[[], float]] = []
        #: formats of peers that are newer than this release, each reported once
        self._wrong_formats: set[tuple[Any, ...]] = set()

    # -------------------------------------------------------- starting and stopping

    async def start(self) -> None:
        """Open the store, restore the last snapshot, and join the cluster.

        Raises:
            StoreRefused, StoreDamaged: the data directory is not this node's, or it is damaged.
            UnsupportedVersion: a newer release has used it, and the cluster's version was raised since.
            OSError: the peer port cannot be bound.
        """
        config = self.config
        boot_state = await self._store_thread.run(self._open_store)
        # Also for uncommitted entries: the node would have to stop at them later, perhaps as the leader.
        self.replica.require_supported(boot_state.entries)
        self.tokens_up_to = last_with_token(boot_state.entries)
        self.had_first_users = may_begin_users(boot_state.entries)
        version_in_log = self.replica.version_in(boot_state.entries)
        tick_ms = self.tick_s * 1000
        core_config = CoreConfig(
            node_id=config.node_id,
            election_ticks_min=max(2, round(config.raft_election_min_ms / tick_ms)),
            election_ticks_max=max(3, round(config.raft_election_max_ms / tick_ms)),
            heartbeat_ticks=TICKS_PER_HEARTBEAT,
            store_id=self._store.store_id,
        )
        self.core = RaftCore(core_config, boot_state, random.Random())
        formation = Formation(self.node_id, self._store.store_id, members.first_members(config))
        self._identities = Identities(self, self._store, self._store_thread, formation, self.replica)
        snapshots = SnapshotKeeper(
            self.replica,
            self._store,
            self._store_directory,
            self._store_thread,
            entries_max=config.snapshot_entries,
            bytes_max=config.snapshot_bytes,
            keep_entries=config.snapshot_entries // 4,
        )
        snapshots.parts = self._parts
        self._links = PeerLinks(
            node_id=config.node_id,
            cluster_id=config.cluster_id,
            secret=config.cluster_secret.encode(),
            listen=(config.peer_host, config.peer_port),
            peers=members.addresses(self.core.configuration, config),
            accepts=lambda peer: members.may_connect(self.core, peer),
            on_frame=self._frame_arrived,
            on_up=self._peer_is_up,
            on_down=self._peer_is_down,
            versions=self._announced,
            on_conflict=self._versions_conflict,
            has_left=lambda node_id: members.has_left(self.core, node_id),
            credentials=self._credentials(),
            requires_tls=lambda: max(self.replica.highest_version, version_in_log) >= MUTUAL_TLS,
            silent_seconds=config.raft_election_max_ms / 1000,
        )
        self._driver = Driver(
            self.core, self._store, self._links, self.replica, snapshots, self._store_thread, self, tick_ms / 1000
        )
        self._driver.on_tick.append(self._ticked)
        self._ticks_to_upkeep = 1
        self.exports = Exports(config.node_id, config.cluster_id, self._driver.applying, self._store, self._store_thread)
        self._calls = Calls(
            self.core,
            self.replica,
            self._links,
            self._driver,
            incarnation=self.incarnation,
            opening=OpenSession(store=self._store.store_id, starts=self._store.starts),
            timeout_ms=config.submit_timeout_ms,
            waiting_max=config.pending_commands_max,
            log_bytes_max=LOG_SNAPSHOTS_MAX * config.snapshot_bytes,
            clock=StampClock(self._member_clocks, self._applied_clock),
            opening_delays=self._opening_delays,
            began=boot_time(),
        )
        self._readiness = Readiness(self.core, self.replica, self._calls, core_config.election_ticks_max, TICKS_PER_UPKEEP)
        self._clocks = ClockExchange(self.core, self._member_clocks, self.send, self._links.up_peers)
        self._channels[clock_exchange.CHANNEL] = self._clocks.receive
        self._version = ClusterVersion(self.replica, lambda: self._calls.raise_version(self._supported_by))
        self._hashes = StateHashes(
            self, self.core, self.replica, snapshots, self._store_directory, config.state_hash_interval_s, self._loop.time()
        )
        self._channels[state_hashes.CHANNEL] = self._hashes.receive
        self._removal = RemovalWatch(self.core, self._links, str(config.data_dir))
        if boot_state.snapshot.index > 0:
            # Subsystems react to it, and may use any part of the node.
            await snapshots.restore(boot_state.snapshot)
            self._applied_clock.applied(self.replica.at_ms)
        await self._links.start()
        self._running = self._has_started = True
        self._calls.open_session()
        self._driver.start()
        log.info(
            "raft.started",
            node=self.node_id,
            incarnation=self.incarnation,
            term=self.core.term,
            last_index=self.core.last_index,
        )

    async def stop(self) -> None:
        """Stop taking part in the cluster. Everything that was answered is on disk already."""
        if not self._has_started:
            return
        self._running = self._has_started = False
        self._recovery.close()
        self._calls.close()
        self.exports.close()
        await self._identities.stop()
        await self._driver.stop()
        await self._hashes.stop()
        await self._links.stop()
        await self._store_thread.run(self._store.close)
        self._store_thread.close()
        log.info("raft.stopped", node=self.node_id)

    def _open_store(self) -> Any:
        config = self.config
        founding.refuse_unfinished(self._store_directory)
        store = self._store = LogStore(self._store_directory, config.node_id, config.cluster_id)
        if store.is_new:
            store.bootstrap(Configuration(()))
        if not store.is_formed:
            # A cluster of one node forms at once. The others wait for each other.
            alone = Formation(config.node_id, store.store_id, members.first_members(config)).decide()
            if alone is not None:
                store.form(alone)
        store.count_start()
        self.incarnation = secrets.randbelow(INCARNATION_MAX) + 1
        return store.load()

    # ----------------------------------------------------------------- state

    @property
    def is_running(self) -> bool:
        """False before the start, after a stop, and once the node has failed."""
        return self._running

    @property
    def peers(self) -> list[str]:
        """Ids of the other members."""
        return [member.id for member in self.core.configuration.members if member.id != self.node_id]

    @property
    def applied_index(self) -> int:
        return self.replica.applied_index

    def now_ms(self) -> int:
        """This node's estimate of applied time, by which leases and ages are measured."""
        return self._applied_clock.now_ms()

    @property
    def commit_index(self) -> int:
        return self.core.commit_index

    @property
    def term(self) -> int:
        return self.core.term

    @property
    def leader_id(self) -> str:
        """The leader of the current term; "" while none is known."""
        return self.core.leader_id

    @property
    def is_leader(self) -> bool:
        return self.core.role == Role.LEADER

    @property
    def is_ready(self) -> bool:
        """True when a write submitted now would be answered; see `Readiness`."""
        return not self.not_ready_reason

    @property
    def not_ready_reason(self) -> str:
        """Why this node should get no calls now; "" if it should."""
        if not self._running:
            return "this node is not running"
        if not self._identities.is_formed:
            return self._identities.formation.reason()
        return self.unusable_reason or self._readiness.not_ready_reason

    @property
    def is_session_open(self) -> bool:
        """True once the log has opened the session of this process."""
        return self._calls.is_open

    @property
    def apply_stop(self) -> ApplyStop | None:
        """The entry that this node cannot apply."""
        return self._driver.applying.stopped

    @property
    def tick_s(self) -> float:
        """The length of a tick of the core."""
        return self.config.raft_heartbeat_ms / TICKS_PER_HEARTBEAT / 1000

    @property
    def pending_commands(self) -> tuple[int, int]:
        """How many commands of this node's callers are not applied yet, and how many wait for a lock or a message."""
        return self._calls.in_flight, self._calls.parked

    def is_linked(self, peer: str) -> bool:
        """Whether the link to this member works."""
        return self._links.is_up(peer)

    @property
    def can_be_succeeded(self) -> bool:
        """Whether another voter is linked to this node, and they are enough to elect it."""
        return members.can_be_succeeded(self.core, self._links)

    def silent_ms(self, peer: str) -> int | None:
        """For how long nothing has arrived from this member, in steps of the links' timer; None if nothing has since the start."""
        return self._links.silent_ms(peer)

    @property
    def snapshot_path(self) -> Path | None:
        """The file of the current snapshot, which a newer one may replace at any time. None while there is no snapshot."""
        return self._store.snapshot_path

    def store_bytes(self) -> int:
        """The size of the log store's database files. Raises OSError."""
        return self._store.database_bytes()

    @property
    def is_taking_snapshot(self) -> bool:
        return self._running and self._driver.snapshots.is_taking

    def machine(self, name: str) -> Any:
        """The state machine called `name`."""
        return self.replica.machines[name]

    def status(self) -> dict[str, Any]:
        """The fields of `GET /raft/status`."""
        status = members.status(self.core, self._links, self.tick_s * 1000, members.service_urls(self.config))
        status["last_applied"] = self.applied_index
        stop = self.apply_stop
        status["apply_stopped"] = None if stop is None else {"index": stop.index, "error": stop.error}
        supported = self.replica.supported
        status |= {"cluster_version": self.replica.cluster_version, "supported_versions": msgspec.structs.asdict(supported)}
        for member in status["members"]:
            versions = supported if member["id"] == self.node_id else self._supported_by(member["id"])
            member["supported_versions"] = None if versions is None else msgspec.structs.asdict(versions)
        status["clock"] = self._clocks.status(self.now_ms())
        status["state_hash"] = self._hashes.status()
        status |= {"boot": self.incarnation, "pending": self._calls.in_flight, "waiting": self._calls.parked}
        status["services"] = [msgspec.structs.asdict(state) for state in self.service_states()]
        return status

    def show_service(self, state: Callable[[], ServiceState]) -> None:
        """Show the state of a service that depends on other servers in `/health`, `/ready` and `/raft/status`."""
        self._service_states.append(state)

    def service_states(self) -> list[ServiceState]:
        """The states of these services now."""
        return [state() for state in self._service_states]

    def show_entry(self, index: int) -> LogEntry:
        """One entry of this node's log.

        Raises:
            Refused: `not_found`.
        """
        held = self.core.log
        if not held.first_index <= index <= held.last_index:
            raise Refused("not_found", f"the log of this node has the entries {held.first_index} to {held.last_index}")
        (entry,) = held.slice(index, index)
        applied, skipped = index <= self.applied_index, index in self.replica.skipped
        return log_view.show(entry, committed=index <= held.committed, applied=applied, skipped=skipped)

    # ------------------------------------------------------------- submitting

    def submit(
        self, command: Command, *, timeout_ms: int | None = None, wait_ms: int = 0, once: RequestId | None = None
    ) -> Coroutine[Any, Any, Result]:
        """Replicate a command, apply it exactly once, and return its result as applied on this node.

        Args:
            timeout_ms: how long to try; None: the setting's value.
            wait_ms: how long the command itself may wait (a lock, a long poll); added to `timeout_ms`.
            once: the client's request, which may be repeated at any node.

        Raises:
            Refused: `no_leader`, `no_quorum` (it had no effect), `unknown_outcome`, `over_limit`, `stopping`; with `once`
                `request_expired`, `request_id_reused`, `not_supported_yet`.
        """
        timeout = wait_ms + (self.config.submit_timeout_ms if timeout_ms is None else timeout_ms)
        is_known = command.since <= self.replica.cluster_version
        if is_known and once is None and self._running and not self.unusable_reason:
            # The usual case: a waiting call has one coroutine less.
            return self._calls.submit(command, timeout)
        return self._submit(command, timeout, once)

    async def _submit(self, command: Command, timeout_ms: int, once: RequestId | None) -> Result:
        self.require_state()
        if (command.since if once is None else max(command.since, Once.since)) > self.replica.cluster_version:
            # Another node may have the version already: this one has just started, or lags a little.
            await self.read_index()
        result = await self._calls.submit(command, timeout_ms, once)
        if once is not None and result.code in REFUSALS:
            raise Refused(result.code, **result.body)
        return result

    def propose_as_leader(self, command: Command) -> bool:
        """Append a command to this leader's log in its current term. False when this node does not lead or cannot accept more.

        The command is never sent again: if leadership is lost, it may or may not take effect.
        """
        return not self.unusable_reason and self._calls.propose_as_leader(command)

    def require_state(self) -> None:
        """Raises:
        Refused: `not_ready`: this node has stopped applying, or builds its state again; `stopping`.
        """
        if not self._running:
            raise Refused("stopping", "this node is not running")
        if self.unusable_reason:
            raise Refused("not_ready", self.unusable_reason, node=self.node_id)

    async def read_index(self) -> None:
        """Wait until this node has applied everything that any node answered before this call.

        Raises:
            Refused: `over_limit`; `no_leader` or `no_quorum` when it takes too long.
        """
        self.require_state()
        await self._calls.read_index()

    async def confirm_leadership(self) -> int:
        """Wait until a quorum has confirmed, after this call, that this node leads. Returns the commit index of that moment.

        Raises:
            Refused: `no_leader`.
        """
        return await self._calls.confirm_leadership()

    # ------------------------------------------------- leadership and members

    async def start_election(self, force: bool = False) -> None:
        """Campaign now. Without `force`, a live leader keeps its role.

        Raises:
            Refused: `over_limit`: this node was forced to campaign less than an election timeout ago.
        """
        if force and not self.is_leader:
            timeout_ms = self.config.raft_election_max_ms
            now_s = self._loop.time()
            if now_s < self._forced_election_at_s + timeout_ms / 1000:
                raise Refused("over_limit", f"a node can be forced to campaign once in RAFT_ELECTION_MAX_MS ({timeout_ms} ms)")
            self._forced_election_at_s = now_s
        self.core.campaign(force)
        self._driver.wake()

    async def transfer(self, to: str = "") -> dict[str, Any]:
        """Transfer leadership to `to`; "" for the node that is most up to date. Returns the new `leader_id`.

        Raises:
            Refused: `invalid` (no such voter), `no_leader`, `over_limit` (try again later), `unknown_outcome`.
        """
        return await self._ask_leader("transfer", to=to)

    async def add_member(self, node_id: str, url: str) -> dict[str, Any]:
        """Add a node as a learner. The leader makes it a voter once it has caught up.

        Raises:
            Refused: as `transfer`.
        """
        return await self._ask_leader("add_member", node_id=node_id, url=url)

    async def remove_member(self, node_id: str, force: bool = False, reason: str = "") -> dict[str, Any]:
        """Remove a node from the cluster permanently.

        Args:
            force: remove it even if no spare voter is left then. Without a quorum it is refused anyway.
            reason: why it is forced, for the leader's log.

        Raises:
            Refused: `quorum_at_risk`; as `transfer`.
        """
        forced = {"force": True, "reason": reason, "by": self.node_id} if force else {}
        return await self._ask_leader("remove_member", node_id=node_id, **forced)

    async def skip(self, index: int, reason: str) -> dict[str, Any]:
        """Give a committed entry that cannot be applied no effect, on every node. Returns `skipped` and the `index` of the skip.

        Raises:
            Refused: `not_skippable`: a member has applied it, does not answer, or none has stopped there; `no_leader`,
                `unknown_outcome`.
        """
        return await self._ask_leader("skip", index=index, reason=reason, by=self.node_id)

    async def withdraw(self) -> None:
        """Before a clean stop: cancel the commands that wait here, so that nothing is delivered to callers that have gone."""
        if self._running and self._calls.withdraw() and not self.unusable_reason:
            await self.until(lambda: self._calls.are_settled)

    async def hand_over(self) -> None:
        """Before a clean stop: transfer leadership to a node that is up, so that no caller has to wait for an election."""
        if not self._running or not self.is_leader or not self.can_be_succeeded:
            return
        try:
            await self._ask_leader("transfer", to="", is_stopping=True)
        except Refused as refusal:
            log.warning("raft.transfer_failed", reason=refusal.detail)

    async def _ask_leader(self, what: str, **args: Any) -> dict[str, Any]:
        timeout_s = self.config.submit_timeout_ms / 1000
        return await self._control.ask(self.leader_id, self.is_leader, timeout_s, what, args)

    async def ask_peer(self, peer: str, timeout_s: float, what: str) -> dict[str, Any]:
        """A control request to one member.

        Raises:
            Refused: as the member refused it; `unknown_outcome` when no reply came.
        """
        return await self._control.ask(peer, False, timeout_s, what, {})

    def propose_skip(self, command: Skip) -> bool:
        """Like `propose_as_leader`, also while this node cannot apply."""
        return self._calls.propose_as_leader(command)

    # --------------------------------------------- channels, parts of the snapshots

    def on_channel(self, channel: str, callback: Callable[[str, bytes], None]) -> None:
        """Call `callback(peer_id, payload)` for each payload that a peer sends on `channel`."""
        self._channels[channel] = callback

    def send(self, peer_id: str, channel: str, payload: bytes) -> None:
        """Send a payload to a peer, best effort: it is dropped when the link is down."""
        self._links.send(peer_id, AppFrame(channel, payload))

    def attach(self, part: SnapshotPart) -> None:
        """Include `part` in this node's snapshots. Call it before `start`."""
        self._parts.append(part)

    # ------------------------------------------------------- the driver's listener

    def before_ready(self) -> None:
        """A turn begins."""
        self._calls.begin_turn()

    def entries_applied(self) -> None:
        """Entries were applied here: answer callers, notify listeners."""
        replica = self.replica
        self._applied_clock.applied(replica.at_ms)
        self._identities.applied()
        self._calls.answer_commands()
        self._notify_events(replica.take_events(), replica.applied_index)
        if replica.faults:
            self._report(replica.take_faults())
        self._calls.end_apply()

    def hash_state(self) -> None:
        """See `ApplyListener.hash_state`."""
        self._hashes.begin(self._loop.time())

    def state_replaced(self) -> None:
        """A snapshot from the leader has replaced the state."""
        self._applied_clock.applied(self.replica.at_ms)
        self._identities.applied()
        self._calls.state_replaced()
        self._notify_state_replaced()

    def usable_changed(self) -> None:
        """The replicated state can be used no longer, or again."""
        reason = self._driver.applying.unusable_reason
        if reason and not self.unusable_reason:
            self._calls.refuse_all(reason)
        self.unusable_reason = reason

    def _report(self, faults: list[Fault]) -> None:
        for fault in faults:
            if fault.kind == "undecodable":
                metrics.UNDECODABLE.inc()
                log.error("raft.undecodable", index=fault.index, detail=fault.detail)
            elif fault.kind == "advanced":
                log.warning("raft.time_advanced", index=fault.index, detail=fault.detail)
            else:
                log.warning("raft.skipped", index=fault.index, detail=fault.detail)

    def read_settled(self, state: ReadState) -> None:
        self._calls.read_settled(state)

    def role_changed(self) -> None:
        leader = (self.core.leader_id, self.core.term)
        if leader == self._leader_seen:
            return
        self._leader_seen = leader
        if self.core.leader_id:
            metrics.leader_changed()
        self._unlink_others_later()
        self._calls.leader_changed()
        self._notify_leader_change(*leader)

    def configuration_changed(self) -> None:
        """Another configuration is in force: link to its members, and a little later unlink all other nodes."""
        self._identities.members_changed()
        members.link_members(self._links, self.core.configuration, self.config)
        self._unlink_others_later()
        self._notify_configuration_change()

    def _unlink_others_later(self) -> None:
        # The time of an earlier change must not cut short that of a later one.
        if self._unlinking is not None:
            self._unlinking.cancel()
        self._unlinking = self._loop.call_later(UNLINK_AFTER_S, self._unlink_others)

    def _unlink_others(self) -> None:
        if self._running:
            members.unlink_others(self.core, self._links)

    def before_adding(self, check: Callable[[str], bool]) -> None:
        """Add a node only when `check(node_id)` is true: an earlier process of that id can do no harm any longer."""
        self._adding_checks.append(check)

    def before_opening(self, delay: Callable[[], float]) -> None:
        """Open the session `delay()` seconds after the start at the earliest: clients of the earlier process can do no harm then.

        It is called when this node has applied what that process had applied. Call `before_opening` before `start`.
        """
        self._opening_delays.append(delay)

    def may_add(self, node_id: str) -> bool:
        """See `before_adding`."""
        return all(check(node_id) for check in self._adding_checks)

    def wake(self) -> None:
        """Something was requested of the core: take a turn soon."""
        self._driver.wake()

    async def until(self, condition: Callable[[], bool]) -> bool:
        """Wait for `condition`, which is checked at every tick. False when it did not come true within the submit timeout."""
        deadline = self._loop.time() + self.config.submit_timeout_ms / 1000
        while not condition():
            if not self._running or self._loop.time() > deadline:
                return False
            ticked = self._loop.create_future()
            self._tick_waiters.append(ticked)
            await asyncio.wait([ticked], timeout=deadline - self._loop.time())
        return True

    def vote_answered(self, candidate: str, term: int, granted: bool) -> None:
        """See `DriverListener.vote_answered`."""
        self._notify_vote(candidate, term, granted)

    def peers_outdated(self, peers: list[str]) -> None:
        """See `DriverListener.peers_outdated`."""
        for peer in peers:
            self._identities.tell_outdated(peer, "entries that it had acknowledged are missing")

    def failed(self, error: BaseException) -> None:
        """Stop rather than continue in a wrong state."""
        if isinstance(error, NodeRemoved | Superseded):
            log.critical("raft.removed", node=self.node_id, reason=str(error))
        else:
            traceback = None if isinstance(error, ForOperator) else error
            log.critical("raft.failed", node=self.node_id, error=f"{type(error).__name__}: {error}", exc_info=traceback)
        self._running = False
        self._calls.close()
        self._wake_tick_waiters()
        if self._on_failure is not None:
            self._on_failure(error)

    def _wake_tick_waiters(self) -> None:
        waiters, self._tick_waiters = self._tick_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _ticked(self) -> None:
        if not self.unusable_reason:
            self._notify_tick()
        self._wake_tick_waiters()
        self._calls.ticked()
        self._ticks_to_upkeep -= 1
        if not self._ticks_to_upkeep:
            self._ticks_to_upkeep = TICKS_PER_UPKEEP
            self._upkeep(self._loop.time())

    def _upkeep(self, now_s: float) -> None:
        if not self.unusable_reason:
            self._notify_upkeep()
        self._readiness.tick()
        self._clocks.ticked(now_s)
        self._version.tick()
        self._hashes.ticked(now_s)
        self._removal.check(now_s)
        self._identities.tick()
        self._recovery.tick(now_s)
        self.exports.close_idle()
        members.dial_unlinked(self.core, self._links, TICKS_PER_UPKEEP)

    # -------------------------------------------------------------- the peer links

    def _frame_arrived(self, peer: str, frame: AnyFrame) -> None:
        try:
            self._take_frame(peer, frame)
        except WrongFormat as error:
            # A newer release sent it. Treat it as lost: what matters is sent only once all members understand it.
            if error.args not in self._wrong_formats:
                self._wrong_formats.add(error.args)
                log.warning("raft.wrong_format", peer=peer, reason=str(error))

    def _take_frame(self, peer: str, frame: AnyFrame) -> None:
        if isinstance(frame, AppFrame) and frame.channel == identity.CHANNEL:
            self._identities.receive(peer, frame.data)
        elif self._identities.is_refused(peer, frame):
            return
        elif isinstance(frame, RaftFrame):
            self._driver.receive(peer, frame.messages, self._identities.store_of(peer))
        elif isinstance(frame, ForwardFrame):
            self._calls.forwarded(peer, frame.group)
        elif isinstance(frame, AppFrame) and frame.channel in self._channels:
            self._channels[frame.channel](peer, frame.data)

    def _credentials(self) -> Credentials | None:
        """What links need for TLS; None: they do not use it."""
        config = self.config
        if not (config.peer_tls and KNOWS_TLS):
            return None
        if config.peer_certificate_file:
            files = CertificateFiles(
                config.peer_certificate_file, config.peer_key_file, config.peer_ca_file, config.peer_crl_file
            )
            return FileCredentials(files, config.cluster_id, config.node_id)
        return SecretCredentials(
            config.cluster_secret,
            config.cluster_id,
            config.node_id,
            previous=config.cluster_secret_previous,
            directory=str(self._store_directory),
        )

    def _announced(self) -> Announced:
        return Announced(self.replica.supported, self.replica.cluster_version)

    def _supported_by(self, peer: str) -> Supported | None:
        return self._links.supported_by(peer) if self._identities.is_member(peer) else None

    def _versions_conflict(self, peer: str, theirs: Announced) -> None:
        """Stop if the cluster has a version that this node does not support, because it could never catch up."""
        is_known = peer in self.core.membership.ids or peer in self._links.peers
        if self._running and is_known and theirs.applied > self.replica.supported.max:
            self.failed(UnsupportedVersion(theirs.applied, self.replica.supported))

    def _peer_is_up(self, peer: str) -> None:
        log.info("raft.peer_up", peer=peer)
        self._identities.linked(peer)
        self._clocks.tell(peer)
        self._hashes.linked(peer)
        self._calls.peer_is_up(peer)
        self._notify_peer_up(peer)

    def _peer_is_down(self, peer: str) -> None:
        log.info("raft.peer_down", peer=peer)
        self._identities.unlinked(peer)
        self._notify_peer_down(peer)
