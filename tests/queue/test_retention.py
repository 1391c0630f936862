"""Retention of messages that no consumer takes, and purge."""

from __future__ import annotations

import pytest

from dss_queue.core.commands import PeekQuery
from dss_queue.core.inspection import peek

DAY_MS = 24 * 3600 * 1000


def dead(desk, group="g"):
    return [
        (d["value"], d["reason"]) for d in peek(desk.broker, PeekQuery(topic="t", group=group, dead=True, limit=100), desk.at_ms)
    ]


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
