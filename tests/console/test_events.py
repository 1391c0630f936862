"""The events of all nodes as lines, and what they say about elections."""

from __future__ import annotations

from dss_console.live.events import EVENTS_SHOWN_MAX, Elections, elections, event_lines
from dss_console.live.recorder import Recorded


def told(*events: tuple[int, str, str, int], first_seq: int = 1) -> list[Recorded]:
    """From (ms, kind, subject, term)."""
    return [
        Recorded(seq, at_ms, kind, subject, "node-2" if kind == "vote" else "", term=term)
        for seq, (at_ms, kind, subject, term) in enumerate(events, first_seq)
    ]


def test_the_leader_that_a_node_finds_when_it_starts_was_elected_before() -> None:
    """Alone, it knows neither when, nor how many elections there were."""
    own = told((1000, "started", "node-1", 0), (1200, "leader", "node-2", 6), (5000, "leader", "node-3", 7))
    known = elections({"node-1": own}, 1000)
    assert known.found == {("node-2", 6): 1200}
    assert known.elected == {("node-3", 7): 5000}
    assert known.known_since_ms == 1000


def test_others_that_have_run_for_longer_know_more() -> None:
    own = told((9000, "started", "node-1", 0), (9200, "leader", "node-2", 6))
    other = told((100, "started", "node-2", 0), (300, "leader", "node-1", 5), (7000, "leader", "node-2", 6))
    known = elections({"node-1": own, "node-2": other}, 9000)
    assert known.elected == {("node-2", 6): 7000}
    assert known.known_since_ms == 100
    assert (known.count(6999), known.count(7001)) == (1, 0)


def test_a_node_has_seen_the_election_that_it_won_or_was_asked_in() -> None:
    assert elections({"a": told((1, "started", "a", 0), (5, "leader", "a", 1))}, 1).elected == {("a", 1): 5}
    voter = told((1, "started", "a", 0), (4, "vote", "a", 1), (5, "leader", "b", 1))
    assert elections({"a": voter}, 1).elected == {("b", 1): 5}


def test_a_node_whose_first_events_are_missing_had_found_its_leader_by_then() -> None:
    assert elections({"a": told((50, "link_up", "a", 0), (60, "leader", "b", 3), first_seq=70)}, 100).elected == {("b", 3): 60}


def test_a_second_start_of_a_node_finds_a_leader_again() -> None:
    twice = told((1, "started", "b", 0), (2, "leader", "b", 1)) + told((90, "started", "b", 0), (95, "leader", "a", 4))
    known = elections({"b": twice}, 1)
    assert known.found == {("a", 4): 95}


def test_what_was_applied_again_is_shown_where_it_happened_and_as_earlier() -> None:
    events = told(
        (5000, "started", "node-1", 0), (1000, "deadlock", "bob", 0), (5200, "leader", "node-2", 3), (6000, "deadlock", "eve", 0)
    )
    lines = event_lines({"node-1": events}, Elections(5000), "node-1", 5000)
    assert [(line.at_ms, line.subject) for line in lines] == [(6000, "eve"), (5200, "node-2"), (5000, "node-1"), (1000, "bob")]
    assert lines[3].text.endswith("(before node-1 started)")
    assert [line.level for line in lines] == ["warn", "info", "info", "info"]
    assert lines[1].text == "node-1 learns that node-2 leads in term 3", "it was not elected at that time"


def test_many_that_were_applied_again_hide_nothing_that_is_new() -> None:
    replayed = [(10 + number, "deadlock", "bob", 0) for number in range(500)]
    events = told((5000, "started", "node-1", 0), *replayed)
    assert event_lines({"node-1": events}, Elections(5000), "node-1", 5000)[0].kind == "started"


def test_each_event_of_the_log_and_each_leader_is_shown_once() -> None:
    one = told((1, "leader", "node-1", 2), (5, "dead_letter", "orders", 0))
    other = told((2, "leader", "node-1", 2), (6, "dead_letter", "orders", 0), (7, "link_down", "node-2", 0))
    both = {"node-1": one, "node-2": other}
    lines = event_lines(both, elections(both, 0), "node-2", 0)
    assert [(line.node, line.kind) for line in lines] == [
        ("node-2", "link_down"),
        ("node-2", "dead_letter"),
        ("node-1", "leader"),
    ]
    assert lines[2].text == "node-1 leads in term 2"


def test_the_lines_are_bounded() -> None:
    many = told(*((number, "link_up", "a", 0) for number in range(EVENTS_SHOWN_MAX + 5)))
    assert len(event_lines({"a": many}, Elections(0), "a", 0)) == EVENTS_SHOWN_MAX
