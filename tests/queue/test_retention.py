"""Retention of messages that no consumer takes, and purge."""

from __future__ import annotations

import pytest

from dss_queue.core.commands import PeekQuery
from dss_queue.core.inspection import peek, stats

DAY_MS = 24 * 3600 * 1000


def dead(desk, group="g"):
    return [
        (d["value"], d["reason"]) for d in peek(desk.broker, PeekQuery(topic="t", group=group, dead=True, limit=100), desk.at_ms)
    ]


def test_without_a_group_old_messages_are_dropped_and_counted(desk):
    desk.settings(retention_ms=10_000)
    desk.publish("a", key="k")
    desk.publish("b")
    desk.pass_ms(5000)
    desk.publish("c")
    desk.pass_ms(6000)
    assert stats(desk.broker, "t", desk.at_ms)["expired"] == 2
    assert desk.values(9) == ["c"]
    desk.pass_ms(DAY_MS)


def test_old_messages_become_dead_letters_of_known_groups(desk):
    """They are never dropped silently."""
    desk.settings(retention_ms=10_000)
    desk.take()
    desk.take(group="quick")
    desk.publish("a")
    desk.publish("b", key="k")
    for message in desk.take(9, group="quick"):
        desk.ack(message["msg_id"], group="quick")
    desk.pass_ms(11_000)
    assert dead(desk) == [(b'"a"', "expired"), (b'"b"', "expired")]
    assert dead(desk, "quick") == []
    assert desk.why_empty() == "no_messages"
    assert not desk.broker.topics["t"].messages.by_number


def test_a_returned_message_becomes_a_dead_letter_with_its_history(desk):
    desk.settings(retention_ms=10_000)
    desk.publish("a", key="k")
    desk.publish("b")
    desk.take(2, visibility_ms=10)
    desk.pass_ms(10)
    desk.pass_ms(11_000)
    assert dead(desk) == [(b'"a"', "expired"), (b'"b"', "expired")]
    assert desk.redrive().body == {"redriven": 2}
    assert desk.values(9) == ["a", "b"]


def test_a_message_in_flight_may_still_be_finished(desk):
    desk.settings(retention_ms=10_000)
    ids = [*desk.publish("a", key="k"), *desk.publish("b")]
    desk.publish("next", key="k")
    taken = desk.take(9, visibility_ms=20_000)
    desk.pass_ms(11_000)
    assert [m["msg_id"] for m in taken] == ids
    assert desk.nack(ids[1]).body["nacked"]
    assert desk.values() == ["b"]
    for msg_id in ids:
        assert desk.ack(msg_id).body == {"acked": True}
    assert dead(desk) == [(b'"next"', "expired")]
    desk.purge(dead=True)
    assert desk.broker.usage()["queue_messages"] == 0


def test_a_message_with_a_delay_longer_than_the_retention_is_kept(desk):
    desk.settings(retention_ms=10_000)
    desk.publish("a", delay_ms=30_000)
    desk.pass_ms(20_000)
    desk.pass_ms(10_000)
    assert desk.values() == ["a"]


def test_messages_behind_a_long_delay_are_kept(desk):
    desk.settings(retention_ms=10_000)
    desk.take()
    desk.publish("a", key="k", delay_ms=30_000)
    desk.publish("b", key="k")
    desk.pass_ms(20_000)
    assert not dead(desk)
    desk.pass_ms(10_000)
    (first,) = desk.take(9)
    assert first["value"] == b'"a"'
    desk.ack(first["msg_id"])
    assert desk.values() == ["b"]


def test_a_shorter_retention_applies_immediately(desk):
    desk.publish("a")
    desk.pass_ms(20_000)
    desk.settings(retention_ms=10_000)
    desk.pass_ms(1000)
    assert not desk.broker.topics["t"].messages.by_number


def test_retention_of_many_messages_takes_several_steps(desk):
    desk.settings(retention_ms=10_000)
    for _ in range(25):
        desk.publish(*range(1000))
    desk.pass_ms(11_000)
    left = [len(desk.broker.topics["t"].messages.by_number)]
    for _ in range(3):
        desk.pass_ms(1000)
        left.append(len(desk.broker.topics["t"].messages.by_number))
    assert left == [15_000, 5_000, 0, 0]


def test_purge_deletes_everything_except_dead_letters(desk):
    ids = desk.publish("a", "b", key="k")
    desk.publish("c")
    desk.publish("d", delay_ms=100)
    desk.take()
    desk.nack(ids[0], dead=True)
    (held,) = desk.take()
    assert desk.purge().body == {"purged": 3}
    assert desk.why_empty() == "no_messages"
    assert desk.ack(held["msg_id"], held["receipt"]).body == {"acked": False}
    desk.pass_ms(DAY_MS)
    desk.publish("e", key="k")
    desk.publish("f")
    assert desk.values(9) == ["e", "f"]
    assert dead(desk) == [(b'"a"', "rejected")]


def test_a_waiter_survives_a_purge(desk):
    assert desk.consume(timeout_ms=1000) is None
    waiter = desk.origin
    desk.purge()
    desk.publish("a")
    assert waiter in desk.answers


@pytest.mark.parametrize("has_group", [False, True])
def test_a_message_is_too_old_in_the_step_in_which_its_delay_ends(desk, has_group):
    """After a gap in time, for example without a leader: retention is looked at before the timer of the delay."""
    desk.settings(retention_ms=100)
    if has_group:
        desk.take()
    desk.publish("a", delay_ms=1500)
    desk.pass_ms(DAY_MS)
    assert not desk.broker.topics["t"].messages.by_number
    desk.publish("b", delay_ms=5)
    desk.pass_ms(5)
    assert desk.values() == ["b"]
