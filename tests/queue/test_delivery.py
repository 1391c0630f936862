"""Groups, order, and which consumer has a message."""

from __future__ import annotations

from dss_queue.core.commands import Consume, Publish


def test_each_group_gets_every_message(desk):
    desk.take(group="billing")
    desk.publish("a", "b")
    assert desk.values(5, group="billing") == ["a", "b"]
    assert desk.values(5, group="shipping") == ["a", "b"]


def test_within_a_group_only_one_consumer_has_a_message(desk):
    desk.publish("a", "b")
    assert desk.values() == ["a"]
    assert desk.values() == ["b"]
    assert desk.why_empty() == "all_in_flight"


def test_a_new_group_starts_at_the_oldest_retained_message(desk):
    """A message that every known group has acked is gone. One in flight or not yet taken is retained."""
    ids = desk.publish("done", "in flight", "returned", "fresh")
    desk.take(3)
    desk.ack(ids[0])
    desk.nack(ids[2])
    assert desk.values(9, group="late") == ["in flight", "returned", "fresh"]
    assert len(desk.broker.topics["t"].messages.by_number) == 3


def test_a_new_group_gets_each_message_once_beside_a_fast_and_a_slow_group(desk):
    desk.take(group="slow")
    desk.publish(1, 2, 3)
    desk.take(2, group="quick")
    assert desk.values(9, group="late") == [1, 2, 3]
    assert desk.why_empty(group="late") == "all_in_flight"


def test_a_message_is_dropped_when_the_last_group_has_acked_it(desk):
    desk.take(group="one")
    desk.take(group="two")
    (msg_id,) = desk.publish("a")
    for group in ("one", "two"):
        assert len(desk.broker.topics["t"].messages.by_number) == 1
        desk.take(group=group)
        desk.ack(msg_id, group=group)
    assert not desk.broker.topics["t"].messages.by_number
    assert desk.broker.usage()["queue_messages"] == 0


def test_without_a_group_messages_are_retained(desk):
    desk.publish("a")
    desk.pass_ms(3600_000)
    assert desk.values() == ["a"]


def test_messages_of_one_entry_have_different_ids(desk):
    results = desk.entry(*[Publish(messages=[desk.message(n), desk.message(n)]) for n in range(3)])
    ids = [one["msg_id"] for result in results for one in result.body["messages"]]
    assert ids == [f"{desk.index}-{n}" for n in range(6)]


def test_a_batch_is_handed_out_in_publish_order(desk):
    desk.publish(*range(10))
    assert desk.values(4) == [0, 1, 2, 3]
    assert desk.values(100) == [4, 5, 6, 7, 8, 9]


def test_one_answer_is_bounded_in_bytes(desk):
    desk.publish(*["x" * 1024 * 1024] * 6)
    assert len(desk.take(6)) == 4


def test_consumers_in_one_entry_share_the_ready_messages(desk):
    desk.publish("a", "b")
    consume = Consume(topic="t", group="g", timeout_ms=0, visibility_ms=10)
    results = desk.entry(consume, consume, consume)
    assert [[m["value"] for m in result.body["messages"]] for result in results] == [[b'"a"'], [b'"b"'], []]
