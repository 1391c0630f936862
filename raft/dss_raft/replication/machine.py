"""The contract between the replicated log and the state machines on top of it.

Every machine follows these rules, so that all nodes have the same state:

1. A machine uses no clock, no environment and no randomness, and never iterates over a `set`. Its behaviour depends only on its
   state and the arguments of the call.
2. Time is `at_ms`, the leader's stamp in the log entry. It never goes back. `expire` runs with it before the commands of the
   entry. Nothing expires anywhere else.
3. `rearm` runs when the first batch of a new leader is applied, before anything of its term can expire, and when applied time is
   advanced. Every lease and visibility timeout gets its full length again, because clients could not renew it in that time.
4. A refusal is a `Result` with a `code`, never an exception. An exception means a broken invariant: the node applies nothing more.
5. `snapshot` and `restore` transfer the whole state through msgpack, including results and waiters.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec

from dss_api.result import Result
from dss_raft.replication.commands import Command


class Origin(NamedTuple):
    """The origin of a command, unique over the whole life of a cluster. It identifies a waiter."""

    #: id of the node that received the call; "" for a leader's own commands
    node: str
    #: the node's incarnation: grows with every start of its process
    incarnation: int
    #: position in the session of that incarnation, from 1
    seq: int


class Event(msgspec.Struct, frozen=True):
    """Something that happened in a machine while an entry was applied. Each subclass is one kind of event."""


class Resolved(Event, frozen=True):
    """A waiting command has its result now."""

    waiter: Origin
    result: Result


class StateMachine(Protocol):
    """A deterministic state machine, one per subsystem. See the module's rules."""

    #: key in the snapshot, and the displayed name: "locks", "queue", "cache"
    name: str
    #: version of what `snapshot` returns, 1 to 127; `restore` never gets a newer one
    format_version: int
    #: the command Structs that it applies
    commands: tuple[type[Command], ...]

    def apply(self, command: Command, at_ms: int, index: int, origin: Origin) -> Result | None:
        """Apply one command. None: it waits, and a later event `Resolved(origin, …)` answers it."""

    def cancel(self, waiter: Origin, at_ms: int, index: int) -> None:
        """The caller of the command `waiter` has gone: dequeue it, or give back what it was granted. No effect if unknown."""

    def expire(self, at_ms: int, index: int) -> None:
        """Expire everything whose deadline is <= `at_ms`."""

    def next_deadline_ms(self) -> int | None:
        """The earliest stamp at which `expire` would have an effect; None when nothing is pending."""

    def rearm(self, at_ms: int, index: int) -> None:
        """A new leader took over at `at_ms`, or time was advanced to it: give every lease its full length again."""

    def node_restarted(self, node: str, at_ms: int, index: int) -> None:
        """`node` has a new incarnation: its old connections are gone, and so are its waiters."""

    def node_removed(self, node: str, at_ms: int, index: int) -> None:
        """`node` is no longer a member. Its waiters are gone; its process may still run for a while."""

    def take_events(self) -> list[Event]:
        """The events since the last call, in order. `Resolved` answers waiters; listeners on each node receive the others."""

    def snapshot(self) -> Any:
        """The whole state in msgpack-able builtins or Structs."""

    def restore(self, state: Any) -> None:
        """Replace the state by the result of `snapshot`, after a round trip through msgpack (as builtins)."""


class WithoutWaiters:
    """The part of `StateMachine` in which a machine does nothing whose commands never wait, and whose state has no deadlines or leases."""

    def cancel(self, waiter: Origin, at_ms: int, index: int) -> None:
        """No command waits."""

    def expire(self, at_ms: int, index: int) -> None:
        """Nothing has a deadline."""

    def next_deadline_ms(self) -> int | None:
        """See `StateMachine.next_deadline_ms`."""
        return None

    def rearm(self, at_ms: int, index: int) -> None:
        """Nothing has a lease."""

    def node_restarted(self, node: str, at_ms: int, index: int) -> None:
        """Nothing belongs to a node."""

    def node_removed(self, node: str, at_ms: int, index: int) -> None:
        """Nothing belongs to a node."""

    def take_events(self) -> list[Event]:
        """See `StateMachine.take_events`."""
        return []


@runtime_checkable
class GivesOutNumbers(Protocol):
    """A machine that gives callers numbers that are not made from the index, such as versions."""

    def raise_numbers(self, at_ms: int, indexes: int) -> None:
        """A new cluster begins with this state, while the old one may have gone on: raise the numbers beyond all that it can have
        given out in `indexes` entries. No node of the new cluster has a line, a session or a waiter yet.
        """


#: Steps of about a millisecond each that change no visible state. The returned function installs the result in one step.
Restoring = Generator[None, None, Callable[[], None]]


@runtime_checkable
class RestoresInSlices(Protocol):
    """A machine with large state, which is loaded in slices so that its node can answer heartbeats in between.

    Its `snapshot` is one binary.
    """

    def restoring(self, state: memoryview) -> Restoring:
        """Like `restore`, in slices."""


def all_at_once(restoring: Restoring) -> None:
    """Run all steps, and install the result."""
    while True:
        try:
            next(restoring)
        except StopIteration as end:
            end.value()
            return
