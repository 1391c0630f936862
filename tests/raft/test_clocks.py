"""Stamps advance at the speed of time, whatever happens to the wall clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dss_raft.replication.clocks import PULL, AppliedClock, StampClock

HOUR_MS = 3_600_000


class Clocks:
    """A wall clock that can be set, and a steady clock."""

    def __init__(self) -> None:
        self.wall_ms, self.steady_s = 1_000_000_000, 5.0
        self.stamps = StampClock(lambda: self.wall_ms, lambda: self.steady_s)
        self.told = AppliedClock(lambda: self.wall_ms, lambda: self.steady_s)

    def passes(self, ms: int) -> None:
        self.wall_ms += ms
        self.steady_s += ms / 1000

    def stamp(self, term: int = 1, applied_ms: int = 0) -> int:
        return self.stamps.now_ms(term, applied_ms)


@pytest.fixture
def clocks():
    return Clocks()


@pytest.mark.parametrize("jump_ms", [HOUR_MS, -HOUR_MS], ids=["forward", "back"])
def test_a_wall_clock_jump_neither_expires_nor_prolongs_leases(clocks, jump_ms):
    began = clocks.stamp()
    clocks.wall_ms += jump_ms
    clocks.passes(10_000)
    assert 9_950 <= clocks.stamp() - began <= 10_050


def test_stamps_converge_to_the_wall_clock(clocks):
    clocks.stamp()
    clocks.wall_ms += 5_000
    for _ in range(2_000):
        clocks.passes(1_000)
        stamp = clocks.stamp()
    assert stamp == pytest.approx(clocks.wall_ms, abs=1)


def test_the_stamps_of_a_term_start_at_the_wall_clock(clocks):
    clocks.stamp(term=1)
    clocks.wall_ms += HOUR_MS
    clocks.stamp(term=1)
    assert clocks.stamp(term=2) == clocks.wall_ms


def test_a_new_leader_continues_the_stamps_of_a_leader_whose_clock_was_ahead(clocks):
    """Its own wall clock is an hour behind applied time: time must not stop until the wall clock has caught up."""
    applied_ms = clocks.wall_ms + HOUR_MS
    assert clocks.stamp(term=2, applied_ms=applied_ms) == applied_ms
    clocks.passes(10_000)
    assert clocks.stamp(term=2, applied_ms=applied_ms) >= applied_ms + 9_950


def test_no_stamp_is_earlier_than_applied_time_even_if_it_is_applied_late(clocks):
    first = clocks.stamp(term=2)
    applied_ms = first + HOUR_MS
    clocks.passes(5)
    assert clocks.stamp(term=2, applied_ms=applied_ms) == applied_ms
    clocks.passes(1_000)
    assert clocks.stamp(term=2, applied_ms=applied_ms) >= applied_ms + 990


@given(st.lists(st.tuples(st.integers(0, 100_000), st.integers(-HOUR_MS, HOUR_MS)), max_size=30))
def test_within_a_term_stamps_follow_the_steady_clock(steps):
    clocks = Clocks()
    first = before = clocks.stamp()
    passed_ms = 0
    for ms, jump_ms in steps:
        clocks.wall_ms += jump_ms
        clocks.passes(ms)
        passed_ms += ms
        stamp = clocks.stamp()
        assert stamp >= before
        assert abs(stamp - first - passed_ms) <= passed_ms * PULL + 2
        before = stamp


def test_applied_time_is_estimated_from_the_latest_stamp_and_not_from_the_wall_clock(clocks):
    assert clocks.told.now_ms() == clocks.wall_ms, "nothing was applied yet"
    clocks.told.applied(5_000)
    clocks.wall_ms += HOUR_MS
    clocks.passes(250)
    clocks.told.applied(5_000)
    assert clocks.told.now_ms() == 5_250
    clocks.told.applied(5_400)
    assert clocks.told.now_ms() == 5_400
