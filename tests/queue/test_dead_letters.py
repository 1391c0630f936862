"""Messages that fail too often are kept with their history. They never disappear."""

from __future__ import annotations

from dss_queue.core.commands import PeekQuery
from dss_queue.core.inspection import peek
from dss_queue.core.topic_commands import DeleteDead


def dead_letters(desk, group="g"):
    return peek(desk.broker, PeekQuery(topic="t", group=group, dead=True, limit=100), desk.at_ms)


def test_after_max_attempts_a_message_is_a_dead_letter_with_its_history(desk):
    desk.settings(max_attempts=3)
    (msg_id,) = desk.publish("a")
    desk.take(node="n2")
    desk.pass_ms(7)
    desk.nack(msg_id)
    desk.take(visibility_ms=10)
    desk.pass_ms(10)
    desk.take(visibility_ms=10)
    desk.pass_ms(10)
    assert desk.why_empty() == "no_messages"
    (dead,) = dead_letters(desk)
    assert (dead["msg_id"], dead["reason"], dead["attempt"], dead["value"]) == (msg_id, "max_attempts", 3, b'"a"')
    assert [(end["attempt"], end["reason"], end["node"]) for end in dead["history"]] == [
        (1, "nack", "n2"),
        (2, "timeout", "n1"),
        (3, "timeout", "n1"),
    ]
    assert dead["history"][0]["ended_ms"] - dead["history"][0]["delivered_ms"] == 7
    assert [(one.topic, one.group, one.reason) for one in desk.dead] == [("t", "g", "max_attempts")]


def test_the_default_is_twenty_attempts(desk):
    (msg_id,) = desk.publish("a")
    for attempt in range(1, 21):
        assert desk.take()[0]["attempt"] == attempt
        assert desk.nack(msg_id).body["dead"] == (attempt == 20)


def test_a_nack_with_dead_makes_a_dead_letter_immediately(desk):
    (msg_id,) = desk.publish("a")
    desk.take()
    assert desk.nack(msg_id, dead=True).body == {"nacked": True, "dead": True}
    assert dead_letters(desk)[0]["reason"] == "rejected"


def test_a_dead_letter_belongs_to_one_group_only(desk):
    (msg_id,) = desk.publish("a")
    desk.take(group="other")
    desk.take()
    desk.nack(msg_id, dead=True)
    assert not dead_letters(desk, "other")
    assert desk.ack(msg_id, group="other").body == {"acked": True}
    assert dead_letters(desk)[0]["value"] == b'"a"'


def test_the_ack_of_a_dead_message_is_stale(desk):
    desk.settings(max_attempts=1)
    (msg_id,) = desk.publish("a")
    (message,) = desk.take(visibility_ms=10)
    desk.pass_ms(10)
    assert desk.ack(msg_id, message["receipt"]).code == "stale_receipt"


def test_redrive_returns_dead_letters_with_their_attempts_reset(desk):
    desk.settings(max_attempts=1)
    ids = desk.publish("a", "b")
    desk.take(2)
    for msg_id in ids:
        desk.nack(msg_id)
    assert desk.redrive(msg_id=ids[1]).body == {"redriven": 1}
    assert [(m["msg_id"], m["attempt"]) for m in desk.take(9)] == [(ids[1], 1)]
    assert desk.redrive().body == {"redriven": 1}
    assert desk.redrive().body == {"redriven": 0}
    assert desk.values(9) == ["a"]
    desk.ack(ids[0])
    desk.ack(ids[1])
    assert desk.broker.usage()["queue_messages"] == 0


def test_redrive_serves_waiting_consumers(desk):
    (msg_id,) = desk.publish("a")
    desk.take()
    desk.nack(msg_id, dead=True)
    assert desk.consume(timeout_ms=1000) is None
    waiter = desk.origin
    desk.redrive()
    assert desk.answers[waiter].body["messages"][0]["msg_id"] == msg_id


def test_dead_letters_can_be_purged_by_group(desk):
    (msg_id,) = desk.publish("a")
    for group in ("one", "two"):
        desk.take(group=group)
    for group in ("one", "two"):
        desk.nack(msg_id, group=group, dead=True)
    assert desk.purge(dead=True, group="one").body == {"purged": 1}
    assert desk.purge(dead=True).body == {"purged": 1}
    assert desk.broker.usage()["queue_messages"] == 0


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
