"""The commands of this node's callers that have no answer yet.

A call is *unsent* until the node knows a leader. Then it gets a sequence number and is *in flight* until this node applies it. A
command that waits is *parked* until an event answers it. Commands in flight are sent again, with the same numbers, after a leader
change or a gap. The session table makes the repeat harmless.

A call that reaches its deadline is refused with `no_leader`, `no_quorum` or `over_limit` if it was never sent, otherwise with
`unknown_outcome`. In that case its number is filled with `Nothing`, so that the command has no late effect if it has not been
applied yet.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from dss_api.errors import Refused
from dss_api.request_id import RequestId
from dss_api.result import Result
from dss_raft.replication.admission import Admission
from dss_raft.replication.batch import encode_command, encode_group
from dss_raft.replication.commands import Cancel, Command, Nothing, OpenSession
from dss_raft.replication.sessions import ClientSession
from dss_raft.size_limits import ANSWERED_PER_GROUP_MAX, GROUP_FILL_BYTES

#: Calls with the same timeout share a queue, in which deadlines are in order. Timeouts are rounded up to this, for few queues.
DEADLINE_GRAIN_S = 0.1
#: From this many calls on, the calls that follow wait until the group that was sent is applied, and share the next group.
GATHER_FROM = 16

_NOTHING = encode_command(Nothing())


class Call:
    """One command and the caller that waits for its result."""

    __slots__ = ("command", "deadline", "future", "seq")

    def __init__(self, command: bytes, future: asyncio.Future[Result] | None, deadline: float) -> None:
        self.command = command
        #: None: no caller waits (a Cancel)
        self.future = future
        #: loop time in seconds
        self.deadline = deadline
        #: 0 while unsent
        self.seq = 0

    @property
    def is_over(self) -> bool:
        """True once the caller has its answer or has gone."""
        return self.future is not None and self.future.done()


class PendingCommands:
    """The calls of one incarnation of one node.

    Args:
        pending_max: limit of the calls that are unsent or in flight; further ones are refused with `over_limit`.
    """

    def __init__(
        self, node_id: str, incarnation: int, loop: asyncio.AbstractEventLoop, pending_max: int, admission: Admission
    ) -> None:
        self.node_id = node_id
        self.incarnation = incarnation
        self.pending_max = pending_max
        self._loop = loop
        self._admission = admission
        self._next_seq = 1
        self._unsent: deque[Call] = deque()
        self._unsent_bytes = 0
        self._in_flight: dict[int, Call] = {}
        self._parked: dict[int, Call] = {}
        #: results that have reached their callers; the next group tells the session table so
        self._answered: list[int] = []
        #: what earlier groups told it: (last sequence number of the group, results), until those groups are applied
        self._acknowledged: deque[tuple[int, list[int]]] = deque()
        #: timeout in units of `DEADLINE_GRAIN_S` -> calls with this timeout, by deadline
        self._by_timeout: dict[int, deque[Call]] = {}
        #: true once no more commands are accepted
        self.is_closing = False
        self._opening: Call | None = None

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    @property
    def is_gathering(self) -> bool:
        """True while unsent calls wait for those in flight, so that they share a group.

        Under load, fewer and larger groups cost every node less. Few calls do not wait, and a full group does not.
        """
        in_flight, unsent = len(self._in_flight), len(self._unsent)
        return in_flight > 0 and in_flight + unsent >= GATHER_FROM and self._unsent_bytes < GROUP_FILL_BYTES

    @property
    def in_flight(self) -> int:
        """Commands sent and not yet applied here."""
        return len(self._in_flight)

    @property
    def parked(self) -> int:
        """Commands applied here that wait for an event."""
        return len(self._parked)

    def add(self, command: Command, timeout_s: float, once: RequestId | None = None) -> Call:
        """Queue a command for a caller.

        Raises:
            Refused: `over_limit` when too many calls wait already; `stopping` after `withdraw`; `invalid` and `too_large` for a
                command that the log does not accept.
        """
        if self.is_closing:
            raise Refused("stopping", "this node is stopping")
        if len(self._unsent) + len(self._in_flight) >= self.pending_max:
            raise Refused("over_limit", f"this node already has {self.pending_max} calls waiting for the cluster")
        grains = -int(-timeout_s // DEADLINE_GRAIN_S)
        encoded = self._admission.encode(command) if once is None else self._admission.encode_once(command, once)
        call = Call(encoded, self._loop.create_future(), self._loop.time() + timeout_s)
        self._unsent.append(call)
        self._unsent_bytes += len(encoded)
        same_timeout = self._by_timeout.get(grains)
        if same_timeout is None:
            same_timeout = self._by_timeout[grains] = deque()
        same_timeout.append(call)
        return call

    def add_unattended(self, command: Command) -> Call:
        """Queue a command for which no caller waits."""
        call = Call(encode_command(command), None, 0.0)
        self._unsent.append(call)
        return call

    def open_session(self, opening: OpenSession) -> None:
        """Queue the first command of this incarnation, or replace it as long as it has had no effect."""
        if self._opening is None:
            self._opening = self.add_unattended(opening)
        self._opening.command = encode_command(opening)

    def next_groups(self, shorter_than: int | None = None) -> list[bytes]:
        """Number the unsent commands, and encode them for the leader. With `shorter_than` bytes, longer ones remain unsent."""
        calls = [call for call in self._unsent if not call.is_over]
        self._unsent.clear()
        if shorter_than is not None:
            self._unsent.extend(call for call in calls if len(call.command) >= shorter_than)
            calls = [call for call in calls if len(call.command) < shorter_than]
        self._unsent_bytes = sum(len(call.command) for call in self._unsent)
        for call in calls:
            call.seq = self._next_seq
            self._next_seq += 1
            self._in_flight[call.seq] = call
        return self._encode(calls)

    def groups_again(self) -> list[bytes]:
        """Encode all commands in flight again, with the same numbers: for a new leader, or after a gap."""
        return self._encode(list(self._in_flight.values()))

    def resolve(self, seq: int, result: Result) -> None:
        """The command `seq` has a result: it was applied, or an event answered it."""
        call = self._in_flight.pop(seq, None)
        if call is None:
            call = self._parked.pop(seq, None)
        self._answered.append(seq)
        if call is not None and call.future is not None and not call.future.done():
            call.future.set_result(result)

    def park_applied(self, session: ClientSession) -> None:
        """Park the commands that were applied without a result. `session` is the session of this node after an apply."""
        in_flight, last_seq = self._in_flight, session.last_seq
        while in_flight:
            seq = next(iter(in_flight))
            if seq > last_seq:
                break
            call = in_flight.pop(seq)
            if seq in session.waiting and not call.is_over:
                call.command = b""  # it is not sent again
                self._parked[seq] = call
        self._check_acknowledged(session)

    def _check_acknowledged(self, session: ClientSession) -> None:
        """Acknowledge again what the session table still keeps although the group that said so seems to have been applied.

        That group was lost with a leader, and only its commands were sent again.
        """
        acknowledged, last_seq, results = self._acknowledged, session.last_seq, session.results
        while acknowledged and acknowledged[0][0] <= last_seq:
            for seq in acknowledged.popleft()[1]:
                if seq in results:
                    self._answered.append(seq)

    def adopt(self, session: ClientSession | None) -> None:
        """A snapshot has replaced the state: answer the calls whose results are in the session table."""
        if session is None or session.incarnation != self.incarnation:
            return
        for seq in [*self._parked, *(s for s in self._in_flight if s <= session.last_seq)]:
            if seq in session.results:
                self.resolve(seq, session.results[seq])
            elif seq not in session.waiting:
                call = self._in_flight.pop(seq, None) or self._parked.pop(seq)
                _refuse(call, "unknown_outcome", "this node was too far behind to know the result")
        self.park_applied(session)

    def abandon(self, call: Call) -> None:
        """The caller has gone: undo the command if it was sent, otherwise drop it."""
        if call.future is not None:
            call.future.cancel()
        if call.seq:
            self._undo(call)

    def withdraw(self) -> bool:
        """The node is about to stop: accept no more calls, and cancel those that are parked. False when there are none."""
        self.is_closing = True
        waiting = list(self._parked.values())
        for call in waiting:
            _refuse(call, "stopping", "this node is stopping; the call had no effect")
            self._undo(call)
        return bool(waiting)

    def refuse_all(self, reason: str) -> None:
        """This node cannot apply: refuse all calls, and undo those that were sent."""
        for call in self._unsent:
            _refuse(call, "not_ready", reason, node=self.node_id)
        for call in [*self._in_flight.values(), *self._parked.values()]:
            if call.future is not None and not call.is_over:
                _refuse(call, "unknown_outcome", reason)
                self._undo(call)

    def sweep(self, why_unsent: Callable[[], str]) -> None:
        """Refuse the calls whose deadline has passed. `why_unsent` returns the code for those that were never sent."""
        now = self._loop.time()
        for grains, calls in list(self._by_timeout.items()):
            while calls and (calls[0].is_over or calls[0].deadline <= now):
                call = calls.popleft()
                if not call.is_over:
                    self._time_out(call, why_unsent())
            if not calls:
                del self._by_timeout[grains]

    def close(self) -> None:
        """The node stops: refuse all calls that are left."""
        for call in [*self._unsent, *self._in_flight.values(), *self._parked.values()]:
            code = "unknown_outcome" if call.seq else "stopping"
            _refuse(call, code, "this node is stopping")

    def _time_out(self, call: Call, why_unsent: str) -> None:
        if not call.seq:
            _refuse(call, why_unsent, "the call was not sent to a leader and has had no effect")
            return
        self._undo(call)
        _refuse(call, "unknown_outcome", "the call was sent to a leader, and no answer came before its deadline")

    def _undo(self, call: Call) -> None:
        self._parked.pop(call.seq, None)
        if call.seq in self._in_flight:
            call.command = _NOTHING
        self.add_unattended(Cancel(seq=call.seq))

    def _encode(self, calls: list[Call]) -> list[bytes]:
        groups: list[bytes] = []
        start = size = 0
        for position, call in enumerate(calls):
            size += len(call.command)
            if size >= GROUP_FILL_BYTES or position == len(calls) - 1:
                part = calls[start : position + 1]
                answered = self._answered[:ANSWERED_PER_GROUP_MAX]
                del self._answered[:ANSWERED_PER_GROUP_MAX]
                if answered:
                    self._acknowledged.append((part[-1].seq, answered))
                groups.append(encode_group(self.node_id, self.incarnation, part[0].seq, answered, [c.command for c in part]))
                start, size = position + 1, 0
        return groups


def _refuse(call: Call, code: str, detail: str, **extra: str) -> None:
    if call.future is not None and not call.future.done():
        call.future.set_exception(Refused(code, detail, **extra))
