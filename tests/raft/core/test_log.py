"""The log compared with a naive model, and its marks: committed, handed to the store, durable."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raft_harness import entry

from dss_raft.core.errors import InvariantViolation
from dss_raft.core.log import RaftLog, well_formed

terms = st.lists(st.integers(1, 4), max_size=12).map(sorted)


def log_of(log_terms: list[int], base: int = 0, base_term: int = 0) -> RaftLog:
    return RaftLog(base, base_term, [entry(base + i + 1, t, b"x" * i) for i, t in enumerate(log_terms)])


def held(log: RaftLog) -> list[tuple[int, int]]:
    return [(e.index, e.term) for e in log.slice(log.first_index, log.last_index)]


@given(terms, st.integers(0, 15), st.integers(0, 5))
def test_the_conflict_hint_is_the_last_place_that_can_agree(log_terms: list[int], index: int, term: int) -> None:
    log = log_of(log_terms)
    numbered = [(0, 0), *((i + 1, t) for i, t in enumerate(log_terms))]
    assert log.last_with_term_at_most(index, term) == max(i for i, t in numbered if i <= index and t <= term)


@given(terms, st.integers(1, 12), st.integers(1, 12), st.integers(1, 40))
def test_a_batch_keeps_both_limits_and_is_never_empty(log_terms: list[int], first: int, entries_max: int, bytes_max: int) -> None:
    log = log_of(log_terms)
    if first > log.last_index:
        return
    end = log.batch_end(first, entries_max, bytes_max)
    assert first <= end <= min(log.last_index, first + entries_max - 1)
    assert end == first or log.size(first - 1, end) <= bytes_max
    if end < min(log.last_index, first + entries_max - 1):
        assert log.size(first - 1, end + 1) > bytes_max


@given(terms, st.integers(0, 12), st.integers(0, 12))
def test_sizes_survive_compaction(log_terms: list[int], after: int, to: int) -> None:
    log = log_of(log_terms)
    to, after = min(to, log.last_index), min(after, log.last_index)
    log.commit_to(log.last_index)
    log.compact(after)
    assert log.size(after, to) == sum(range(after, to))
    assert log.first_index == after + 1


@settings(max_examples=200)
@given(terms, terms, st.integers(0, 12))
def test_entries_that_are_held_already_are_told_apart_from_new_ones(mine: list[int], theirs: list[int], common: int) -> None:
    """Two logs that keep the log matching property: a common prefix, then different terms."""
    common = min(common, len(mine), len(theirs))
    theirs = mine[:common] + [t + 4 for t in theirs[common:]]
    if not theirs:
        return
    assert log_of(mine).conflict([entry(i + 1, t) for i, t in enumerate(theirs)]) == common


def test_a_truncation_lowers_durable_immediately_even_during_a_write() -> None:
    """The ABA race of etcd's async_storage_writes_append_aba_race: a write must not make removed entries durable."""
    log = log_of([1, 1, 1])
    log.append([entry(4, 1), entry(5, 1)])
    assert log.hand_over() == (0, [entry(4, 1), entry(5, 1)])
    log.truncate(3)
    log.append([entry(3, 2), entry(4, 2), entry(5, 2)])
    assert log.durable == 2
    log.written()
    assert log.durable == 2
    truncate_from, entries = log.hand_over()
    assert (truncate_from, [e.index for e in entries]) == (3, [3, 4, 5])
    log.written()
    assert log.durable == 5


def test_entries_of_an_older_term_may_replace_truncated_ones() -> None:
    """Figure 7 (f): the new leader's log may hold an older term where the follower has a newer one that was never committed."""
    log = log_of([1, 3, 3])
    log.truncate(2)
    assert (log.last_index, log.last_term) == (1, 1)
    log.append([entry(2, 2)])
    assert held(log) == [(1, 1), (2, 2)]


def test_a_snapshot_replaces_the_whole_log_of_which_nothing_stays_durable() -> None:
    log = log_of([1, 1, 1])
    log.commit_to(2)
    log.restore(9, 3)
    assert (log.last_index, log.last_term, log.committed, log.durable) == (9, 3, 9, 2)
    assert log.hand_over() == (1, [])
    log.written()
    assert log.durable == 9


def test_dropped_entries_have_no_size() -> None:
    log = log_of([1, 1, 1])
    log.restore(9, 3)
    assert log.size(9, 3) == 0
    assert log.size(2, 5) == 0


@pytest.mark.parametrize(
    "break_it",
    [
        lambda log: log.truncate(2),
        lambda log: log.commit_to(1),
        lambda log: log.commit_to(9),
        lambda log: log.append([entry(5, 3)]),
        lambda log: log.append([entry(4, 1)]),
        lambda log: log.compact(3),
        lambda log: log.restore(2, 1),
        lambda log: log.slice(0, 1),
        lambda log: log.known_term(9),
    ],
    ids=["truncate", "commit back", "commit ahead", "gap", "term falls", "compact", "snapshot back", "slice", "term"],
)
def test_an_impossible_operation_stops_the_node(break_it) -> None:
    log = log_of([1, 2, 2])
    log.commit_to(2)
    with pytest.raises(InvariantViolation):
        break_it(log)


def test_a_log_with_a_gap_is_not_started_from() -> None:
    with pytest.raises(InvariantViolation):
        RaftLog(0, 0, [entry(1, 1), entry(3, 1)])


@pytest.mark.parametrize(("indexes", "fine"), [([3, 4], True), ([4, 5], False), ([3, 5], False), ([3, 3], False)])
def test_a_peers_entries_must_follow_their_predecessor(indexes: list[int], fine: bool) -> None:
    assert well_formed(2, 1, [entry(i, 1) for i in indexes]) is fine
