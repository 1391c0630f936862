"""Majorities, as pure functions over the voters of one configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum


class Tally(IntEnum):
    """The state of an election."""

    OPEN = 0
    WON = 1
    LOST = 2


def majority(voters: int) -> int:
    """The smallest number such that any two groups of so many voters share a voter (paper 5.1)."""
    return voters // 2 + 1


def reached(values: list[int]) -> int:
    """The largest value that a majority has reached, given one value per voter; 0 without voters."""
    if not values:
        return 0
    values = sorted(values, reverse=True)
    return values[majority(len(values)) - 1]


def tally(voters: Iterable[str], votes: Mapping[str, bool]) -> Tally:
    """Count the votes of `voters`. Votes of other nodes do not count (paper 5.2)."""
    granted = refused = total = 0
    for voter in voters:
        total += 1
        vote = votes.get(voter)
        if vote is True:
            granted += 1
        elif vote is False:
            refused += 1
    needed = majority(total)
    if granted >= needed:
        return Tally.WON
    if total - refused < needed:
        return Tally.LOST
    return Tally.OPEN
