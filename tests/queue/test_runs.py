"""`max_per_key`: several messages of one routing key go to one consumer together, a run. The order of the key is kept."""

from __future__ import annotations

import pytest

from dss_queue.core.commands import PeekQuery
from dss_queue.core.inspection import peek, stats


def values(messages):
    return [int(message["value"]) for message in messages]


def run(desk, count=10, per_key=10, **fields):
    return desk.take(count, max_per_key=per_key, **fields)


def test_a_run_is_delivered_in_order(desk):
    desk.publish(*range(30), key="k")
    assert values(run(desk)) == list(range(10))
    assert desk.why_empty(max_per_key=10) == "key_blocked"


def test_by_default_one_message_of_a_key_is_in_flight(desk):
    desk.publish(1, 2, key="k")
    assert values(desk.take(10)) == [1]


def test_a_run_ends_at_max_per_key_and_other_messages_follow(desk):
    desk.publish(1, 2, 3, key="k")
    desk.publish(4, 5, key="other")
    desk.publish(6)
    assert values(run(desk, per_key=2)) == [1, 2, 4, 5, 6]


def test_the_next_run_comes_when_all_of_the_first_are_done(desk):
    ids = desk.publish(1, 2, 3, key="k")
    run(desk, 2)
    desk.ack(ids[0])
    assert desk.why_empty(max_per_key=10) == "key_blocked"
    desk.ack(ids[1])
    assert values(run(desk)) == [3]


def test_messages_of_a_run_may_be_acked_in_any_order(desk):
    ids = desk.publish(1, 2, 3, 4, key="k")
    run(desk, 3)
    for msg_id in (ids[2], ids[1]):
        assert desk.ack(msg_id).body["acked"]
        assert not desk.ack(msg_id).body["acked"], "a repeat"
    assert stats(desk.broker, "t", desk.at_ms)["groups"][0]["ready"] == 1
    desk.restart()
    desk.ack(ids[0])
    assert values(run(desk)) == [4]
    assert stats(desk.broker, "t", desk.at_ms)["messages"] == 1


def test_a_nack_takes_along_what_follows(desk):
    ids = desk.publish(1, 2, 3, key="k")
    run(desk)
    desk.nack(ids[1])
    assert desk.why_empty(max_per_key=10) == "key_blocked", "the first one is still in flight"
    desk.ack(ids[0])
    again = run(desk)
    assert [(int(one["value"]), one["attempt"]) for one in again] == [(2, 2), (3, 1)]


def test_a_consumer_can_still_ack_what_went_back_behind_a_nack(desk):
    ids = desk.publish(1, 2, 3, key="k")
    receipts = [one["receipt"] for one in run(desk)]
    desk.nack(ids[0], delay_ms=100)
    assert desk.ack(ids[1], receipts[1]).body["acked"]
    assert desk.why_empty(max_per_key=10) == "delayed"
    desk.pass_ms(100)
    assert values(run(desk)) == [1, 3]


def test_after_a_timeout_all_that_is_late_comes_again_and_counts(desk):
    ids = desk.publish(1, 2, 3, key="k")
    run(desk, visibility_ms=1000)
    desk.extend(ids[2], 5000)
    desk.pass_ms(1000)
    assert [(int(one["value"]), one["attempt"]) for one in run(desk)] == [(1, 2), (2, 2), (3, 1)]
    history = peek(desk.broker, PeekQuery(topic="t", group="g"), desk.at_ms)
    assert [one["history"][0]["reason"] for one in history] == ["timeout", "timeout", "behind"]


def test_a_dead_letter_leaves_the_rest_of_the_run_with_its_consumer(desk):
    ids = desk.publish(1, 2, 3, key="k")
    run(desk)
    assert desk.nack(ids[1], dead=True).body["dead"]
    assert desk.ack(ids[2]).body["acked"]
    desk.redrive()
    assert desk.why_empty(max_per_key=10) == "key_blocked"
    desk.ack(ids[0])
    assert values(run(desk)) == [2]


def test_a_consumer_that_hangs_up_gives_the_run_back(desk):
    desk.publish(1, 2, 3, key="k")
    run(desk)
    desk.cancel(desk.origin)
    assert [(int(one["value"]), one["attempt"]) for one in run(desk)] == [(1, 1), (2, 1), (3, 1)]


def test_a_run_ends_before_a_delayed_message(desk):
    ids = desk.publish(1, key="k") + desk.publish(2, key="k", delay_ms=100) + desk.publish(3, key="k")
    assert values(run(desk)) == [1]
    desk.ack(ids[0])
    desk.pass_ms(100)
    assert values(run(desk)) == [2, 3]


def test_a_waiting_consume_gets_a_run(desk):
    assert desk.consume(10, max_per_key=10, timeout_ms=1000) is None
    waiter = desk.origin
    desk.restart()
    desk.publish(1, 2, key="k")
    assert values(desk.answers[waiter].body["messages"]) == [1, 2]


def test_a_repeated_attempt_gets_the_same_run(desk):
    desk.publish(1, 2, 3, key="k")
    first = run(desk, 2, attempt_id="a")
    assert [one["receipt"] for one in run(desk, 2, attempt_id="a")] == [one["receipt"] for one in first]


def test_each_group_has_its_own_runs(desk):
    ids = desk.publish(1, 2, 3, key="k")
    desk.put_group("other")
    run(desk)
    desk.ack(ids[1])
    assert values(run(desk, group="other")) == [1, 2, 3]
    for msg_id in ids:
        desk.ack(msg_id, group="other")
    assert stats(desk.broker, "t", desk.at_ms)["messages"] == 3
    desk.delete_group("other")
    desk.ack(ids[0])
    assert stats(desk.broker, "t", desk.at_ms)["messages"] == 1


def test_retention_keeps_the_order_of_a_run_in_flight(desk):
    desk.settings(retention_ms=10_000)
    ids = desk.publish(1, 2, 3, key="k")
    run(desk, visibility_ms=60_000)
    desk.pass_ms(20_000)
    assert stats(desk.broker, "t", desk.at_ms)["messages"] == 0, "only the group still has them"
    desk.restart()
    desk.ack(ids[1])
    desk.nack(ids[0])
    assert values(run(desk)) == [1, 3]


@pytest.mark.parametrize("is_in_flight", [True, False])
def test_retention_ends_a_key_of_which_the_head_is_left(desk, is_in_flight):
    desk.settings(retention_ms=10_000)
    ids = desk.publish(1, 2, key="k")
    receipts = [one["receipt"] for one in run(desk, visibility_ms=60_000)]
    if not is_in_flight:
        desk.nack(ids[0], delay_ms=60_000)
    assert desk.ack(ids[1], receipts[1]).body["acked"]
    desk.pass_ms(20_000)
    assert stats(desk.broker, "t", desk.at_ms)["messages"] == 0
    if is_in_flight:
        assert desk.ack(ids[0]).body["acked"]
    desk.publish(3, key="k")
    assert values(run(desk)) == [3]


def test_a_purge_ends_runs(desk):
    desk.publish(1, 2, key="k")
    run(desk)
    desk.purge()
    desk.publish(3, 4, key="k")
    assert values(run(desk)) == [3, 4]


@pytest.mark.parametrize("per_key", [1, 3])
def test_messages_without_a_key_are_no_run(desk, per_key):
    ids = desk.publish(1, 2, 3)
    run(desk, per_key=per_key)
    desk.nack(ids[0])
    assert values(run(desk)) == [1]


def test_the_first_delivery_is_remembered(desk):
    desk.publish(1)
    begun = desk.at_ms
    assert desk.take()[0]["first_delivered_ms"] == begun
    desk.cancel(desk.origin)
    desk.pass_ms(10)
    first = desk.take(visibility_ms=1000)[0]
    assert first["first_delivered_ms"] == begun + 10, "a delivery that no consumer got does not count"
    desk.pass_ms(1000)
    desk.restart()
    again = desk.take()[0]
    assert (again["first_delivered_ms"], again["attempt"]) == (begun + 10, 2)
