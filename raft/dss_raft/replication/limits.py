"""Limits of the replicated state, as part of the replicated state: all nodes have the same ones at each index.

Theory of operation
-------------------
1. A state machine declares its limits when it is built (`StateLimits.declare`): a name, a default, a unit, and a function that
   returns how much is in use. All machines of a node share one `StateLimits`. It is the only place with the present maxima, and
   a machine reads them from there for each command that makes the state grow: `limits.maxima["lock_bytes_max"]`.
2. `SetLimits` in the log changes maxima. It takes effect at its index, so every node refuses the same commands. `LimitsMachine`
   applies it. It is the last machine of a node, because all limits must be declared before.
3. The bytes of a machine are its *account*: the lengths of what it stores as encoded, plus constants in the code for the objects
   around it. The constants are about what CPython takes on a 64-bit machine, but they never depend on the process:
   `sys.getsizeof` would let nodes differ. An account must be a function of the machine's state alone, not of its history: a
   node that loaded a snapshot and a node that applied every entry must have the same one. A machine keeps its account
   incrementally, counts it again in `restore`, and has a test that compares the two.
4. A command that makes the state grow is refused with `over_limit` (see `over_limit`) while its limit is reached. Steps that make
   the state shrink are never refused: acknowledgements, releases, deletions, cancels, expiry. If such a step leaves something
   behind (a tombstone, a lock delay), its bytes were in the account before (the *reserve*): an entry costs from the beginning as
   much as it can cost in the end. So nothing but growing commands makes an account grow.
5. A limit may be set below what is in use. Then growing commands are refused until enough has gone. Loading a snapshot never
   checks a limit.
6. The snapshot has the maxima of all limits, defaults included: a new release with other defaults does not change what the
   entries of an existing cluster mean. A limit that a snapshot does not have gets its default.

To give another machine a budget: take `limits: StateLimits | None = None` in its constructor (None: a table of its own, for
tests), declare there, implement `usage`, and compare with `limits.maxima[name]` in the commands that grow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import msgspec

from dss_api.fields import Name
from dss_api.result import Result
from dss_raft.replication.commands import Command
from dss_raft.replication.machine import Origin, WithoutWaiters
from dss_raft.versions import MIN

MIB = 1024 * 1024
BYTES_MIN, BYTES_MAX = MIB, 2**50
COUNT_MIN, COUNT_MAX = 1, 10**9
LIMITS_PER_CALL_MAX = 64

Unit = Literal["bytes", "count"]
#: The bounds of a single limit are checked when it is known which one it is (`StateLimits.fault`).
Maximum = Annotated[int, msgspec.Meta(ge=1, le=BYTES_MAX)]


def text_bytes(text: str) -> int:
    """The length of a text as encoded (UTF-8)."""
    return len(text) if text.isascii() else len(text.encode())


class StateLimit(msgspec.Struct, frozen=True):
    """One limit, as its machine declares it."""

    name: str
    default: int
    unit: Unit
    #: how much of it is in use now
    used: Callable[[], int]
    #: the cluster version from which it exists
    since: int = MIN


class StateLimits:
    """The limits that all machines of a node share. See the module.

    Args:
        maxima: replaces defaults, for tests.
    """

    def __init__(self, maxima: dict[str, int] | None = None) -> None:
        self._given = maxima or {}
        self.declared: dict[str, StateLimit] = {}
        #: name -> the maximum in force. Only `LimitsMachine` and tests change it.
        self.maxima: dict[str, int] = {}
        #: the present one; set by the replica
        self.cluster_version = MIN

    def declare(self, *limits: StateLimit) -> None:
        """Add limits, with their defaults in force.

        Raises:
            ValueError: two machines declare the same name.
        """
        for limit in limits:
            if limit.name in self.declared:
                raise ValueError(f"two limits are called {limit.name}")
            default = self._given.get(limit.name, limit.default)
            self.declared[limit.name] = msgspec.structs.replace(limit, default=default)
            self.maxima[limit.name] = default

    def present(self) -> dict[str, StateLimit]:
        """The limits that exist in the present cluster version."""
        return {name: limit for name, limit in self.declared.items() if limit.since <= self.cluster_version}

    def fault(self, maxima: dict[str, int]) -> str:
        """The reason why these maxima cannot be set; "" if they can."""
        present = self.present()
        for name, maximum in maxima.items():
            limit = present.get(name)
            if limit is None:
                return f"there is no limit {name}; the limits are {', '.join(sorted(present))}"
            lowest, highest = (BYTES_MIN, BYTES_MAX) if limit.unit == "bytes" else (COUNT_MIN, COUNT_MAX)
            if not lowest <= maximum <= highest:
                return f"{name} must be {lowest} to {highest}"
        return ""

    def over_limit(self, name: str) -> Result:
        """The refusal of a command that would exceed the limit `name`."""
        maximum = self.maxima[name]
        unit = " bytes" if self.declared[name].unit == "bytes" else ""
        detail = f"the limit {name} of the replicated state is {maximum}{unit}; release or delete something, or raise the limit"
        return Result({"limit": name, "maximum": maximum, "detail": detail}, "over_limit")


@runtime_checkable
class HasUsage(Protocol):
    """A machine (or another part of the replicated state) with an account."""

    def usage(self) -> dict[str, int]:
        """Kind of state -> bytes in the account. The kinds are fixed in the code; they are labels of a metric."""


class SetLimits(Command, tag="limits.set"):
    """Change limits of the replicated state."""

    #: name -> new maximum; limits that are not named stay as they are
    limits: Annotated[dict[Name, Maximum], msgspec.Meta(min_length=1, max_length=LIMITS_PER_CALL_MAX)]


class LimitsMachine(WithoutWaiters):
    """The state machine `limits`: it applies `SetLimits`. Must be the last machine in a node's list."""

    name = "limits"
    format_version = 1
    commands: tuple[type[Command], ...] = (SetLimits,)

    def __init__(self, limits: StateLimits) -> None:
        self.limits = limits

    def apply(self, command: Command, at_ms: int, index: int, origin: Origin) -> Result | None:
        """See `StateMachine.apply`. All maxima are set, or none."""
        assert isinstance(command, SetLimits)
        fault = self.limits.fault(command.limits)
        if fault:
            return Result({"field": "limits", "detail": fault}, "invalid")
        self.limits.maxima.update(command.limits)
        return Result()

    def snapshot(self) -> Any:
        """See `StateMachine.snapshot`."""
        return {"maxima": {name: self.limits.maxima[name] for name in self.limits.present()}}

    def restore(self, state: Any) -> None:
        """See `StateMachine.restore`. An empty state is that of a release without this machine: everything gets its default."""
        stored = state.get("maxima", {})
        for name, limit in self.limits.declared.items():
            self.limits.maxima[name] = stored.get(name, limit.default)
