"""The contract between the replicated log and the state machines on top of it.

Rules that make three nodes agree, and that every machine keeps:

1. A machine reads no clock, no environment and no randomness, and never iterates over a `set`. What it does depends only on its
   state and the arguments of the call.
2. Time is `at_ms`, the leader's stamp in the log entry; it never goes back. `expire` runs with it before the entry's
   commands. Nothing expires anywhere else.
3. `rearm` runs when a new leader's first entry is applied, before anything of its term can expire: every lease
   and visibility timeout gets its full length again, because clients could not renew while there was no leader.
4. A refusal is a `Result` with a `code`, never an exception. An exception means a broken invariant and stops the node.
5. `snapshot` and `restore` round-trip the whole state through msgpack, results and waiters included.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec

from dss_api.result import Result
from dss_raft.replication.commands import Command


class Origin(NamedTuple):
    """Where a command came from: unique over the whole life of a cluster. It names a waiter."""

    #: id of the node that holds the client's connection; "" for what a leader proposes on its own account
    node: str
    #: the node's incarnation: grows with every start of its process
    incarnation: int
    #: position in the session of that incarnation, from 1
    seq: int


class Event(msgspec.Struct, frozen=True):
    """Something that happened in a machine while an entry was applied. Subclasses say what."""


class Resolved(Event, frozen=True):
    """A command that was waiting has its result now."""

    waiter: Origin
    result: Result


class StateMachine(Protocol):
    """A deterministic state machine, one per subsystem. See the module's rules."""

    #: room in the snapshot, and the name people see: "locks", "queue", "cache"
    name: str
    #: the command Structs it applies
    commands: tuple[type[Command], ...]

    def apply(self, command: Command, at_ms: int, index: int, origin: Origin) -> Result | None:
        """Apply one command. None: it waits, and a later `Resolved(origin, …)` event will answer it."""

    def cancel(self, waiter: Origin, at_ms: int, index: int) -> None:
        """The caller of the command `waiter` has gone: dequeue it, or give back what it was granted. Unknown: no effect."""

    def expire(self, at_ms: int, index: int) -> None:
        """Let everything expire whose deadline is <= `at_ms`."""

    def next_deadline_ms(self) -> int | None:
        """The earliest stamp at which `expire` would do something; None when nothing is pending."""

    def rearm(self, at_ms: int, index: int) -> None:
        """A new leader took over at `at_ms`: give every lease its full length again."""

    def node_restarted(self, node: str, at_ms: int, index: int) -> None:
        """`node` has a new incarnation: its old connections are gone, and so are its waiters."""

    def take_events(self) -> list[Event]:
        """The events since the last call, in order. `Resolved` answers waiters; the rest is for listeners on each node."""

    def snapshot(self) -> Any:
        """The whole state in msgpack-able builtins or Structs."""

    def restore(self, state: Any) -> None:
        """Replace the state by one that `snapshot` returned, after a round trip through msgpack (as builtins)."""


#: Steps of about a millisecond that touch nothing anybody sees; what it returns puts the result in place, at once.
Restoring = Generator[None, None, Callable[[], None]]


@runtime_checkable
class RestoresInSlices(Protocol):
    """A machine whose state may be large, so that its node must answer heartbeats while it is loaded.

    Its `snapshot` is one binary.
    """

    def restoring(self, state: memoryview) -> Restoring:
        """As `restore`, in slices."""


def all_at_once(restoring: Restoring) -> None:
    """Take all steps, and put the result in place."""
    while True:
        try:
            next(restoring)
        except StopIteration as end:
            end.value()
            return
