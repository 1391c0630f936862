"""`dead_letter_topic`: dead letters move to another topic in the step in which they die. Without room there, they stay."""

from __future__ import annotations

import msgspec

from dss_queue.core.commands import PeekQuery
from dss_queue.core.inspection import peek, stats
from dss_queue.core.topic_commands import PutQueueSettings


def origin_of(message):
    headers = msgspec.json.decode(message["headers"])
    return {name.removeprefix("dss-dead-"): text for name, text in headers.items() if name.startswith("dss-dead-")}


def test_the_last_nack_moves_the_message(desk):
    desk.settings(max_attempts=2, dead_letter_topic="dead")
    published = desk.at_ms
    (msg_id,) = desk.publish("a", key="k", headers=b'{"a":"b"}')
    desk.take()
    desk.nack(msg_id)
    desk.take()
    desk.pass_ms(5)
    assert desk.nack(msg_id).body == {"nacked": True, "dead": True}
    (moved,) = desk.take(topic="dead", group="any")
    assert (moved["value"], moved["key"], moved["attempt"]) == (b'"a"', "k", 1)
    assert origin_of(moved) == {
        "topic": "t",
        "group": "g",
        "msg-id": msg_id,
        "published-ms": str(published),
        "reason": "max_attempts",
        "attempts": "2",
    }
    assert msgspec.json.decode(moved["headers"])["a"] == "b"
    assert not peek(desk.broker, PeekQuery(topic="t", group="g", dead=True), desk.at_ms)
    assert stats(desk.broker, "t", desk.at_ms)["messages"] == 0
    assert [one.reason for one in desk.dead] == ["max_attempts"]


def test_the_last_timeout_moves_it_to_a_consumer_that_waits(desk):
    desk.settings(max_attempts=1, dead_letter_topic="dead")
    assert desk.consume(topic="dead", timeout_ms=5000) is None
    waiter = desk.origin
    (msg_id,) = desk.publish("a")
    desk.take(visibility_ms=1000)
    desk.pass_ms(1000)
    (moved,) = desk.answers[waiter].body["messages"]
    assert origin_of(moved)["msg-id"] == msg_id


def test_the_first_origin_stays(desk):
    desk.settings(max_attempts=1, dead_letter_topic="second")
    desk.settings(topic="second", max_attempts=1, dead_letter_topic="third")
    (msg_id,) = desk.publish("a")
    desk.take()
    desk.nack(msg_id)
    (again,) = desk.take(topic="second")
    desk.nack(again["msg_id"], topic="second", dead=True)
    (moved,) = desk.take(topic="third")
    assert (origin_of(moved)["msg-id"], origin_of(moved)["topic"]) == (msg_id, "t")
    assert origin_of(moved)["reason"] == "rejected"


def test_without_room_the_dead_letter_stays_with_its_group(desk):
    desk.settings(topic="dead", max_bytes=1)
    desk.settings(max_attempts=1, dead_letter_topic="dead")
    (msg_id,) = desk.publish("a")
    desk.take()
    assert desk.nack(msg_id).body["dead"]
    (dead,) = peek(desk.broker, PeekQuery(topic="t", group="g", dead=True), desk.at_ms)
    assert dead["msg_id"] == msg_id
    desk.settings(topic="dead")
    desk.redrive()
    desk.take()
    desk.nack(msg_id)
    assert len(desk.take(topic="dead")) == 1


def test_a_topic_that_must_not_be_created_gets_no_dead_letters(desk):
    desk.settings(max_attempts=1, dead_letter_topic="dead")
    desk.do(PutQueueSettings(create_topics=False))
    (msg_id,) = desk.publish("a")
    desk.take()
    desk.nack(msg_id)
    assert "dead" not in desk.broker.topics
    assert len(peek(desk.broker, PeekQuery(topic="t", group="g", dead=True), desk.at_ms)) == 1


def test_two_topics_may_exchange_their_dead_letters(desk):
    desk.settings(max_attempts=1, dead_letter_topic="other")
    desk.settings(topic="other", max_attempts=1, dead_letter_topic="t")
    desk.publish("a")
    for topic in ("t", "other") * 3:
        (message,) = desk.take(topic=topic, visibility_ms=10)
        desk.pass_ms(10)
    assert desk.why_empty(topic="other") == "no_messages"
    assert msgspec.json.decode(message["headers"])["dss-dead-topic"] == "t"


def test_messages_that_are_too_old_move_too(desk):
    desk.settings(retention_ms=1000, dead_letter_topic="dead")
    desk.put_group("g")
    desk.publish("a")
    desk.pass_ms(2000)
    (moved,) = desk.take(topic="dead")
    assert origin_of(moved)["reason"] == "expired"


def test_with_max_attempts_0_a_message_never_dies_by_itself(desk):
    desk.settings(max_attempts=0)
    (msg_id,) = desk.publish("a")
    for attempt in range(1, 40):
        assert desk.take()[0]["attempt"] == attempt
        assert not desk.nack(msg_id).body["dead"]
    desk.take()
    assert desk.nack(msg_id, dead=True).body["dead"]


def test_the_settings_survive_a_restart(desk):
    desk.settings(max_attempts=0, dead_letter_topic="dead")
    desk.restart()
    settings = stats(desk.broker, "t", desk.at_ms)["settings"]
    assert (settings["max_attempts"], settings["dead_letter_topic"]) == (0, "dead")
