"""A small state machine with every feature of the contract, for tests of the code around state machines."""

from __future__ import annotations

from typing import Any, ClassVar

from dss_api.result import Result
from dss_raft.replication.commands import Command, OpenSession
from dss_raft.replication.machine import Event, Origin, Resolved
from dss_raft.replication.replica import Replica


class Add(Command, tag="sum.add"):
    amount: int


class Wait(Command, tag="sum.wait"):
    """Waits until the sum has reached `target`."""

    is_undone_by_cancel: ClassVar[bool] = True

    target: int
    lease_ms: int = 1000


class Double(Command, tag="sum.double"):
    """A command of cluster version 2, which `NewSum` applies."""

    since: ClassVar[int] = 2


class Sum:
    """A small machine with every feature of the contract: results, waiters, deadlines."""

    name = "sum"
    format_version = 1
    commands: tuple[type[Command], ...] = (Add, Wait)

    def __init__(self) -> None:
        self.total = 0
        self.waiters: dict[Origin, tuple[int, int, int]] = {}
        self.events: list[Event] = []

    def apply(self, command: Command, at_ms: int, index: int, origin: Origin) -> Result | None:
        if isinstance(command, Add):
            self.total += command.amount
            for waiter, (target, _, _) in list(self.waiters.items()):
                if self.total >= target:
                    del self.waiters[waiter]
                    self.events.append(Resolved(waiter, Result({"total": self.total})))
            return Result({"total": self.total})
        assert isinstance(command, Wait)
        self.waiters[origin] = (command.target, at_ms + command.lease_ms, command.lease_ms)
        return None

    def cancel(self, waiter: Origin, at_ms: int, index: int) -> None:
        self.waiters.pop(waiter, None)

    def expire(self, at_ms: int, index: int) -> None:
        for waiter, (_, deadline, _) in list(self.waiters.items()):
            if deadline <= at_ms:
                del self.waiters[waiter]
                self.events.append(Resolved(waiter, Result(code="wait_timeout")))

    def next_deadline_ms(self) -> int | None:
        return min((deadline for _, deadline, _ in self.waiters.values()), default=None)

    def rearm(self, at_ms: int, index: int) -> None:
        self.waiters = {w: (t, at_ms + lease, lease) for w, (t, _, lease) in self.waiters.items()}

    def node_restarted(self, node: str, at_ms: int, index: int) -> None:
        self.waiters = {w: v for w, v in self.waiters.items() if w.node != node}

    def node_removed(self, node: str, at_ms: int, index: int) -> None:
        self.node_restarted(node, at_ms, index)

    def take_events(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def snapshot(self) -> Any:
        return {"total": self.total, "waiters": [[list(w), list(v)] for w, v in self.waiters.items()]}

    def restore(self, state: Any) -> None:
        self.total = state["total"]
        self.waiters = {Origin(*w): tuple(v) for w, v in state["waiters"]}


class NewSum(Sum):
    """The machine of a newer release."""

    commands = (*Sum.commands, Double)

    def apply(self, command: Command, at_ms: int, index: int, origin: Origin) -> Result | None:
        if isinstance(command, Double):
            self.total *= 2
            return Result({"total": self.total})
        return super().apply(command, at_ms, index, origin)


def with_sessions(replica: Replica, *nodes: str) -> Replica:
    """The replica, in which these nodes ("a" and "b") have sessions of incarnation 1."""
    for node in nodes or ("a", "b"):
        replica.sessions.open(node, 1, OpenSession(replaces=0))
    return replica
