"""The rows of the admin's lists."""

from __future__ import annotations

from dss_queue.admin import VALUE_SHOWN_MAX, dead_letter_rows, in_flight_rows


def test_messages_in_flight(desk):
    desk.publish("x" * 5000, key="k")
    desk.publish(1)
    desk.take(visibility_ms=1000, node="n2")
    desk.take(group="other")
    rows = in_flight_rows(desk.broker, desk.at_ms + 400)
    assert [(row.topic, row.group, row.key, row.attempt, row.node) for row in rows] == [
        ("t", "g", "k", 1, "n2"),
        ("t", "other", "k", 1, "n1"),
    ]
    assert (rows[0].visible_in_ms, rows[0].age_ms) == (600, 400)
    assert len(rows[0].value) == VALUE_SHOWN_MAX + 1
    assert rows[0].pk != rows[1].pk


def test_dead_letters_with_their_history(desk):
    (msg_id,) = desk.publish("a")
    desk.take()
    desk.pass_ms(5)
    desk.nack(msg_id)
    desk.take()
    desk.nack(msg_id, dead=True)
    (row,) = dead_letter_rows(desk.broker)
    assert (row.msg_id, row.reason, row.attempts, row.value) == (msg_id, "rejected", 2, '"a"')
    first, second = row.history.splitlines()
    assert first.startswith("attempt 1: nack after 5 ms, by n1")
    assert second.startswith("attempt 2: rejected")
