"""Stamps advance at the speed of time, whatever one wall clock shows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dss_raft.replication.clocks import (
    AGREE_MS,
    FIRST_STAMP_WAIT_S,
    HEARD_FOR_S,
    PULL,
    AppliedClock,
    MemberClocks,
    StampClock,
    agreement,
)

HOUR_MS = 3_600_000
EIGHT_DAYS_MS = 8 * 24 * HOUR_MS
VOTERS = ("a", "b", "c")


class Clocks:
    """The clocks of node a, whose wall clock can be set, and the wall clocks of its peers."""

    def __init__(self) -> None:
        self.wall_ms, self.steady_s = 1_000_000_000_000, 5.0
        self.off_ms = {"b": 0, "c": 0}
        self.members = MemberClocks("a", lambda: self.wall_ms, lambda: self.steady_s)
        self.told = AppliedClock(lambda: self.wall_ms, lambda: self.steady_s)
        self.stamps = StampClock(self.members, self.told, lambda: self.steady_s)
        self.true_ms = self.wall_ms

    def passes(self, ms: int) -> None:
        self.wall_ms += ms
        self.true_ms += ms
        self.steady_s += ms / 1000

    def hear(self, *peers: str) -> None:
        for peer in peers or ("b", "c"):
            self.members.heard(peer, self.true_ms + self.off_ms[peer])
        self.members.look(VOTERS)

    def stamp(self, term: int = 1, applied_ms: int = 0) -> int:
        return self.stamps.now_ms(term, applied_ms)


@pytest.fixture
def clocks():
    return Clocks()


WRONG = pytest.mark.parametrize("wrong_ms", [EIGHT_DAYS_MS, -EIGHT_DAYS_MS], ids=["ahead", "behind"])


@WRONG
def test_setting_the_leaders_wall_clock_does_not_change_its_stamps(clocks, wrong_ms):
    clocks.hear()
    began = clocks.stamp()
    clocks.wall_ms += wrong_ms
    for _ in range(100):
        clocks.passes(1_000)
        clocks.hear()
        stamp = clocks.stamp()
    assert stamp - began == pytest.approx(100_000, abs=1)
    assert clocks.members.off_by_ms == wrong_ms


@WRONG
def test_a_new_leader_with_a_wrong_clock_goes_on_from_applied_time(clocks, wrong_ms):
    applied_ms = clocks.true_ms
    clocks.told.applied(applied_ms)
    clocks.wall_ms += wrong_ms
    clocks.passes(2_000)
    clocks.hear()
    assert clocks.stamp(term=2, applied_ms=applied_ms) == applied_ms + 2_000
    clocks.hear("b")
    clocks.passes(10_000)
    assert clocks.stamp(term=2, applied_ms=applied_ms) == pytest.approx(applied_ms + 12_000, abs=1)


@WRONG
def test_without_a_majority_that_agrees_stamps_follow_the_steady_clock_alone(clocks, wrong_ms):
    clocks.off_ms["b"] = wrong_ms
    clocks.told.applied(clocks.true_ms - HOUR_MS)
    clocks.hear("b")
    assert clocks.members.agreement is None
    assert clocks.members.off_by_ms is None
    began = clocks.stamp(applied_ms=clocks.true_ms - HOUR_MS)
    assert began == clocks.true_ms - HOUR_MS
    clocks.passes(100_000)
    clocks.hear("b")
    assert clocks.stamp(applied_ms=began) == pytest.approx(began + 100_000, abs=1)


@pytest.mark.parametrize("lag_ms", [20_000, -20_000], ids=["behind", "ahead"])
def test_stamps_converge_to_the_majoritys_wall_clock(clocks, lag_ms):
    clocks.told.applied(clocks.true_ms - lag_ms)
    clocks.wall_ms += HOUR_MS
    clocks.stamp(applied_ms=clocks.true_ms - lag_ms)
    for _ in range(5_000):
        clocks.passes(1_000)
        clocks.hear()
        stamp = clocks.stamp(applied_ms=1)
    assert stamp == pytest.approx(clocks.true_ms, abs=1)


def test_no_stamp_is_earlier_than_applied_time_even_if_it_is_applied_late(clocks):
    clocks.hear()
    first = clocks.stamp(term=2)
    applied_ms = first + HOUR_MS
    clocks.passes(5)
    assert clocks.stamp(term=2, applied_ms=applied_ms) == applied_ms
    clocks.passes(1_000)
    assert clocks.stamp(term=2, applied_ms=applied_ms) >= applied_ms + 990


@given(st.lists(st.tuples(st.integers(0, 100_000), st.integers(-EIGHT_DAYS_MS, EIGHT_DAYS_MS), st.booleans()), max_size=30))
def test_within_a_term_stamps_follow_the_steady_clock(steps):
    """Whatever all the wall clocks show."""
    clocks = Clocks()
    first = before = clocks.stamp()
    passed_ms = 0
    for ms, jump_ms, of_all in steps:
        clocks.wall_ms += jump_ms
        clocks.off_ms = {"b": jump_ms, "c": jump_ms if of_all else 0}
        clocks.passes(ms)
        clocks.hear()
        passed_ms += ms
        stamp = clocks.stamp()
        assert stamp >= before
        assert abs(stamp - first - passed_ms) <= passed_ms * PULL + 2
        before = stamp


# ---- the first stamp of a cluster


@WRONG
def test_the_first_stamp_of_a_cluster_is_what_a_majority_agrees_on(clocks, wrong_ms):
    clocks.wall_ms += wrong_ms
    clocks.hear()
    assert clocks.stamps.may_begin()
    assert clocks.stamp() == clocks.true_ms


@WRONG
def test_the_first_stamp_waits_a_little_for_a_majority_and_is_the_latest_clock_otherwise(clocks, wrong_ms):
    """Too late a start harms nothing. Too early a one would be corrected by a jump, which ends what was begun before it."""
    clocks.off_ms["b"] = wrong_ms
    clocks.hear("b")
    assert not clocks.stamps.may_begin()
    clocks.passes(int(FIRST_STAMP_WAIT_S * 1000))
    clocks.hear("b")
    assert clocks.stamps.may_begin()
    assert clocks.stamp() == clocks.true_ms + max(0, wrong_ms)


# ---- what a majority agrees on


@pytest.mark.parametrize(
    ("offsets", "majority", "expected"),
    [
        ({}, 1, None),
        ({"a": 5}, 1, (5, ("a",))),
        ({"a": 5}, 2, None),
        ({"a": 0, "b": AGREE_MS}, 2, (0, ("a", "b"))),
        ({"a": 0, "b": AGREE_MS + 1}, 2, None),
        ({"a": EIGHT_DAYS_MS, "b": 10, "c": 20}, 2, (10, ("b", "c"))),
        ({"a": 30, "b": 10, "c": 20}, 2, (20, ("a", "b", "c"))),
        ({"a": 0, "b": 50_000, "c": 70_000}, 2, (50_000, ("b", "c"))),
        ({"a": 0, "b": 1, "c": EIGHT_DAYS_MS, "d": EIGHT_DAYS_MS}, 3, None),
        ({"a": 0, "b": 1, "c": 2, "d": EIGHT_DAYS_MS, "e": -EIGHT_DAYS_MS}, 3, (1, ("a", "b", "c"))),
    ],
)
def test_the_clocks_of_a_majority(offsets, majority, expected):
    found = agreement(offsets, majority)
    assert (found and (found.offset_ms, found.nodes)) == expected


def test_clocks_of_nodes_without_a_vote_do_not_count(clocks):
    clocks.members.heard("d", clocks.true_ms)
    clocks.hear("b")
    assert clocks.members.agreement.nodes == ("a", "b")
    clocks.members.look(("b", "c", "d"))
    assert clocks.members.agreement.nodes == ("b", "d")


def test_a_clock_that_was_not_heard_of_for_a_while_does_not_count(clocks):
    clocks.hear("b")
    clocks.passes(int(HEARD_FOR_S * 1000))
    clocks.members.look(VOTERS)
    assert clocks.members.agreement is not None
    clocks.passes(1)
    clocks.members.look(VOTERS)
    assert clocks.members.agreement is None


# ---- the estimate of applied time


def test_applied_time_is_estimated_from_the_latest_stamp_and_not_from_the_wall_clock(clocks):
    assert clocks.told.now_ms() == clocks.wall_ms, "nothing was applied yet"
    clocks.told.applied(5_000)
    clocks.wall_ms += HOUR_MS
    clocks.passes(250)
    clocks.told.applied(5_000)
    assert clocks.told.now_ms() == 5_250
    clocks.told.applied(5_400)
    assert clocks.told.now_ms() == 5_400
