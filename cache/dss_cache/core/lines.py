"""A node's lines: what it may answer without asking anybody. Bounded in number and bytes; a policy says which goes first.

States are those of MESI. M: this node wrote the value, and the memory does not have it yet. E: nobody else has a line. S:
others may. I is the state of a key without a line. A line is *readable* once every node in the `must` of its version has
dropped its older line.

An M line is pinned: eviction passes it over and asks for its value to be written back early, after which it is like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from dss_cache.core.directory import Stamps
from dss_cache.core.policy import Lru, Policy

MODIFIED, EXCLUSIVE, SHARED, INVALID = "M", "E", "S", "I"

#: What a line costs beside its key and value, for the bound in bytes.
LINE_OVERHEAD_BYTES = 400
#: Eviction looks at so many lines before it lets the cache grow until the pinned ones are written back.
EVICTION_SCAN_MAX = 16

#: (key, from, to, why, version)
OnChange = Callable[[str, str, str, str, int], None]


class Line:
    """One line. `state` is changed by `Lines` only."""

    __slots__ = ("answer", "installed_at", "must", "readable", "size", "state", "value", "version")

    def __init__(self, state: str, version: int, value: bytes, must: Stamps, installed_at: float, size: int) -> None:
        self.state = state
        self.version = version
        self.value = value
        #: who must have dropped an older line before this one may be read
        self.must = must
        self.readable = False
        #: the caller's clock, seconds
        self.installed_at = installed_at
        self.size = size
        #: what the doors answer for a hit; made once, at the first hit after a change
        self.answer: Any = None


class Lines:
    """The lines of a node.

    Args:
        items_max, bytes_max: bounds; only pinned lines may exceed them, for a moment.
        on_change: told of every transition, with its reason.
        policy: which line goes when there is no room; by default the least recently used.
    """

    def __init__(self, items_max: int, bytes_max: int, on_change: OnChange, policy: Policy | None = None) -> None:
        self.items_max = items_max
        self.bytes_max = bytes_max
        self.bytes = 0
        self.evictions = 0
        #: eviction met a pinned line: write back soon
        self.wants_write_back = False
        self.by_key: dict[str, Line] = {}
        self._policy = policy if policy is not None else Lru()
        #: the line was used; called for every hit
        self.used: Callable[[str], None] = self._policy.used
        self._on_change = on_change

    def __len__(self) -> int:
        return len(self.by_key)

    def get(self, key: str) -> Line | None:
        """The line, without counting as a use."""
        return self.by_key.get(key)

    def recent_first(self) -> Iterator[tuple[str, Line]]:
        """Most recently used first."""
        return ((key, self.by_key[key]) for key in self._policy.recent_first())

    def install(
        self, key: str, state: str, version: int, value: bytes, must: Stamps, readable: bool, now: float, why: str
    ) -> Line | None:
        """Put a line in the place of whatever was there, then evict. None when the line itself had no room."""
        old = self.by_key.get(key)
        if old is None:
            self._policy.added(key)
        else:
            self.bytes -= old.size
            self._policy.used(key)
        size = LINE_OVERHEAD_BYTES + len(key) + len(value)
        line = self.by_key[key] = Line(state, version, value, must, now, size)
        line.readable = readable
        self.bytes += size
        self._on_change(key, old.state if old is not None else INVALID, state, why, version)
        self._evict()
        return self.by_key.get(key)

    def change(self, key: str, line: Line, state: str, why: str) -> None:
        """Move a line to another state."""
        if line.state != state:
            old, line.state, line.answer = line.state, state, None
            self._on_change(key, old, state, why, line.version)

    def drop(self, key: str, why: str) -> bool:
        """Invalidate a line; False when there is none."""
        line = self.by_key.pop(key, None)
        if line is None:
            return False
        self._policy.removed(key)
        self.bytes -= line.size
        self._on_change(key, line.state, INVALID, why, line.version)
        return True

    def flush(self, why: str) -> int:
        """Invalidate all lines, and say how many there were."""
        count = len(self.by_key)
        for key in list(self.by_key):
            self.drop(key, why)
        return count

    def _evict(self) -> None:
        while len(self.by_key) > self.items_max or self.bytes > self.bytes_max:
            key = self._victim()
            if key is None:
                return
            self.drop(key, "evicted")
            self.evictions += 1

    def _victim(self) -> str | None:
        for looked_at, key in enumerate(self._policy.victims()):
            if self.by_key[key].state != MODIFIED:
                return key
            self.wants_write_back = True
            if looked_at >= EVICTION_SCAN_MAX:
                break
        return None
