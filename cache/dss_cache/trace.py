"""What happened to this node's lines lately, for people."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

#: Transitions a node remembers, of all keys together.
TRANSITIONS_MAX = 10_000


class Transition(NamedTuple):
    """A line went from one state to another."""

    at_ms: int
    key: str
    came_from: str
    went_to: str
    why: str
    version: int


class Trace:
    """The last transitions of a node, in a ring."""

    def __init__(self) -> None:
        self._ring: deque[Transition] = deque(maxlen=TRANSITIONS_MAX)

    def add(self, transition: Transition) -> None:
        self._ring.append(transition)

    def of_key(self, key: str, node: str, limit: int) -> list[dict[str, Any]]:
        """The key's transitions, latest first."""
        rows = []
        for one in reversed(self._ring):
            if one.key == key:
                rows.append(
                    {
                        "at_ms": one.at_ms,
                        "node": node,
                        "from": one.came_from,
                        "to": one.went_to,
                        "why": one.why,
                        "version": one.version,
                    }
                )
                if len(rows) >= limit:
                    break
        return rows
