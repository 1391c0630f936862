"""Consumes that wait."""

from __future__ import annotations

from dss_queue.core.commands import Consume


def wait(desk, timeout_ms=1000, **fields):
    assert desk.consume(timeout_ms=timeout_ms, **fields) is None
    return desk.origin


def answer(desk, waiter):
    return [message["value"] for message in desk.answers[waiter].body["messages"]]


def test_first_come_first_served(desk):
    waiters = [wait(desk) for _ in range(3)]
    desk.publish("a")
    desk.publish("b", "c")
    assert [answer(desk, waiter) for waiter in waiters] == [[b'"a"'], [b'"b"'], [b'"c"']]


def test_a_wait_that_times_out_gives_the_reason(desk):
    waiter = wait(desk, timeout_ms=100)
    desk.pass_ms(99)
    assert waiter not in desk.answers
    assert desk.broker.next_deadline_ms() == desk.at_ms + 1
    desk.pass_ms(1)
    assert desk.answers[waiter].body == {"messages": [], "empty_reason": "no_messages"}
    desk.publish("a")
    assert desk.values() == ["a"]


def test_the_waiters_of_a_restarted_node_are_dropped(desk):
    lost, waiter = wait(desk, node="n2"), wait(desk, node="n1")
    desk.broker.node_restarted("n2", desk.at_ms, desk.index)
    desk.publish("a")
    assert lost not in desk.answers
    assert answer(desk, waiter) == [b'"a"']


def test_a_late_stamp_serves_waiters_before_it_times_them_out(desk):
    """After a time without a leader, the message and the wait are both due at the next stamp."""
    desk.publish("a")
    desk.take(visibility_ms=50)
    waiter = wait(desk, timeout_ms=100)
    desk.pass_ms(5000)
    assert answer(desk, waiter) == [b'"a"']


def test_ten_thousand_idle_polls(desk):
    polls = [Consume(topic="t", group=f"g{n % 10}", timeout_ms=20_000, visibility_ms=10) for n in range(10_000)]
    assert desk.entry(*polls) == [None] * 10_000
    desk.publish(*range(500))
    assert len(desk.answers) == 5000
    desk.pass_ms(20_000)
    assert len(desk.answers) == 10_000
    assert not desk.broker.callers.waiters


def test_ended_waits_take_no_memory(desk):
    desk.settings()
    held = wait(desk, timeout_ms=1000)
    for round_ in range(5):
        gone = wait(desk, timeout_ms=20_000)
        for _ in range(3):
            wait(desk, timeout_ms=10)
        desk.cancel(gone)
        desk.pass_ms(10)
        assert round_ < 4 or desk.broker.callers.waiters.keys() == {held}
    desk.pass_ms(1000)
    [group] = desk.broker.topics["t"].groups.values()
    assert not group.waiters, "a topic without publishes does not grow with every long poll"
    last = wait(desk)
    desk.publish("a")
    assert answer(desk, last) == [b'"a"']
