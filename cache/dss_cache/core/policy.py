"""Which line goes when there is no room: the least recently used (LRU), or W-TinyLFU (Einziger, Friedman, Manes 2017).

W-TinyLFU keeps a count of recent uses for every key, also for keys without a line, and lets a new line stay only if it is used more
often than the one that would have to go. So one pass over many keys does not drive out what is used all the time.

    new ──> window ──> probation <──> protected
             (LRU)      the oldest of probation and the newcomer from the window compare counts; the loser goes

The window is a fixed share of the lines. One that adapts itself (Einziger et al. 2018) was tried: on the traces of
`benchmarks/bench_cache_policies.py` it gained at most one point where only recency counts, and lost one or two elsewhere.

A policy knows keys, not lines. It may name a line that has to stay; `Lines` then takes the next.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Protocol

from dss_cache.core.sketch import FrequencySketch

#: The share of the lines that is protected against newcomers, once used a second time.
PROTECTED_SHARE = 0.8
#: The share of the lines that newcomers have for themselves: more of it is better when mostly the latest keys are used.
WINDOW_SHARE = 0.05
#: Uses that are remembered until the next line comes; of more than that the oldest are forgotten.
USES_BUFFERED_MAX = 256


class Policy(Protocol):
    """Told of every line that comes, is used and goes."""

    def added(self, key: str) -> None:
        """A key without a line has one."""

    @property
    def used(self) -> Callable[[str], None]:
        """A line was read or replaced."""

    def removed(self, key: str) -> None:
        """A line is gone, whatever for."""

    def victims(self) -> Iterator[str]:
        """All lines, the one that should go first ahead. Nothing may change while it is read."""

    def recent_first(self) -> Iterator[str]:
        """All lines, the most recently used ahead."""


class Lru:
    """The least recently used goes first."""

    def __init__(self) -> None:
        self._order: OrderedDict[str, None] = OrderedDict()
        #: called for every hit: nothing in between
        self.used: Callable[[str], None] = self._order.move_to_end
        self.removed: Callable[[str], None] = self._order.__delitem__

    def added(self, key: str) -> None:
        self._order[key] = None

    def victims(self) -> Iterator[str]:
        return iter(self._order)

    def recent_first(self) -> Iterator[str]:
        return reversed(self._order)


class WTinyLfu:
    """See the module.

    Args:
        items_max: lines there is room for.
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
        #: called for every hit, so it only takes a note: where a line stands matters when another one comes
        self.used: Callable[[str], None] = self._buffer.append
        #: the newcomer in probation that has not been compared yet; "": none
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
        """Move what was used since the last line came."""
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


def make_policy(name: str, items_max: int) -> Policy:
    """The policy that the settings name."""
    return WTinyLfu(items_max) if name == "w-tinylfu" else Lru()
