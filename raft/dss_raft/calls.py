"""The calls of one node: from the call, through the leader's log, to the answer.

A node that leads appends its callers' commands to its own log. Any other node forwards them to the leader over the peer link, under load
in one group at a time. The call is answered when this node applies the entry. After a change of leader, a gap or a second without progress,
all commands in flight are sent again. Sequence numbers make the repeat harmless (see `replication.sessions`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec
import structlog

from dss_api.errors import Refused
from dss_api.request_id import RequestId
from dss_api.result import Result
from dss_raft.core import RaftCore, Role
from dss_raft.core.ready import ReadState
from dss_raft.driver import Driver
from dss_raft.net.links import PeerLinks
from dss_raft.net.wire import ForwardFrame
from dss_raft.opening import SessionOpening
from dss_raft.replication.admission import Admission
from dss_raft.replication.clocks import StampClock
from dss_raft.replication.commands import Command, OpenSession
from dss_raft.replication.pending_commands import PendingCommands
from dss_raft.replication.proposals import Proposals
from dss_raft.replication.reads import ReadRounds
from dss_raft.replication.replica import Replica
from dss_raft.replication.sessions import ClientSession
from dss_raft.versions import Raise, Supported

log = structlog.get_logger("raft")

#: Commands in flight are sent to the leader again after this time without progress.
RESEND_AFTER_S = 1.0
#: While the log is too long, commands of this length and more wait. Shorter ones, such as renewals, hardly lengthen it.
HELD_FROM_BYTES = 16 * 1024


class Superseded(Exception):
    """This process is no longer the node: another one has opened the node's session, or the node was removed."""


class Calls:
    """The calls of one node, from one start to the next.

    Args:
        incarnation: a random number that identifies this start of the node.
        opening: the command that opens its session; `replaces` is filled in.
        timeout_ms: how long a read may wait for a confirmed leader.
        waiting_max: limit of the commands in flight, and of the reads that wait.
        log_bytes_max: while the log since the last snapshot is longer, large commands wait: it is in memory, and the next snapshot
            is not written yet.
        clock: stamps entries while this node leads.
        opening_delays, began: see `SessionOpening`.
    """

    def __init__(
        self,
        core: RaftCore,
        replica: Replica,
        links: PeerLinks,
        driver: Driver,
        *,
        incarnation: int,
        opening: OpenSession,
        timeout_ms: int,
        waiting_max: int,
        log_bytes_max: int,
        clock: StampClock,
        opening_delays: Sequence[Callable[[], float]] = (),
        began: float = 0.0,
    ) -> None:
        self.core = core
        self.incarnation = incarnation
        self._replica = replica
        self._links = links
        self._driver = driver
        self._loop = asyncio.get_running_loop()
        self._timeout_ms = timeout_ms
        self._log_bytes_max = log_bytes_max
        admission = Admission(replica.command_types, lambda: replica.cluster_version)
        self._pending = PendingCommands(core.node_id, incarnation, self._loop, waiting_max, admission)
        self._reads = ReadRounds(core, self._loop, waiting_max)
        self._may_open = SessionOpening(self._reads, opening_delays, began)
        self._proposals = Proposals(core, replica, admission, clock)
        self._last_progress = 0.0
        self._opening = opening
        #: where the log was seen to have opened the session of this incarnation; 0 before that
        self._opened_at = 0

    @property
    def is_leader(self) -> bool:
        return self.core.role == Role.LEADER

    @property
    def is_open(self) -> bool:
        """True once the log has opened the session of this incarnation."""
        return self._opened_at > 0

    @property
    def in_flight(self) -> int:
        """Commands sent and not yet applied here."""
        return self._pending.in_flight

    @property
    def has_unapplied(self) -> bool:
        """True while commands of this node are not applied here yet."""
        return self._pending.has_unsent or bool(self._pending.in_flight)

    @property
    def parked(self) -> int:
        """Commands applied here that wait for an event."""
        return self._pending.parked

    @property
    def is_closing(self) -> bool:
        """True when no more commands are accepted."""
        return self._pending.is_closing

    @property
    def is_session_accepted(self) -> bool:
        """True when the session table, as applied here, knows this incarnation as the current one."""
        session = self._replica.sessions.get(self.core.node_id)
        return session is not None and session.incarnation == self.incarnation and not session.is_over

    @property
    def are_settled(self) -> bool:
        """True when every command has been sent and applied here."""
        return not self._pending.has_unsent and not self._pending.in_flight

    # ------------------------------------------------------------- the callers

    def open_session(self) -> None:
        """Queue the first command of this incarnation: it replaces the one that has the session, as far as this node knows."""
        session = self._replica.sessions.get(self.core.node_id)
        replaces = 0 if session is None else session.incarnation
        self._pending.open_session(msgspec.structs.replace(self._opening, replaces=replaces))

    async def submit(self, command: Command, timeout_ms: int, once: RequestId | None = None) -> Result:
        """See `Node.submit`."""
        call = self._pending.add(command, timeout_ms / 1000, once)
        self._driver.wake()
        assert call.future is not None
        try:
            return await call.future
        except asyncio.CancelledError:
            self._pending.abandon(call)
            self._driver.wake()
            raise

    def propose_as_leader(self, command: Command) -> bool:
        """See `Node.propose_as_leader`."""
        try:
            if not self.is_leader or not self._proposals.add_own(command):
                return False
        except Refused as refusal:
            log.error("raft.own_command_refused", command=type(command).__name__, code=refusal.code, detail=refusal.detail)
            return False
        self._driver.wake()
        return True

    def raise_version(self, supported_by: Callable[[str], Supported | None]) -> Raise:
        """See `Proposals.raise_version`. Nothing to raise on a node that does not lead."""
        if not self.is_leader:
            return Raise()
        found = self._proposals.raise_version(supported_by)
        if found.to:
            self._driver.wake()
        return found

    async def read_index(self) -> None:
        """See `Node.read_index`."""
        future = self._reads.read()
        self._driver.wake()
        await self._within_deadline(future)

    async def confirm_leadership(self) -> int:
        """See `Node.confirm_leadership`."""
        future = self._reads.confirm()
        self._driver.wake()
        return await self._within_deadline(future)

    def withdraw(self) -> bool:
        """The node is about to stop: accept no more commands, and cancel those that wait. False when none does."""
        if not self._pending.withdraw():
            return False
        self._driver.wake()
        return True

    def close(self) -> None:
        """The node stops: refuse all calls that have no answer yet."""
        self._pending.close()
        self._reads.refuse_all(Refused("stopping", "this node is stopping"))

    def refuse_all(self, reason: str) -> None:
        """This node cannot apply: refuse the calls that wait for it. The cluster undoes what waits there."""
        self._pending.refuse_all(reason)
        self._reads.refuse_all(Refused("not_ready", reason, node=self.core.node_id))
        self._driver.wake()

    async def _within_deadline(self, future: asyncio.Future[int]) -> int:
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                return await future
        except TimeoutError:
            raise Refused(self._why_no_answer(), "no leader confirmed the read in time") from None

    def _why_no_answer(self) -> str:
        voters = [member.id for member in self.core.configuration.members if not member.learner]
        reachable = sum(1 for voter in voters if voter == self.core.node_id or self._links.is_up(voter))
        return "no_leader" if reachable * 2 > len(voters) else "no_quorum"

    # ------------------------------------------------------- the turns of the loop

    def begin_turn(self) -> None:
        """Propose or forward the gathered commands. The first one opens the session: before it may, nothing is sent."""
        leader = self.core.leader_id
        may_send = self._may_open.is_allowed() if leader else False
        self._reads.begin_round()
        if not leader:
            return
        if leader != self.core.node_id:
            pending = self._pending
            if may_send and pending.has_unsent and not pending.is_gathering and self._links.is_up(leader):
                self._send(self._next_groups())
        elif not self._driver.is_writing:
            if may_send:
                self._send(self._next_groups())
            self._proposals.propose()

    def answer_commands(self) -> None:
        """Entries were applied here: answer the callers whose results are known now."""
        replica, pending = self._replica, self._pending
        self._proposals.committed(replica.applied_index)
        for incarnation, seq, result in replica.take_outcomes():
            if incarnation == self.incarnation:
                pending.resolve(seq, result)
        session = replica.sessions.get(self.core.node_id)
        if session is not None and self.is_session_accepted:
            self._session_is_open()
            pending.park_applied(session)
            self._last_progress = self._loop.time()
            if not self.is_leader and pending.has_unsent and not pending.is_gathering:
                self._driver.wake()
        else:
            self._session_is_gone(session)

    def end_apply(self) -> None:
        """The events of the applied entries have been handled: answer reads, and send or stamp what is still due."""
        replica = self._replica
        self._reads.release(replica.applied_index)
        if replica.take_gap():
            self._send_again()
        deadline = replica.next_deadline_ms() if self.is_leader else None
        if deadline is not None and deadline <= replica.at_ms:
            self._proposals.stamp()
            self._driver.wake()

    def state_replaced(self) -> None:
        """A snapshot from the leader has replaced the state."""
        session = self._replica.sessions.get(self.core.node_id)
        if self.is_session_accepted:
            self._session_is_open()
        else:
            self._session_is_gone(session)
        self._pending.adopt(session)
        self._reads.release(self._replica.applied_index)

    def read_settled(self, state: ReadState) -> None:
        """A ReadIndex round has been answered."""
        self._reads.settle(state)
        self._reads.release(self._replica.applied_index)

    def leader_changed(self) -> None:
        """Another leader or another term is known."""
        if self.core.leader_id == self.core.node_id:
            # The first stamped batch of a term re-arms every lease.
            self._proposals.stamp()
        self._send_again()

    def ticked(self) -> None:
        """A tick has passed: refuse calls whose deadline has passed, and send again what makes no progress."""
        self._pending.sweep(self._why_unsent)
        is_stuck = self._driver.applying.stopped is not None  # no progress is to be expected
        if self._pending.in_flight and not is_stuck and self._loop.time() - self._last_progress > RESEND_AFTER_S:
            self._send_again()
        if self.is_leader:
            self._proposals.catch_up()
            self._proposals.stamp_if_due()

    # ---------------------------------------------------------------- the peers

    def peer_is_up(self, peer: str) -> None:
        """A link has come up."""
        if peer == self.core.leader_id:
            self._send_again()

    def forwarded(self, peer: str, group: bytes) -> None:
        """`peer` has forwarded its callers' commands. Only a leader accepts them, and only from a member."""
        if self.is_leader and peer in self.core.progress:
            self._proposals.add_groups([group])
            self._driver.wake()

    def _session_is_open(self) -> None:
        self._opened_at = self._opened_at or self._replica.applied_index

    def _session_is_gone(self, other: ClientSession | None) -> None:
        """The log has not opened the session of this process yet, or has ended it.

        Raises:
            Superseded: another process has the session, or the node was removed and added again.
        """
        node = self.core.node_id
        if not self.is_open or self._replica.applied_index < self._opened_at:
            return  # a state that is built again begins before the session
        if other is not None and other.incarnation != self.incarnation:
            raise Superseded(f"another process runs as {node} (boot {other.incarnation}; this one is {self.incarnation})")
        if node in self.core.membership.ids:
            raise Superseded(f"{node} was removed and added again: start it again")

    def _next_groups(self) -> list[bytes]:
        return self._pending.next_groups(HELD_FROM_BYTES if self._is_log_too_long() else None)

    def _is_log_too_long(self) -> bool:
        return self.core.log.size(self.core.snapshot.index, self.core.last_index) > self._log_bytes_max

    def _why_unsent(self) -> str:
        return "over_limit" if self.core.leader_id and self._is_log_too_long() else self._why_no_answer()

    def _send(self, groups: list[bytes]) -> None:
        leader = self.core.leader_id
        if leader == self.core.node_id:
            self._proposals.add_groups(groups)
            return
        for group in groups:
            self._links.send(leader, ForwardFrame(group))

    def _send_again(self) -> None:
        self._last_progress = self._loop.time()
        if not self.is_open:
            self.open_session()
        if self.core.leader_id and self._pending.in_flight:
            self._send(self._pending.groups_again())
            self._driver.wake()
