"""What the broker does beyond the contract, which tests/queue/conformance has: entries, leaders, callers, single dead letters."""

from __future__ import annotations

from dss_queue.core.commands import Consume, PeekQuery, Publish
from dss_queue.core.inspection import peek
from dss_queue.core.topic_commands import DeleteDead


def test_messages_of_one_entry_have_different_ids(desk):
    results = desk.entry(*[Publish(messages=[desk.message(n), desk.message(n)]) for n in range(3)])
    ids = [one["msg_id"] for result in results for one in result.body["messages"]]
    assert ids == [f"{desk.index}-{n}" for n in range(6)]


def test_one_answer_is_bounded_in_bytes(desk):
    desk.publish(*["x" * 1024 * 1024] * 6)
    assert len(desk.take(6)) == 4


def test_consumers_in_one_entry_share_the_ready_messages(desk):
    desk.publish("a", "b")
    consume = Consume(topic="t", group="g", timeout_ms=0, visibility_ms=10)
    results = desk.entry(consume, consume, consume)
    assert [[m["value"] for m in result.body["messages"]] for result in results] == [[b'"a"'], [b'"b"'], []]


def test_a_new_leader_gives_every_delivery_its_full_visibility(desk):
    desk.publish("a")
    desk.take(visibility_ms=100)
    desk.at_ms += 5000
    desk.broker.rearm(desk.at_ms, desk.index)
    desk.pass_ms(99)
    assert desk.why_empty() == "all_in_flight"
    desk.pass_ms(1)
    assert desk.values() == ["a"]


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


def dead_letters(desk, group="g"):
    return peek(desk.broker, PeekQuery(topic="t", group=group, dead=True, limit=100), desk.at_ms)


def test_one_dead_letter_is_deleted(desk):
    used = desk.broker.usage()
    first, second = desk.publish("a", "b")
    for msg_id in (first, second):
        desk.take()
        desk.nack(msg_id, dead=True)
    assert desk.do(DeleteDead(topic="t", group="g", msg_id=first)).body == {"deleted": True}
    assert [one["msg_id"] for one in dead_letters(desk)] == [second]
    assert desk.do(DeleteDead(topic="t", group="g", msg_id=first)).body == {"deleted": False}
    assert desk.do(DeleteDead(topic="none", group="g", msg_id=first)).body == {"deleted": False}
    desk.do(DeleteDead(topic="t", group="g", msg_id=second))
    assert desk.broker.usage()["queue_messages"] == used["queue_messages"] == 0
