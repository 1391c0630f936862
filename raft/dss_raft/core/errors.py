"""The exceptions of the core. The first three are answers to a caller; `InvariantViolation` stops the node."""

from __future__ import annotations


class NotLeader(Exception):
    """Only the leader can do this. `hint` is the id of the leader; "" when this node knows none."""

    def __init__(self, hint: str) -> None:
        super().__init__(f"not the leader; it is {hint}" if hint else "not the leader, and none is known")
        self.hint = hint


class Busy(Exception):
    """The leader cannot accept this now: too much is uncommitted, or a transfer or membership change is open. Try again."""


class ChangeRefused(Exception):
    """A membership change that is not possible, such as removing an unknown node or the last voter."""


class InvariantViolation(Exception):
    """Something that Raft proves impossible has happened. Continuing could break promises, so the node must stop."""
