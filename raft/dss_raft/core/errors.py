"""What the core raises. The first three answer a caller; `InvariantViolation` stops the node."""

from __future__ import annotations


class NotLeader(Exception):
    """Only the leader can do this. `hint` is the leader's id, "" when this node knows none."""

    def __init__(self, hint: str) -> None:
        super().__init__(f"not the leader; it is {hint}" if hint else "not the leader, and none is known")
        self.hint = hint


class Busy(Exception):
    """The leader cannot take this now (too much is uncommitted, or a transfer or a change of members is under way): try again."""


class ChangeRefused(Exception):
    """A change of members that makes no sense, such as removing an unknown node or the last voter."""


class InvariantViolation(Exception):
    """Something that Raft proves impossible has happened. Going on could break what was promised, so the node must stop."""
