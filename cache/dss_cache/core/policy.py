"""Eviction policies: least recently used (LRU) and W-TinyLFU (Einziger, Friedman, Manes 2017).

W-TinyLFU counts the recent uses of every key, also of keys without a line. A new line stays only if its key is used more often
than that of the line that would be evicted instead. So a single scan over many keys does not evict the keys in constant use.

    new ──> window ──> probation <──> protected
             (LRU)      the oldest line of probation competes with the newcomer from the window: the lower count is evicted

The window is a fixed share of the lines. An adaptive window (Einziger et al. 2018) was tried: on the traces of
`benchmarks/bench_cache_policies.py` it gained at most one point where only recency counts, and lost one or two elsewhere.

A policy knows keys, not lines. It may select a pinned line; `Lines` then takes the next one.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, Protocol

from dss_cache.core.sketch import FrequencySketch

#: Share of the lines outside the window that is protected; a line enters it with its second use.
PROTECTED_SHARE = 0.8
#: Share of the lines reserved for newcomers. A larger one is better if mostly the latest keys are used.
WINDOW_SHARE = 0.05
#: Uses that are buffered until the next line is added; older ones are dropped.
USES_BUFFERED_MAX = 256


class Policy(Protocol):
    """Follows which lines are added, used and removed, and selects the lines to evict."""

    def added(self, key: str) -> None:
        """A line was added."""

    @property
    def used(self) -> Callable[[str], None]:
        """A line was read or replaced."""

    def removed(self, key: str) -> None:
        """A line was removed, for any reason."""

    def victims(self) -> Iterator[str]:
        """All keys in the order of eviction. No line may change during the iteration."""

    def recent_first(self) -> Iterator[str]:
        """All keys, the most recently used first."""


class Lru:
    """Evicts the least recently used line first.

    Args:
        in_order: the lines themselves, which a new line enters at the end: an order of its own would need as much memory again.
    """

    def __init__(self, in_order: OrderedDict[str, Any]) -> None:
        self._in_order = in_order
        #: called for every hit, so it is the dictionary's own method
        self.used: Callable[[str], None] = in_order.move_to_end

    def added(self, key: str) -> None:
        """It is added where the lines are."""

    def removed(self, key: str) -> None:
        """It is removed where the lines are."""

    def victims(self) -> Iterator[str]:
        return iter(self._in_order)

    def recent_first(self) -> Iterator[str]:
        return reversed(self._in_order)


class WTinyLfu:
    """See the module's docstring.

    Args:
        items_max: capacity in lines.
    """

    def __init__(self, items_max: int) -> None:
        self._window_max = max(1, int(items_max * WINDOW_SHARE))
        self._protected_max = int((items_max - self._window_max) * PROTECTED_SHARE)
        self._sketch = FrequencySketch(items_max)
        self._window: OrderedDict[str, None] = OrderedDict()
        self._probation: OrderedDict[str, None] = OrderedDict()
        self._protected: OrderedDict[str, None] = OrderedDict()
        self._by_use: OrderedDict[str, None] = OrderedDict()
        self._buffer: deque[str] = deque(maxlen=USES_BUFFERED_MAX)
        #: called for every hit, so it only buffers the key: the order matters when a line is added
        self.used: Callable[[str], None] = self._buffer.append
        #: the newcomer in probation that has not competed yet; "": none
        self._candidate = ""

    def added(self, key: str) -> None:
        self._catch_up()
        self._sketch.add(key)
        self._by_use[key] = self._window[key] = None
        if len(self._window) > self._window_max:
            self._candidate = self._window.popitem(last=False)[0]
            self._probation[self._candidate] = None

    def removed(self, key: str) -> None:
        del self._by_use[key]
        for part in (self._window, self._probation, self._protected):
            if key in part:
                del part[key]
                return

    def victims(self) -> Iterator[str]:
        candidate, self._candidate = self._candidate, ""
        rest = chain(self._probation, self._protected, self._window)
        oldest = next(iter(self._probation), "")
        if candidate in self._probation and self._sketch.count(candidate) <= self._sketch.count(oldest):
            return chain((candidate,), (key for key in rest if key != candidate))
        return rest

    def recent_first(self) -> Iterator[str]:
        self._catch_up()
        return reversed(self._by_use)

    def _catch_up(self) -> None:
        """Apply the uses since the last line was added."""
        by_use, window, probation, protected = self._by_use, self._window, self._probation, self._protected
        for key in self._buffer:
            if key not in by_use:
                continue
            self._sketch.add(key)
            by_use.move_to_end(key)
            if key in protected:
                protected.move_to_end(key)
            elif key in window:
                window.move_to_end(key)
            else:
                del probation[key]
                protected[key] = None
                if len(protected) > self._protected_max:
                    probation[protected.popitem(last=False)[0]] = None
        self._buffer.clear()


def make_policy(name: str, items_max: int) -> Policy | None:
    """The policy with this name in the settings; None: that of `Lines` itself, least recently used."""
    return WTinyLfu(items_max) if name == "w-tinylfu" else None
