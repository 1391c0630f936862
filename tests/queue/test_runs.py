"""`max_per_key`: several messages of one routing key go to one consumer together, a run. The order of the key is kept."""

from __future__ import annotations

import pytest

from dss_queue.core.inspection import stats


def values(messages):
    return [int(message["value"]) for message in messages]


def run(desk, count=10, per_key=10, **fields):
    return desk.take(count, max_per_key=per_key, **fields)


def test_a_waiting_consume_gets_a_run(desk):
    assert desk.consume(10, max_per_key=10, timeout_ms=1000) is None
    waiter = desk.origin
    desk.restart()
    desk.publish(1, 2, key="k")
    assert values(desk.answers[waiter].body["messages"]) == [1, 2]


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
