"""A stall: something waits, and neither commits nor applying make progress. A lag: old commits are not applied."""

from __future__ import annotations

from dss_raft.stall_watch import LagWatch, StallWatch


def stalled(ticks: list[tuple[int, int, bool]], ticks_max: int = 3) -> list[bool]:
    watch = StallWatch(ticks_max)
    seen = []
    for commit, applied, is_pending in ticks:
        watch.tick(commit, applied, is_pending)
        seen.append(watch.is_stalled)
    return seen


def test_nothing_waits():
    assert not any(stalled([(5, 5, False)] * 20))


def test_something_waits_and_nothing_is_committed():
    assert stalled([(5, 5, True)] * 6) == [False, False, False, False, True, True]


def test_something_waits_and_nothing_is_applied():
    assert stalled([(9, 5, True)] * 6)[-1]


def test_progress_of_either_ends_it():
    assert not any(stalled([(commit, 5, True) for commit in range(20)]))
    assert not any(stalled([(20, applied, True) for applied in range(20)]))
    assert stalled([(5, 5, True)] * 6 + [(6, 5, True)])[-2:] == [True, False]


def test_it_ends_when_nothing_waits_any_longer():
    assert stalled([(5, 5, True)] * 6 + [(5, 5, False)])[-2:] == [True, False]


def lagging(ticks: list[tuple[int, int]], ticks_max: int = 3) -> list[bool]:
    watch = LagWatch(ticks_max)
    seen = []
    for commit, applied in ticks:
        watch.tick(commit)
        seen.append(watch.is_lagging(applied))
    return seen


def test_a_node_that_stays_a_little_behind_does_not_lag():
    assert not any(lagging([(5, 5)] + [(commit, commit - 10) for commit in range(20, 200, 5)]))


def test_a_node_that_is_far_behind_lags_until_it_is_closer():
    assert lagging([(5, 5)] + [(100, 6)] * 5 + [(110, 100), (120, 120)]) == [False] * 3 + [True] * 3 + [False, False]
