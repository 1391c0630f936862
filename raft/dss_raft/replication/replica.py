"""The replicated state of one node: sessions and state machines. Only committed entries change it.

The order inside an entry is the same on every node:

1. Applied time advances to the stamp of the entry; it never goes back.
2. With the first batch of a new term, every lease is re-armed, because clients could not renew it while there was no leader.
3. Everything that is due by then expires.
4. The leader's own commands are applied, then the commands of each session, each only if it is the next one of its session.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from dss_api.result import Result
from dss_raft.core.messages import Entry, EntryKind
from dss_raft.replication.batch import batch_decoder
from dss_raft.replication.commands import Cancel, Command, Nothing, OpenSession
from dss_raft.replication.limits import HasUsage, LimitsMachine, StateLimits
from dss_raft.replication.machine import Event, Origin, Resolved, RestoresInSlices, Restoring, StateMachine, all_at_once
from dss_raft.replication.sessions import ClientSession, SessionTable

_ACCEPTED = Result()


class _State(msgspec.Struct):
    """The whole state. Its large parts are decoded in slices."""

    applied_index: int
    at_ms: int
    batch_term: int
    sessions: msgspec.Raw
    machines: dict[str, msgspec.Raw]


_state_decoder = msgspec.msgpack.Decoder(_State)
#: the state of a machine that an older release does not have
_EMPTY_STATE = msgspec.Raw(msgspec.msgpack.encode({}))
_view_decoder = msgspec.msgpack.Decoder(memoryview)


class Replica:
    """Applies entries, and collects the results for this node's callers and the events.

    Args:
        node_id: this node, whose callers wait for `take_outcomes`.
        machines: the state machines, in the same order on every node.
    """

    def __init__(self, node_id: str, machines: Sequence[StateMachine]) -> None:
        self.node_id = node_id
        self.machines = {machine.name: machine for machine in machines}
        #: shared with the machines when one of them is a `LimitsMachine`
        self.limits = next((machine.limits for machine in machines if isinstance(machine, LimitsMachine)), StateLimits())
        self.sessions = SessionTable(self.limits)
        self.applied_index = 0
        #: applied time: the highest stamp seen, ms since 1970
        self.at_ms = 0
        #: term of the last batch applied: a higher one means a new leader
        self.batch_term = 0
        self._machines = tuple(machines)
        self._apply: dict[type, Callable[[Any, int, int, Origin], Result | None]] = {}
        for machine in machines:
            for command_type in machine.commands:
                self._apply[command_type] = machine.apply
        self._decoder = batch_decoder([t for machine in machines for t in machine.commands])
        self._outcomes: list[tuple[int, int, Result]] = []
        self._events: list[Event] = []
        self._gap = False

    def apply(self, entry: Entry) -> None:
        """Apply one committed entry. Its index must be the next one."""
        if entry.index != self.applied_index + 1:
            raise ValueError(f"entry {entry.index} does not follow {self.applied_index}")
        if entry.kind == EntryKind.COMMANDS:
            self._apply_batch(entry)
        self.applied_index = entry.index

    def next_deadline_ms(self) -> int | None:
        """The earliest stamp at which something would expire; None when nothing is pending."""
        deadlines = [d for machine in self._machines if (d := machine.next_deadline_ms()) is not None]
        return min(deadlines) if deadlines else None

    def take_outcomes(self) -> list[tuple[int, int, Result]]:
        """(incarnation, seq, result) for this node's own commands, since the last call."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def take_events(self) -> list[Event]:
        """The events of the machines since the last call, except the answers to waiters."""
        events, self._events = self._events, []
        return events

    def take_gap(self) -> bool:
        """True when commands of this node were skipped since the last call because earlier ones are missing."""
        gap, self._gap = self._gap, False
        return gap

    def usage(self) -> dict[str, int]:
        """The account of the whole state: kind -> bytes. See `limits.py`."""
        usage = self.sessions.usage()
        for machine in self._machines:
            if isinstance(machine, HasUsage):
                usage |= machine.usage()
        return usage

    def snapshot(self) -> bytes:
        """The whole state, encoded."""
        state = {
            "applied_index": self.applied_index,
            "at_ms": self.at_ms,
            "batch_term": self.batch_term,
            "sessions": self.sessions.snapshot(),
            "machines": {name: machine.snapshot() for name, machine in self.machines.items()},
        }
        return msgspec.msgpack.encode(state)

    def restore(self, data: bytes | memoryview) -> None:
        """Replace the state by an encoded one."""
        all_at_once(self.restoring(data))

    def restoring(self, data: bytes | memoryview) -> Restoring:
        """Like `restore`, in slices. The state changes in the last step only."""
        state = _state_decoder.decode(data)
        sessions = msgspec.msgpack.decode(state.sessions)
        yield
        installs: list[Callable[[], None]] = []
        for name, machine in self.machines.items():
            encoded = state.machines.get(name, _EMPTY_STATE)
            if isinstance(machine, RestoresInSlices):
                installs.append((yield from machine.restoring(_view_decoder.decode(encoded))))
            else:
                installs.append(partial(machine.restore, msgspec.msgpack.decode(encoded)))
            yield

        def install() -> None:
            self.applied_index, self.at_ms, self.batch_term = state.applied_index, state.at_ms, state.batch_term
            self.sessions.restore(sessions)
            for machine_install in installs:
                machine_install()
            self._outcomes, self._events, self._gap = [], [], False

        return install

    def _apply_batch(self, entry: Entry) -> None:
        batch = self._decoder.decode(entry.data)
        index = entry.index
        at_ms = self.at_ms = max(self.at_ms, batch.at_ms)
        if entry.term > self.batch_term:
            self.batch_term = entry.term
            for machine in self._machines:
                machine.rearm(at_ms, index)
        for machine in self._machines:
            deadline = machine.next_deadline_ms()
            if deadline is not None and deadline <= at_ms:
                machine.expire(at_ms, index)
        for command in batch.own:
            self._apply[type(command)](command, at_ms, index, Origin("", 0, 0))
        for group in batch.groups:
            self._apply_group(group, at_ms, index)
        self._collect(index)

    def _apply_group(self, group: Any, at_ms: int, index: int) -> None:
        session, is_new = self.sessions.open(group.node, group.incarnation)
        if session is None:
            return
        if is_new:
            for machine in self._machines:
                machine.node_restarted(group.node, at_ms, index)
        self.sessions.forget(session, group.answered)
        is_ours = group.node == self.node_id
        seq = group.first_seq
        if seq > session.last_seq + 1:
            self._gap = self._gap or is_ours
            return
        for command in group.commands:
            if seq == session.last_seq + 1:
                session.last_seq = seq
                result = self._apply_one(command, at_ms, index, Origin(group.node, group.incarnation, seq))
                if result is None:
                    session.waiting[seq] = None
                else:
                    self._answer(session, seq, Result(result.body, result.code, index), is_ours)
            seq += 1

    def _apply_one(self, command: Command, at_ms: int, index: int, origin: Origin) -> Result | None:
        apply = self._apply.get(type(command))
        if apply is not None:
            return apply(command, at_ms, index, origin)
        if isinstance(command, Cancel):
            self._cancel(Origin(origin.node, origin.incarnation, command.seq), at_ms, index)
        elif not isinstance(command, Nothing | OpenSession):
            raise TypeError(f"no machine applies {type(command).__name__}")
        return _ACCEPTED

    def _cancel(self, waiter: Origin, at_ms: int, index: int) -> None:
        session = self.sessions.get(waiter.node)
        if session is not None:
            session.waiting.pop(waiter.seq, None)
            self.sessions.forget(session, [waiter.seq])
        for machine in self._machines:
            machine.cancel(waiter, at_ms, index)

    def _answer(self, session: ClientSession, seq: int, result: Result, is_ours: bool) -> None:
        self.sessions.keep(session, seq, result)
        if is_ours:
            self._outcomes.append((session.incarnation, seq, result))

    def _collect(self, index: int) -> None:
        """Answer the waiters that have a result now, and collect the other events."""
        for machine in self._machines:
            for event in machine.take_events():
                if not isinstance(event, Resolved):
                    self._events.append(event)
                    continue
                waiter = event.waiter
                session = self.sessions.get(waiter.node)
                if session is not None and session.incarnation == waiter.incarnation and waiter.seq in session.waiting:
                    del session.waiting[waiter.seq]
                    result = Result(event.result.body, event.result.code, index)
                    self._answer(session, waiter.seq, result, waiter.node == self.node_id)
