"""A node's lines: values that it may answer without asking another node. They are limited in number and bytes.

The states are those of MESI. M: this node wrote the value, and the backing store does not have it yet. E: no other node has a
line. S: other nodes may have one. I: there is no line. A line is *readable* once the pending invalidations of its version are
done.

A policy selects the line to evict. An M line is pinned: eviction skips it and requests an early write-back, after which it is
like any other line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from dss_cache.core.events import Stamps
from dss_cache.core.policy import Lru, Policy

MODIFIED, EXCLUSIVE, SHARED, INVALID = "M", "E", "S", "I"

#: Bytes that a line takes in addition to its key and value.
LINE_OVERHEAD_BYTES = 400
#: Pinned lines that eviction skips before it lets the cache grow until they are written back.
EVICTION_SCAN_MAX = 16

#: (key, old state, new state, reason, version)
OnChange = Callable[[str, str, str, str, int], None]


class Line:
    """One line. Only `Lines` changes its `state`."""

    __slots__ = ("answer", "installed_at", "pending_invalidations", "readable", "size", "state", "value", "version")

    def __init__(
        self, state: str, version: int, value: bytes, pending_invalidations: Stamps, installed_at: float, size: int
    ) -> None:
        self.state = state
        self.version = version
        self.value = value
        #: nodes that must have dropped an older line before this one may be read
        self.pending_invalidations = pending_invalidations
        self.readable = False
        #: by the caller's clock, in seconds
        self.installed_at = installed_at
        self.size = size
        #: the answer for a hit, built at the first hit after a change
        self.answer: Any = None


class Lines:
    """The lines of a node.

    Args:
        items_max, bytes_max: limits; only pinned lines may exceed them temporarily.
        on_change: called for every transition, with its reason.
        policy: selects the line to evict; by default the least recently used.
    """

    def __init__(self, items_max: int, bytes_max: int, on_change: OnChange, policy: Policy | None = None) -> None:
        self.items_max = items_max
        self.bytes_max = bytes_max
        self.bytes = 0
        self.evictions = 0
        #: eviction skipped a pinned line: write back soon
        self.wants_write_back = False
        self.by_key: dict[str, Line] = {}
        self._policy = policy if policy is not None else Lru()
        #: records a use of the line; called for every hit
        self.used: Callable[[str], None] = self._policy.used
        self._on_change = on_change

    def __len__(self) -> int:
        return len(self.by_key)

    def get(self, key: str) -> Line | None:
        """The line. Does not count as a use."""
        return self.by_key.get(key)

    def recent_first(self) -> Iterator[tuple[str, Line]]:
        """All lines, the most recently used first."""
        return ((key, self.by_key[key]) for key in self._policy.recent_first())

    def install(
        self,
        key: str,
        state: str,
        version: int,
        value: bytes,
        pending_invalidations: Stamps,
        readable: bool,
        now: float,
        why: str,
    ) -> Line | None:
        """Add or replace a line, then evict. None if the line itself was evicted."""
        old = self.by_key.get(key)
        if old is None:
            self._policy.added(key)
        else:
            self.bytes -= old.size
            self._policy.used(key)
        size = LINE_OVERHEAD_BYTES + len(key) + len(value)
        line = self.by_key[key] = Line(state, version, value, pending_invalidations, now, size)
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
        """Invalidate a line; False if there is none."""
        line = self.by_key.pop(key, None)
        if line is None:
            return False
        self._policy.removed(key)
        self.bytes -= line.size
        self._on_change(key, line.state, INVALID, why, line.version)
        return True

    def flush(self, why: str) -> int:
        """Invalidate all lines. Returns how many there were."""
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
        for skipped, key in enumerate(self._policy.victims()):
            if self.by_key[key].state != MODIFIED:
                return key
            self.wants_write_back = True
            if skipped >= EVICTION_SCAN_MAX:
                break
        return None
