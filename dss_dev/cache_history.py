"""What clients of the cache saw, and the checks of it.

Every answer contains a version, so the whole history of each key can be checked: together, the checks say that it is linearizable, with
versions as the order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Operation:
    """A call that was answered, in seconds of the clients' clock."""

    key: str
    node: str
    is_write: bool
    version: int
    value: Any
    asked_s: float
    answered_s: float
    is_hit: bool = False


@dataclass
class History:
    """The operations that clients saw."""

    operations: list[Operation] = field(default_factory=list)
    #: value -> when a client began to write it
    attempted: dict[Any, float] = field(default_factory=dict)


def with_newest_before(history: History) -> Iterator[tuple[Operation, int]]:
    """Each operation, and the newest version of its key that any client had seen when the operation began."""
    by_key: dict[str, list[Operation]] = defaultdict(list)
    for one in history.operations:
        by_key[one.key].append(one)
    for of_key in by_key.values():
        answered = iter(sorted(of_key, key=lambda one: one.answered_s))
        following, newest = next(answered, None), 0
        for one in sorted(of_key, key=lambda one: one.asked_s):
            while following is not None and following.answered_s < one.asked_s:
                newest, following = max(newest, following.version), next(answered, None)
            yield one, newest


def stale(history: History) -> list[tuple[Operation, int]]:
    """Reads that returned an older version than an answer to a put or read before they began."""
    return [(one, newest) for one, newest in with_newest_before(history) if not one.is_write and one.version < newest]


def out_of_order(history: History) -> list[tuple[Operation, int]]:
    """Puts whose version is not newer than one that had been answered before they began."""
    return [(one, newest) for one, newest in with_newest_before(history) if one.is_write and one.version <= newest]


def ambiguous(history: History) -> list[Operation]:
    """Operations with a version that another operation saw with another value."""
    known: dict[tuple[str, int], Any] = {}
    return [one for one in history.operations if known.setdefault((one.key, one.version), one.value) != one.value]


def invented(history: History) -> list[Operation]:
    """Reads of a value that no client had begun to write when they were answered."""
    never = float("inf")
    values = (one for one in history.operations if one.value is not None)
    return [one for one in values if history.attempted.get(one.value, never) > one.answered_s]


def lost(history: History) -> list[Operation]:
    """Reads that found no value for a key that had one. Clients delete nothing."""
    return [one for one, newest in with_newest_before(history) if one.value is None and newest]


CHECKS: tuple[Callable[[History], list[Any]], ...] = (stale, out_of_order, ambiguous, invented, lost)
