"""A node's lines: values that it may answer without asking another node. They are limited in number and bytes.

The states are those of MESI. M: this node wrote the value, and the backing store does not have it yet. E: no other node has a
line. S: other nodes may have one. I: there is no line. A line is *readable* once the pending invalidations of its version are
done.

A policy selects the line to evict. An M line is pinned: eviction skips it and requests an early write-back, after which it is
like any other line.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from dss_cache.core.events import Stamps
from dss_cache.core.policy import Lru, Policy

MODIFIED, EXCLUSIVE, SHARED, INVALID = "M", "E", "S", "I"

#: Bytes that a line takes in addition to its key and value.
LINE_OVERHEAD_BYTES = 400
#: Pinned lines that eviction skips before it lets the cache grow until they are written back.
EVICTION_SCAN_MAX = 16

#: (key, old state, new state, reason, version)
OnChange = Callable[[str, str, str, str, int], None]


class Line(msgspec.Struct, gc=False):
    """One line. Only `Lines` changes its `state`."""

    state: str
    version: int
    value: bytes
    #: nodes that must have dropped an older line before this one may be read
    pending_invalidations: Stamps
    readable: bool
    #: by the caller's clock, in seconds
    installed_at: float
    #: the answer for a hit, built at the first hit after a change
    answer: Any = None


class Lines:
    """The lines of a node.

    Args:
        items_max, bytes_max: limits; only pinned lines may exceed them temporarily.
        on_change: called for every transition, with its reason.
        policy: selects the line to evict; None: the least recently used. The order of `by_key` is then the order of use.
    """

    def __init__(self, items_max: int, bytes_max: int, on_change: OnChange, policy: Policy | None = None) -> None:
        self.items_max = items_max
        self.bytes_max = bytes_max
        self.bytes = 0
        self.evictions = 0
        #: eviction skipped a pinned line: write back soon
        self.wants_write_back = False
        in_order: OrderedDict[str, Line] = OrderedDict()
        self._policy = policy if policy is not None else Lru(in_order)
        self.by_key: dict[str, Line] = in_order if policy is None else {}
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
            self.bytes -= _size(key, old)
            self._policy.used(key)
        line = self.by_key[key] = Line(state, version, value, pending_invalidations, readable, now)
        self.bytes += _size(key, line)
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
        self.bytes -= _size(key, line)
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


def _size(key: str, line: Line) -> int:
    """What a line counts towards the limit in bytes."""
    return LINE_OVERHEAD_BYTES + len(key) + len(line.value)
