"""What a near cache holds, and until when it may answer from it."""

from __future__ import annotations

import sys
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from dss_client import NearCache, WrongUse, near
from dss_client.near import MARGIN, RATE_ERROR, Copy, Holding

LEASE_MS = 1000
#: what the client makes of it
USED_S = LEASE_MS / 1000 * (1 - RATE_ERROR - MARGIN)


class Clock:
    def __init__(self) -> None:
        self.time = 100.0
        #: called at each look at the clock, before it is read
        self.meanwhile: Callable[[], Any] = lambda: None

    def __call__(self) -> float:
        self.meanwhile()
        return self.time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(near, "now", clock)
    return clock


def holding(token: int = 1, **settings: Any) -> Holding:
    made = Holding(NearCache(**settings))
    made.ask(token)
    made.granted(token, LEASE_MS)
    return made


def value_in(holding: Holding, key: str = "key") -> Any:
    copy = holding.read(key)
    return None if copy is None else copy.load()


def test_a_copy_may_be_used_until_the_lease_is_over(clock: Clock) -> None:
    held = holding()
    held.install("key", Copy("value", 1))
    clock.time += USED_S - 0.001
    assert value_in(held) == "value"
    clock.time += 0.002
    assert value_in(held) is None
    assert "key" in held, "it may be used again under the next lease"
    held.ask(2)
    held.granted(2, LEASE_MS)
    assert value_in(held) == "value"
    assert held.hits == 2


def test_a_lease_counts_from_when_it_was_asked_for(clock: Clock) -> None:
    held = Holding(NearCache())
    held.install("key", Copy("value", 1))
    held.ask(7)
    clock.time += USED_S
    assert held.granted(7, LEASE_MS)
    assert value_in(held) is None


def test_only_the_answer_to_the_last_request_counts(clock: Clock) -> None:
    held = Holding(NearCache())
    held.install("key", Copy("value", 1))
    held.ask(1)
    held.ask(2)
    assert not held.granted(1, LEASE_MS)
    assert value_in(held) is None
    assert held.granted(2, LEASE_MS)
    assert not held.granted(2, 10 * LEASE_MS)
    held.ask(3)
    held.refused(3)
    assert not held.is_asking
    assert not held.granted(3, LEASE_MS)
    assert held.valid_until == clock.time + USED_S


def test_a_shorter_lease_does_not_end_a_longer_one(clock: Clock) -> None:
    held = holding()
    held.ask(2)
    held.granted(2, 10)
    assert held.valid_until == clock.time + USED_S


def test_a_drop_removes_its_copies(clock: Clock) -> None:
    held = holding()
    for key in "abc":
        held.install(key, Copy(key, 1))
    held.drop(["a", "c", "unknown"], 7)
    assert ([value_in(held, key) for key in "abc"], held.seq, held.drops) == ([None, "b", None], 7, 2)


def test_a_flush_removes_everything_and_ends_the_lease(clock: Clock) -> None:
    held = holding()
    held.install("key", Copy("value", 1))
    held.ask(2)
    held.flush(8)
    assert (len(held), held.bytes, held.seq, held.valid_until) == (0, 0, 8, 0.0)
    assert not held.granted(2, LEASE_MS)


def test_a_reader_that_slept_over_a_drop_and_a_new_lease_finds_nothing_old(clock: Clock) -> None:
    """It took the old copy under a lease that is over. The next lease was granted behind the drop."""
    held = holding()
    held.install("key", Copy("old", 1))
    clock.time += USED_S + 1

    def drop_and_grant() -> None:
        clock.meanwhile = lambda: None
        held.drop(["key"], 1)
        held.ask(2)
        held.granted(2, LEASE_MS)

    clock.meanwhile = drop_and_grant
    assert value_in(held) is None


def test_a_copy_that_is_dropped_while_it_is_read_is_no_error(clock: Clock) -> None:
    held = holding()
    held.install("key", Copy("value", 1))
    clock.meanwhile = lambda: held.drop(["key"], 1)
    assert value_in(held) == "value", "the put was not answered when this read began"


class TestSize:
    def test_the_copies_that_were_not_used_for_the_longest_time_go_first(self, clock: Clock) -> None:
        held = holding(max_items=3)
        for key in "abc":
            held.install(key, Copy(key, 1))
        value_in(held, "a")
        held.install("d", Copy("d", 1))
        assert [key for key in "abcd" if key in held] == ["a", "c", "d"]
        held.install("c", Copy("newer", 2))
        held.install("e", Copy("e", 1))
        assert [key for key in "abcde" if key in held] == ["c", "d", "e"]
        assert held.evictions == 2

    def test_bytes_are_counted(self, clock: Clock) -> None:
        held = holding(max_bytes=10_000)
        for number in range(100):
            assert held.install(f"key-{number}", Copy(b"x" * 1000, 1))
            assert held.bytes <= 10_000
        assert 5 <= len(held) <= 9
        assert not held.install("large", Copy(b"x" * 10_000, 1))
        assert not held.install("key-99", Copy(b"x" * 10_000, 2))
        assert "key-99" not in held, "not even an older version stays"
        for number in range(100):
            held.drop([f"key-{number}"], 1)
        assert held.bytes == 0

    def test_what_it_takes_in_memory_is_about_what_it_counts(self) -> None:
        held = Holding(NearCache(max_items=20_000))
        tracemalloc.start()
        try:
            for number in range(10_000):
                held.install(f"key-{number}", Copy(f"value {number} " * 10, 1))
            taken = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert 0.8 * held.bytes < taken < 1.25 * held.bytes

    def test_the_node_need_not_count_what_is_not_held(self, clock: Clock) -> None:
        held = holding(max_items=2)
        for key in "abcd":
            held.install(key, Copy(key, 1))
        held.refuse("e")
        assert sorted(held.report(busy={"b"})) == ["a", "e"]
        held.drop(["b"], 1)
        assert held.report(busy=()) == []
        held.install("e", Copy("e", 1))
        held.install("c", Copy("c", 2))
        assert held.report(busy=()) == ["d"]
        held.flush(2)
        assert held.report(busy=()) == []


@pytest.mark.parametrize(
    "value", ["text", "", 7, 2**70, 1.5, True, None, b"\x00", [1, [2]], {"a": {"b": [None, 2**70]}}, [float("inf")], []]
)
def test_every_value_comes_back(value: Any) -> None:
    copy = Copy(value, 3)
    loaded = copy.load()
    assert (loaded, type(loaded), copy.version) == (value, type(value), 3)


@pytest.mark.parametrize("value", [{"a": [1]}, [float("inf"), [1]]])
def test_callers_do_not_share_what_they_can_change(value: Any) -> None:
    copy = Copy(value, 1)
    first = copy.load()
    first["a" if isinstance(first, dict) else 1].append(2)
    assert copy.load() == value != first


def test_readers_in_threads_while_copies_come_and_go() -> None:
    """Without a lock: no error, no value of another key, no value that was dropped before the read began."""
    held = holding(max_items=50)
    keys = [f"key-{number}" for number in range(100)]
    #: version that a read which begins now may not go below
    oldest = dict.fromkeys(keys, 0)
    wrong: list[Any] = []
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            for key in keys:
                least = oldest[key]
                copy = held.read(key)
                if copy is not None and (copy.load()[0] != key or copy.version < least):
                    wrong.append((key, copy.load(), least))

    threads = [threading.Thread(target=read) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for version in range(1, 100):
            held.ask(version)
            held.granted(version, 10_000)
            for key in keys:
                held.drop([key], version)
                oldest[key] = version
                held.install(key, Copy([key], version))
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert not wrong[:3]
    assert held.hits > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_items": 0},
        {"max_items": True},
        {"max_bytes": -1},
        {"max_items": 1.5},
        {"lease_ms": 0},
        {"lease_ms": 60_001},
        {"lease_ms": "1"},
    ],
)
def test_a_wrong_setting(wrong: Any) -> None:
    with pytest.raises(WrongUse, match=next(iter(wrong))):
        NearCache(**wrong)


def test_what_can_be_passed() -> None:
    given = NearCache(max_items=5)
    assert [NearCache.read(one) for one in (None, False, True, given)] == [None, None, NearCache(), given]
    with pytest.raises(WrongUse, match="near_cache"):
        NearCache.read({"max_items": 5})  # type: ignore[arg-type]
