"""The ring of a node's rare events."""

from __future__ import annotations

from dss_console.live.recorder import EVENTS_KEPT, EVENTS_PER_FRAME_MAX, NS_PER_MS, TEXTS, Recorded, Recorder, text_of


def make_recorder() -> Recorder:
    times = iter(range(1000 * NS_PER_MS, 10**18, 10 * NS_PER_MS))
    return Recorder(lambda: next(times))


def test_events_are_numbered_and_read_from_a_number_on() -> None:
    recorder = make_recorder()
    for term in range(5):
        recorder.add("leader", "node-1", term=term)
    assert [event.seq for event in recorder.since(0)] == [1, 2, 3, 4, 5]
    assert [event.term for event in recorder.since(3)] == [3, 4]
    assert recorder.since(5) == []


def test_a_reader_from_an_earlier_start_of_the_node_gets_nothing_until_it_knows() -> None:
    recorder = make_recorder()
    recorder.add("started", "node-1")
    assert recorder.since(900) == []


def test_the_ring_and_a_frame_are_bounded() -> None:
    recorder = make_recorder()
    for _ in range(EVENTS_KEPT + 500):
        recorder.add("deadlock", "a", "k")
    events = recorder.since(0, EVENTS_KEPT * 2)
    assert len(events) == EVENTS_KEPT
    assert events[-1].seq == EVENTS_KEPT + 500
    assert [event.seq for event in recorder.since(0)] == list(range(EVENTS_KEPT + 501 - EVENTS_PER_FRAME_MAX, EVENTS_KEPT + 501))


def test_recent_events_are_counted_by_kind() -> None:
    recorder = make_recorder()
    for kind in ("leader", "dead_letter", "leader"):
        recorder.add(kind)
    assert recorder.count("leader", 0) == 2
    assert recorder.count("leader", 1011) == 1


def test_an_event_of_the_past_has_its_own_time_and_hides_no_later_one() -> None:
    """A node that starts applies its log again."""
    recorder = make_recorder()
    recorder.add("started")
    recorder.add("dead_letter", at_ms=300)
    assert recorder.since(1) == [Recorded(2, 300, "dead_letter")]
    assert (recorder.count("started", 1000), recorder.count("dead_letter", 1000), recorder.count("dead_letter", 300)) == (1, 0, 1)


def test_events_of_other_kinds_are_found_behind_those_that_are_left_out() -> None:
    recorder = make_recorder()
    recorder.add("started")
    for _ in range(2 * EVENTS_PER_FRAME_MAX):
        recorder.add("dead_letter")
    assert [event.kind for event in recorder.since(0, without=("dead_letter",))] == ["started"]


def test_every_kind_has_a_sentence_and_an_unknown_one_its_name() -> None:
    for kind in TEXTS:
        text = text_of(Recorded(1, 0, kind, "{subject}", "object", "detail", 7))
        assert "{object}" not in text
    assert text_of(Recorded(1, 0, "leader", "node-2", term=6)) == "node-2 leads in term 6"
    assert text_of(Recorded(1, 0, "of_a_later_release", "x")) == "of_a_later_release"
