"""Eviction policies, compared with simple models; keys in frequent use survive a scan."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dss_cache.core.lines import EVICTION_SCAN_MAX, Lines
from dss_cache.core.policy import PROTECTED_SHARE, USES_BUFFERED_MAX, WINDOW_SHARE, WTinyLfu, make_policy
from dss_cache.core.sketch import COUNT_MAX, USES_PER_ITEM, WIDTH_MIN, FrequencySketch

POLICIES = ("lru", "w-tinylfu")


def make_lines(policy, items_max=10):
    return Lines(items_max, 1 << 40, lambda *_: None, make_policy(policy, items_max))


def install(lines, key, state="S"):
    return lines.install(key, state, 1, b"1", {}, True, 0.0, "fetched")


def read(lines, key) -> bool:
    """Read like a cache does. True for a hit."""
    if lines.get(key) is not None:
        lines.used(key)
        return True
    install(lines, key)
    return False


def hit_ratio(policy, keys, items_max) -> float:
    lines = make_lines(policy, items_max)
    return sum(read(lines, key) for key in keys) / len(keys)


STEPS = st.lists(st.tuples(st.sampled_from(["read", "read", "write", "clean", "drop"]), st.integers(0, 15)), max_size=150)


@given(STEPS)
def test_lru_equals_a_simple_model(steps):
    lines, model = make_lines("lru", 6), []
    for what, number in steps:
        key = str(number)
        if what == "drop":
            lines.drop(key, "test")
            model = [one for one in model if one != key]
        elif what == "read":
            read(lines, key)
            model = [*(one for one in model if one != key), key][-6:]
        assert [one for one, _ in lines.recent_first()] == model[::-1]


@pytest.mark.parametrize("policy", POLICIES)
@given(steps=STEPS)
def test_limits_and_pinned_lines_in_any_sequence(policy, steps):
    lines, modified = make_lines(policy, 6), set()
    for what, number in steps:
        key = str(number)
        if what == "read":
            read(lines, key)
        elif what == "write":
            install(lines, key, "M")
            modified.add(key)
        elif what == "clean" and (line := lines.get(key)) is not None:
            lines.change(key, line, "E", "written back")
            modified.discard(key)
        elif what == "drop":
            lines.drop(key, "test")
            modified.discard(key)
        assert modified <= lines.by_key.keys(), "a line that is not written back yet stays"
        if what in ("read", "write"):
            assert len(lines) <= max(6, len(modified))
        listed = [one for one, _ in lines.recent_first()]
        assert len(listed) == len(set(listed))
        assert set(listed) == lines.by_key.keys()
    assert len(modified) <= EVICTION_SCAN_MAX


class PlainTinyLfu:
    """W-TinyLFU with lists and exact counts."""

    def __init__(self, items_max: int) -> None:
        self.items_max = items_max
        self.window_max = max(1, int(items_max * WINDOW_SHARE))
        self.protected_max = int((items_max - self.window_max) * PROTECTED_SHARE)
        self.counts: Counter[str] = Counter()
        self.window: list[str] = []
        self.probation: list[str] = []
        self.protected: list[str] = []

    def read(self, key: str) -> None:
        self.counts[key] = min(COUNT_MAX, self.counts[key] + 1)
        if key in self.window:
            self.window.remove(key)
            self.window.append(key)
        elif key in self.protected:
            self.protected.remove(key)
            self.protected.append(key)
        elif key in self.probation:
            self.probation.remove(key)
            self.protected.append(key)
            if len(self.protected) > self.protected_max:
                self.probation.append(self.protected.pop(0))
        else:
            self.window.append(key)
            if len(self.window) > self.window_max:
                self.probation.append(self.window.pop(0))
                if len(self.window) + len(self.probation) + len(self.protected) > self.items_max:
                    newcomer, oldest = self.probation[-1], self.probation[0]
                    self.probation.remove(newcomer if self.counts[newcomer] <= self.counts[oldest] else oldest)

    @property
    def lines(self) -> set[str]:
        return {*self.window, *self.probation, *self.protected}


class ExactCounts(Counter[str]):
    """Replaces the sketch."""

    def add(self, key: str) -> None:
        self[key] = min(COUNT_MAX, self[key] + 1)

    def count(self, key: str) -> int:
        return self[key]


@pytest.mark.parametrize("seed", range(20))
def test_w_tinylfu_equals_a_simple_model(seed):
    items_max = 40
    rng = random.Random(seed)
    policy, model = WTinyLfu(items_max), PlainTinyLfu(items_max)
    policy._sketch = ExactCounts()
    lines = Lines(items_max, 1 << 40, lambda *_: None, policy)
    for _ in range(3000):
        key = f"k{int(rng.expovariate(1 / 30))}"
        read(lines, key)
        model.read(key)
        assert lines.by_key.keys() == model.lines
    assert len(model.counts) > 100
    assert len(model.protected) == model.protected_max


def test_a_scan_does_not_evict_keys_in_frequent_use():
    kept = {}
    for policy in POLICIES:
        lines = make_lines(policy, 100)
        for _ in range(5):
            for number in range(90):
                read(lines, f"hot/{number}")
        for number in range(1000):
            read(lines, f"scan/{number}")
        kept[policy] = sum(f"hot/{number}" in lines.by_key for number in range(90))
    assert kept["lru"] == 0
    assert kept["w-tinylfu"] > 80


def test_a_new_frequent_key_is_kept():
    lines = make_lines("w-tinylfu", 100)
    for _ in range(3):
        for number in range(100):
            read(lines, f"old/{number}")
    hits = sum(read(lines, "favourite") for _ in range(10))
    for number in range(50):
        read(lines, f"other/{number}")
    assert hits == 9
    assert "favourite" in lines.by_key


def test_the_buffer_of_hits_is_limited():
    policy = WTinyLfu(10)
    lines = Lines(10, 1 << 40, lambda *_: None, policy)
    install(lines, "a")
    for _ in range(10 * USES_BUFFERED_MAX):
        lines.used("a")
    assert len(policy._buffer) == USES_BUFFERED_MAX
    assert [key for key, _ in lines.recent_first()] == ["a"]


def test_uses_of_a_removed_line_are_ignored():
    lines = make_lines("w-tinylfu")
    install(lines, "a")
    lines.used("a")
    lines.drop("a", "put on n2")
    install(lines, "b")
    assert [key for key, _ in lines.recent_first()] == ["b"]


# ------------------------------------------------------------------- the sketch


@given(st.lists(st.integers(0, 200), max_size=400))
def test_counts_are_never_too_low(numbers):
    sketch, exact = FrequencySketch(1000), Counter(map(str, numbers))
    for number in numbers:
        sketch.add(str(number))
    for key, count in exact.items():
        assert sketch.count(key) >= min(count, COUNT_MAX)


def test_most_counts_are_exact_even_with_many_keys():
    sketch = FrequencySketch(1000)
    for number in range(5000):
        sketch.add(f"once/{number}")
    for _ in range(5):
        sketch.add("often")
    assert 5 <= sketch.count("often") <= 7
    assert sum(sketch.count(f"never/{number}") == 0 for number in range(1000)) > 600
    assert sum(sketch.count(f"once/{number}") > 2 for number in range(1000)) < 50


def test_old_popularity_fades():
    sketch = FrequencySketch(WIDTH_MIN)
    for _ in range(COUNT_MAX * 2):
        sketch.add("once popular")
    assert sketch.count("once popular") == COUNT_MAX
    for number in range(USES_PER_ITEM * WIDTH_MIN):
        sketch.add(f"new/{number % 8}")
    assert sketch.count("once popular") <= COUNT_MAX // 2 + 1


@pytest.mark.parametrize("items_max", [1, 2, 10_000_000])
def test_the_smallest_and_the_largest_capacity(items_max):
    lines = make_lines("w-tinylfu", items_max)
    for number in range(50):
        read(lines, str(number % 3))
    assert 1 <= len(lines) <= items_max
