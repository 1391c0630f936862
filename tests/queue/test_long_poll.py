"""Consumes that wait."""

from __future__ import annotations

import pytest

from dss_queue.core.commands import Consume


def wait(desk, timeout_ms=1000, **fields):
    assert desk.consume(timeout_ms=timeout_ms, **fields) is None
    return desk.origin


def answer(desk, waiter):
    return [message["value"] for message in desk.answers[waiter].body["messages"]]


def test_a_waiting_consumer_gets_what_is_published(desk):
    waiter = wait(desk)
    desk.publish("a")
    assert answer(desk, waiter) == [b'"a"']


def test_first_come_first_served(desk):
    waiters = [wait(desk) for _ in range(3)]
    desk.publish("a")
    desk.publish("b", "c")
    assert [answer(desk, waiter) for waiter in waiters] == [[b'"a"'], [b'"b"'], [b'"c"']]


def test_a_batch_goes_to_one_waiter_that_asked_for_one(desk):
    waiter = wait(desk, count=10)
    desk.publish(1, 2, 3)
    assert answer(desk, waiter) == [b"1", b"2", b"3"]


def test_every_group_has_its_own_waiters(desk):
    waiters = [wait(desk, group=group) for group in ("one", "two")]
    desk.publish("a")
    assert [answer(desk, waiter) for waiter in waiters] == [[b'"a"'], [b'"a"']]


def test_a_wait_that_times_out_gives_the_reason(desk):
    waiter = wait(desk, timeout_ms=100)
    desk.pass_ms(99)
    assert waiter not in desk.answers
    assert desk.broker.next_deadline_ms() == desk.at_ms + 1
    desk.pass_ms(1)
    assert desk.answers[waiter].body == {"messages": [], "empty_reason": "no_messages"}
    desk.publish("a")
    assert desk.values() == ["a"]


@pytest.mark.parametrize("how", ["nack", "timeout", "delay", "ack of the key", "gone"])
def test_every_way_to_become_ready_wakes_the_waiter(desk, how):
    if how == "delay":
        desk.publish("a", delay_ms=50)
        waiter = wait(desk)
        desk.pass_ms(50)
    else:
        ids = desk.publish("x", "a", key="k") if how == "ack of the key" else desk.publish("a")
        desk.take(visibility_ms=50)
        holder = desk.origin
        waiter = wait(desk)
        if how == "nack":
            desk.nack(ids[0])
        elif how == "timeout":
            desk.pass_ms(50)
        elif how == "gone":
            desk.cancel(holder)
        else:
            desk.ack(ids[0])
    assert answer(desk, waiter) == [b'"a"']


def test_a_waiter_that_hung_up_gets_nothing(desk):
    gone, waiter = wait(desk), wait(desk)
    desk.cancel(gone)
    desk.publish("a")
    assert gone not in desk.answers
    assert answer(desk, waiter) == [b'"a"']


def test_messages_of_a_consumer_that_hung_up_come_back_without_counting_an_attempt(desk):
    """The connection broke before its answer was received."""
    waiter = wait(desk)
    desk.publish("a")
    assert answer(desk, waiter) == [b'"a"']
    desk.cancel(waiter)
    (again,) = desk.take()
    assert again["attempt"] == 1


def test_hanging_up_gives_back_only_what_is_still_in_flight(desk):
    ids = desk.publish("a", "b")
    desk.take(2)
    holder = desk.origin
    desk.ack(ids[0])
    desk.cancel(holder)
    assert desk.values(9) == ["b"]


def test_a_late_hang_up_does_not_take_a_message_from_another_consumer(desk):
    desk.publish("a")
    desk.take(visibility_ms=10)
    gone = desk.origin
    desk.pass_ms(10)
    desk.take()
    desk.cancel(gone)
    assert desk.why_empty() == "all_in_flight"


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
