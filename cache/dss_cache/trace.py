"""The recent transitions of this node's lines, for people."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Any, NamedTuple

#: Transitions that a node keeps, of all keys together.
TRANSITIONS_MAX = 10_000


class Transition(NamedTuple):
    """A line changed from one state to another."""

    at_ms: int
    key: str
    old_state: str
    new_state: str
    why: str
    version: int


class Trace:
    """The last transitions of a node, in a ring buffer."""

    def __init__(self) -> None:
        self._ring: deque[Transition] = deque(maxlen=TRANSITIONS_MAX)

    def add(self, transition: Transition) -> None:
        self._ring.append(transition)

    def of_key(self, key: str, node: str, limit: int, scanned_max: int = TRANSITIONS_MAX) -> list[dict[str, Any]]:
        """The key's transitions among the last `scanned_max` of all keys, latest first."""
        rows = []
        for one in islice(reversed(self._ring), scanned_max):
            if one.key == key:
                rows.append(
                    {
                        "at_ms": one.at_ms,
                        "node": node,
                        "from": one.old_state,
                        "to": one.new_state,
                        "why": one.why,
                        "version": one.version,
                    }
                )
                if len(rows) >= limit:
                    break
        return rows
