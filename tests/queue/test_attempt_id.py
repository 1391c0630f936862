"""A consume whose answer was lost is repeated with the same attempt_id."""

from __future__ import annotations


def ids_and_receipts(messages):
    return [(m["msg_id"], m["receipt"], m["attempt"]) for m in messages]


def test_a_repeat_gets_the_same_messages_and_receipts(desk):
    desk.publish("a", "b", "c")
    first = desk.take(2, attempt_id="try-1")
    assert ids_and_receipts(desk.take(2, attempt_id="try-1")) == ids_and_receipts(first)
    assert desk.values(9) == ["c"]


def test_a_repeat_has_the_full_visibility_again(desk):
    desk.publish("a")
    desk.take(attempt_id="try-1", visibility_ms=100)
    desk.pass_ms(90)
    (again,) = desk.take(attempt_id="try-1", visibility_ms=100)
    assert again["visible_until_ms"] == desk.at_ms + 100


def test_a_repeat_does_not_get_messages_acked_in_between(desk):
    ids = desk.publish("a", "b")
    desk.take(2, attempt_id="try-1")
    desk.ack(ids[0])
    assert desk.values(2, attempt_id="try-1") == ["b"]
    desk.ack(ids[1])
    desk.publish("c")
    assert desk.values(2, attempt_id="try-1") == ["c"]


def test_after_the_visibility_timeout_a_repeat_is_a_new_delivery(desk):
    desk.publish("a")
    (first,) = desk.take(attempt_id="try-1", visibility_ms=10)
    desk.pass_ms(10)
    (second,) = desk.take(attempt_id="try-1")
    assert second["receipt"] != first["receipt"]
    assert second["attempt"] == 2


def test_attempt_ids_belong_to_a_group(desk):
    desk.publish("a")
    desk.take(group="one", attempt_id="try-1")
    assert desk.values(group="two", attempt_id="try-1") == ["a"]
    assert desk.why_empty(group="two") == "all_in_flight"


def test_a_repeat_replaces_the_call_that_is_still_waiting(desk):
    assert desk.consume(timeout_ms=1000, attempt_id="try-1") is None
    old = desk.origin
    assert desk.consume(timeout_ms=1000, attempt_id="try-1") is None
    new = desk.origin
    assert desk.answers[old].body["messages"] == []
    desk.publish("a")
    assert len(desk.answers[new].body["messages"]) == 1


def test_the_message_belongs_to_the_call_that_repeated(desk):
    """The node notices late that the first connection has closed. The messages stay with the second call."""
    desk.publish("a")
    desk.take(attempt_id="try-1")
    first = desk.origin
    desk.take(attempt_id="try-1")
    second = desk.origin
    desk.cancel(first)
    assert desk.why_empty() == "all_in_flight"
    desk.cancel(second)
    assert desk.values() == ["a"]
