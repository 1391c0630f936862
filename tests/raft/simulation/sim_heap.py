"""The base of the simulated world: one heap of events, one source of randomness, virtual time in microseconds.

The same seed gives the same events in the same order, and so the same trace hash, on any machine.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import sim_profile
from sim_check import Checker
from sim_node import SimNode


class FastRandom(random.Random):
    """Gives the same numbers as `random.Random`, with fewer calls."""

    def randint(self, a: int, b: int) -> int:
        count = b - a + 1
        bits = count.bit_length()
        number = self.getrandbits(bits)
        while number >= count:
            number = self.getrandbits(bits)
        return a + number


class Heap:
    """Time, randomness, and the trace."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None, profile: sim_profile.Profile | None) -> None:
        self.seed = seed
        self.rng = FastRandom(seed)
        self.profile = profile or sim_profile.draw(self.rng)
        self.trace = trace
        self.check = Checker()
        self.now = 0
        self.events = 0
        #: what happened in this world, and how often
        self.happened: Counter[str] = Counter()
        self.trace_hash = seed
        #: true once all faults have ended
        self.healed = False
        self._heap: list[tuple[int, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._sequence = 0

    def _later(self, delay_us: int, action: Callable[..., None], *arguments: Any) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (self.now + delay_us, self._sequence, action, arguments))

    def _loop(self) -> None:
        heap = self._heap
        while heap:
            self.now, _, action, arguments = heapq.heappop(heap)
            self.events += 1
            if action(*arguments) is True:
                return

    def _note(self, kind: int, node: SimNode, value: int) -> None:
        self.trace_hash = hash((self.trace_hash, self.now, kind, node.number, value))

    def _say(self, node_id: str, text: str) -> None:
        if self.trace:
            self.trace(f"{self.now / 1000:10.3f} {node_id:>2} {text}")
