"""The exceptions of the core. The first three are answers to a caller; `InvariantViolation` stops the node."""

from __future__ import annotations

from collections.abc import Sequence


class NotLeader(Exception):
    """Only the leader can do this. `hint` is the id of the leader; "" when this node knows none."""

    def __init__(self, hint: str) -> None:
        super().__init__(f"not the leader; it is {hint}" if hint else "not the leader, and none is known")
        self.hint = hint


class Busy(Exception):
    """The leader cannot accept this now: too much is uncommitted, or a transfer or membership change is open. Try again."""


class ChangeRefused(Exception):
    """A membership change that is not possible, such as removing an unknown node or the last voter."""


class QuorumAtRisk(ChangeRefused):
    """Too few voters of the new configuration are reachable.

    Args:
        reachable: the voters that answer and have a vote.
        needed: how many of `voters` are a majority.
        may_force: there is a majority, but no spare voter: the change is made if it is forced.
        outdated: voters that answer but have no vote, because their disks were put back to an earlier state.
    """

    def __init__(
        self, voters: Sequence[str], reachable: Sequence[str], needed: int, *, may_force: bool, outdated: Sequence[str] = ()
    ) -> None:
        names = ", ".join(reachable)
        rule = f"{needed} of the {len(voters)} voters of the new configuration must be reachable"
        repair = [f"replace {node} (manage.py member replace {node})" for node in outdated]
        if may_force:
            missing = ", ".join(voter for voter in voters if voter not in reachable and voter not in outdated)
            repair = [*([f"bring {missing} back or remove it"] if missing else []), *repair]
            text = (
                f"{rule}, and only {needed} are: {names}. One more failure would stop the cluster. {_sentence(repair)} first, or "
                "repeat the request with `force` and a `reason`"
            )
        elif reachable:
            text = f"{rule}, but only {len(reachable)} {'is' if len(reachable) == 1 else 'are'}: {names}"
        else:
            text = f"{rule}, but none is"
        if outdated:
            disks = "its disk was" if len(outdated) == 1 else "their disks were"
            text = f"{text}. {', '.join(outdated)} can be reached, but cannot vote: {disks} put back to an earlier state"
            if not may_force:
                text = f"{text}. {_sentence(repair)} first"
        super().__init__(text)
        self.voters = list(voters)
        self.reachable = list(reachable)
        self.needed = needed
        self.may_force = may_force
        self.outdated = list(outdated)


def _sentence(actions: Sequence[str]) -> str:
    text = " and ".join(actions)
    return text[:1].upper() + text[1:]


class InvariantViolation(Exception):
    """Something that Raft proves impossible has happened. Continuing could break promises, so the node must stop."""
