"""A node's own commands on their way through Raft, from the call to its answer.

A call is *unsent* until the node knows a leader: then it gets its sequence number and is *in flight* until this node applies it.
A command that waits is *parked* until an event answers it. What is in flight is sent again, under the same numbers, after a
leader change or a hole; the session table makes the repeat harmless.

A call that runs into its deadline is told the truth: `no_leader` or `no_quorum` while it was never sent, else `unknown_outcome`.
Its number is then filled with `Nothing`, so that it has no late effect if it had none yet.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from dss_api.errors import Refused
from dss_api.result import Result
from dss_raft.replication.batch import encode_command, encode_group
from dss_raft.replication.commands import Cancel, Command, Nothing
from dss_raft.replication.sessions import ClientSession

GROUP_BYTES_MAX = 512 * 1024
#: Deadlines are swept in lanes of equal length; waits are rounded up to this, so that there are few lanes.
DEADLINE_GRAIN_S = 0.1

_NOTHING = encode_command(Nothing())


class Call:
    """One command and the caller that waits for its result."""

    __slots__ = ("command", "deadline", "future", "seq")

    def __init__(self, command: bytes, future: asyncio.Future[Result] | None, deadline: float) -> None:
        self.command = command
        #: None: nobody waits (a Cancel)
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
        pending_max: calls that may wait at once; one more is refused with `over_limit`.
    """

    def __init__(self, node_id: str, incarnation: int, loop: asyncio.AbstractEventLoop, pending_max: int) -> None:
        self.node_id = node_id
        self.incarnation = incarnation
        self.pending_max = pending_max
        self._loop = loop
        self._next_seq = 1
        self._unsent: deque[Call] = deque()
        self._in_flight: dict[int, Call] = {}
        self._parked: dict[int, Call] = {}
        self._answered: list[int] = []
        self._lanes: dict[int, deque[Call]] = {}
        self._is_closing = False

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    @property
    def in_flight(self) -> int:
        """Commands sent and not yet applied here."""
        return len(self._in_flight)

    @property
    def parked(self) -> int:
        """Commands applied here that wait for an event."""
        return len(self._parked)

    def add(self, command: Command, timeout_s: float) -> Call:
        """Queue a command for a caller.

        Raises:
            Refused: `over_limit` when too many calls wait already, `stopping` after `withdraw`.
        """
        if self._is_closing:
            raise Refused("stopping", "this node is stopping")
        if len(self._unsent) + len(self._in_flight) >= self.pending_max:
            raise Refused("over_limit", f"this node already has {self.pending_max} calls waiting for the cluster")
        lane_length = -int(-timeout_s // DEADLINE_GRAIN_S)
        call = Call(encode_command(command), self._loop.create_future(), self._loop.time() + timeout_s)
        self._unsent.append(call)
        lane = self._lanes.get(lane_length)
        if lane is None:
            lane = self._lanes[lane_length] = deque()
        lane.append(call)
        return call

    def add_unattended(self, command: Command) -> None:
        """Queue a command whose result nobody waits for."""
        self._unsent.append(Call(encode_command(command), None, 0.0))

    def next_groups(self) -> list[bytes]:
        """Number what is unsent and encode it for the leader."""
        calls = [call for call in self._unsent if not call.is_over]
        self._unsent.clear()
        for call in calls:
            call.seq = self._next_seq
            self._next_seq += 1
            self._in_flight[call.seq] = call
        return self._encode(calls)

    def groups_again(self) -> list[bytes]:
        """Everything in flight, once more under the same numbers: for a new leader, or after a hole."""
        return self._encode(list(self._in_flight.values()))

    def resolve(self, seq: int, result: Result) -> None:
        """The command `seq` has its result: it was applied, or an event answered it."""
        call = self._in_flight.pop(seq, None)
        if call is None:
            call = self._parked.pop(seq, None)
        self._answered.append(seq)
        if call is not None and call.future is not None and not call.future.done():
            call.future.set_result(result)

    def park_applied(self, session: ClientSession) -> None:
        """Move what was applied without a result from in flight to parked. The session is this node's, after an apply."""
        in_flight, last_seq = self._in_flight, session.last_seq
        while in_flight:
            seq = next(iter(in_flight))
            if seq > last_seq:
                return
            call = in_flight.pop(seq)
            if seq in session.waiting and not call.is_over:
                self._parked[seq] = call

    def adopt(self, session: ClientSession | None) -> None:
        """A snapshot replaced the state: answer from the session table what it answers."""
        if session is None or session.incarnation != self.incarnation:
            return
        for seq in [*self._parked, *(s for s in self._in_flight if s <= session.last_seq)]:
            if seq in session.results:
                self.resolve(seq, session.results[seq])
            elif seq not in session.waiting:
                call = self._in_flight.pop(seq, None) or self._parked.pop(seq)
                _refuse(call, "unknown_outcome", "the cluster went on without this node for too long")
        self.park_applied(session)

    def abandon(self, call: Call) -> None:
        """The caller has gone: undo the command if it was sent, forget it if it was not."""
        if call.future is not None:
            call.future.cancel()
        if call.seq:
            self._undo(call)

    def withdraw(self) -> bool:
        """The node is about to stop: take no more calls, and take back those that wait. False when none does."""
        self._is_closing = True
        waiting = list(self._parked.values())
        for call in waiting:
            _refuse(call, "stopping", "this node is stopping, and the call had no effect")
            self._undo(call)
        return bool(waiting)

    def sweep(self, why_unsent: Callable[[], str]) -> None:
        """Refuse the calls whose deadline has passed; `why_unsent` tells the code for those that never left."""
        now = self._loop.time()
        for length, lane in list(self._lanes.items()):
            while lane and (lane[0].is_over or lane[0].deadline <= now):
                call = lane.popleft()
                if not call.is_over:
                    self._time_out(call, why_unsent())
            if not lane:
                del self._lanes[length]

    def close(self) -> None:
        """The node stops: nobody will hear of these calls any more."""
        for call in [*self._unsent, *self._in_flight.values(), *self._parked.values()]:
            code = "unknown_outcome" if call.seq else "stopping"
            _refuse(call, code, "this node is stopping")

    def _time_out(self, call: Call, why_unsent: str) -> None:
        if not call.seq:
            _refuse(call, why_unsent, "the call was not sent on, and has had no effect")
            return
        self._undo(call)
        _refuse(call, "unknown_outcome", "the call was sent on, and no answer came before its deadline")

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
            if size >= GROUP_BYTES_MAX or position == len(calls) - 1:
                part = calls[start : position + 1]
                answered, self._answered = self._answered, []
                groups.append(encode_group(self.node_id, self.incarnation, part[0].seq, answered, [c.command for c in part]))
                start, size = position + 1, 0
        return groups


def _refuse(call: Call, code: str, detail: str) -> None:
    if call.future is not None and not call.future.done():
        call.future.set_exception(Refused(code, detail))
