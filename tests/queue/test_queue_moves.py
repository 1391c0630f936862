"""Purging a queue of the SQS endpoint, and moving its messages to other queues."""

from __future__ import annotations

import json

import pytest

from dss_dev.queue_recount import recounted_usage
from dss_queue.core import queue_moves
from dss_queue.core.commands import Ack, Consume, Nack, NewMessage
from dss_queue.core.queue_moves import STEP_MESSAGES_MAX
from dss_queue.core.sqs_queues import (
    GROUP,
    MOVE_TASKS_MAX,
    CancelMove,
    ChangeQueue,
    CreateQueue,
    PublishToQueues,
    PurgeQueue,
    StartMove,
)
from dss_queue.core.topic_commands import DeleteTopic

POLICY = '{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:dead","maxReceiveCount":1}'


@pytest.fixture
def moving(desk):
    """A broker with a queue `t`, its dead-letter queue `dead` and another queue. Afterwards all bytes are accounted for."""
    for name, attributes in (("dead", {}), ("t", {"RedrivePolicy": POLICY}), ("other", {})):
        desk.do(CreateQueue(topic=name, attributes=attributes))
    yield desk
    assert desk.broker.usage() == recounted_usage(desk.broker)
    desk.restart()
    assert desk.broker.usage() == recounted_usage(desk.broker)


def send(desk, topic, *bodies, key=""):
    messages = [NewMessage(topic, json.dumps(body).encode(), key, 0 if key else -1, 0, "", b"") for body in bodies]
    assert not desk.do(PublishToQueues(messages=messages)).code


def take(desk, topic, count=1000):
    command = Consume(topic=topic, group=GROUP, timeout_ms=0, visibility_ms=60_000, max_messages=count, create=False)
    return desk.do(command).body["messages"]


def die(desk, topic, *bodies):
    """Send messages that become dead letters of `topic`."""
    send(desk, topic, *bodies)
    for message in take(desk, topic):
        desk.do(Nack(topic=topic, group=GROUP, msg_id=message["msg_id"], receipt=message["receipt"]))


def bodies(messages):
    return [json.loads(message["value"]) for message in messages]


def latest(desk, topic="dead"):
    return desk.broker.topics[topic].queue.moves[-1]


def run(desk):
    while (due_ms := desk.broker.topics["dead"].queue.moves[-1].due_ms) and latest(desk).status == "RUNNING":
        desk.pass_ms(max(1, due_ms - desk.at_ms))


def test_messages_go_back_where_they_became_dead(moving):
    desk = moving
    desk.do(CreateQueue(topic="u", attributes={"RedrivePolicy": POLICY}))
    die(desk, "t", 1, 2)
    die(desk, "u", 3)
    assert desk.do(StartMove(topic="dead")).body["task"] == latest(desk).serial
    desk.restart()
    run(desk)
    assert (latest(desk).status, latest(desk).found, latest(desk).moved) == ("COMPLETED", 3, 3)
    found = take(desk, "t")
    assert bodies(found) == [1, 2]
    assert all(b"dss-dead" not in message["headers"] for message in found)
    assert [message["attempt"] for message in found] == [1, 1]
    assert bodies(take(desk, "u")) == [3]
    assert take(desk, "dead") == []


def test_a_rate_holds_across_a_restart(moving):
    desk = moving
    die(desk, "t", *range(10))
    desk.do(StartMove(topic="dead", target="other", rate=2))
    desk.pass_ms(1)
    assert latest(desk).moved == 1
    desk.pass_ms(1000)
    desk.restart()
    assert latest(desk).moved == 3
    desk.pass_ms(1000)
    assert latest(desk).moved == 5
    assert bodies(take(desk, "other")) == [0, 1, 2, 3, 4]
    run(desk)
    assert bodies(take(desk, "other")) == [5, 6, 7, 8, 9]


def test_a_step_after_a_long_time_is_no_longer_than_others(moving):
    desk = moving
    send(desk, "dead", *range(STEP_MESSAGES_MAX + 1))
    desk.do(StartMove(topic="dead", target="other"))
    desk.pass_ms(60_000)
    assert latest(desk).moved == STEP_MESSAGES_MAX
    run(desk)
    assert latest(desk).moved == STEP_MESSAGES_MAX + 1


def test_tasks_share_what_moves_at_a_time(moving, monkeypatch):
    monkeypatch.setattr(queue_moves, "EXPIRE_MESSAGES_MAX", 5)
    desk = moving
    for topic in ("dead", "t"):
        send(desk, topic, *range(4))
        desk.do(StartMove(topic=topic, target="other"))
    desk.pass_ms(60_000)
    assert [latest(desk, topic).moved for topic in ("dead", "t")] == [4, 1]
    desk.pass_ms(1)
    assert latest(desk, "t").moved == 4
    run(desk)


def test_tasks_that_run_are_limited_in_all_queues(moving, monkeypatch):
    monkeypatch.setattr(queue_moves, "MOVES_RUNNING_MAX", 2)
    desk = moving
    for topic in ("dead", "t"):
        send(desk, topic, 1, 2)
        task = desk.do(StartMove(topic=topic, target="other", rate=1)).body["task"]
    desk.restart()
    assert desk.do(StartMove(topic="other", target="t")).code == "over_limit"
    desk.do(CancelMove(topic="t", task=task))
    desk.do(DeleteTopic(topic="dead"))
    assert desk.broker.registry.moving == 0
    assert not desk.do(StartMove(topic="other", target="t")).code


def test_a_task_leaves_what_came_after_its_start(moving):
    desk = moving
    die(desk, "t", 1)
    desk.do(StartMove(topic="dead"))
    die(desk, "t", 2)
    run(desk)
    assert latest(desk).moved == 1
    assert bodies(take(desk, "dead")) == [2]


def test_messages_of_a_group_stay_in_order(moving):
    desk = moving
    send(desk, "dead", 1, 2, 3, key="k")
    desk.do(StartMove(topic="dead", target="other"))
    run(desk)
    for expected in (1, 2, 3):
        (message,) = take(desk, "other")
        assert (bodies([message]), message["key"]) == ([expected], "k")
        desk.do(Ack(topic="other", group=GROUP, msg_id=message["msg_id"], receipt=message["receipt"]))


def test_one_task_at_a_time_which_can_be_cancelled(moving):
    desk = moving
    die(desk, "t", *range(5))
    task = desk.do(StartMove(topic="dead", rate=1)).body["task"]
    assert desk.do(StartMove(topic="dead")).body == {"task": None}
    desk.pass_ms(1)
    assert desk.do(CancelMove(topic="dead", task=task)).body == {"moved": 1}
    assert desk.do(CancelMove(topic="dead", task=task)).body == {"moved": None}
    assert desk.do(CancelMove(topic="dead", task=task + 1)).code == "not_found"
    desk.pass_ms(60_000)
    assert (latest(desk).status, latest(desk).moved) == ("CANCELLED", 1)
    assert bodies(take(desk, "dead")) == [1, 2, 3, 4]


def test_a_queue_remembers_its_latest_tasks(moving):
    desk = moving
    for _ in range(MOVE_TASKS_MAX + 2):
        desk.do(StartMove(topic="dead", target="other"))
        run(desk)
    assert [task.status for task in desk.broker.topics["dead"].queue.moves] == ["COMPLETED"] * MOVE_TASKS_MAX


def test_a_message_without_a_source_queue_stops_the_task(moving):
    desk = moving
    send(desk, "dead", "sent here")
    desk.do(StartMove(topic="dead"))
    run(desk)
    assert (latest(desk).status, latest(desk).reason) == ("FAILED", "CouldNotDetermineMessageSource")
    assert bodies(take(desk, "dead")) == ["sent here"]


@pytest.mark.parametrize("headers", [b"1.5", b"null", b'"x"', b'{"a": 1}', b"{"])
def test_headers_that_are_no_texts_stop_no_node(moving, headers):
    desk = moving
    desk.do(PublishToQueues(messages=[NewMessage("dead", b"1", "", -1, 0, "", headers)]))
    desk.do(StartMove(topic="dead", target="other"))
    run(desk)
    assert bodies(take(desk, "other")) == [1]
    desk.do(PublishToQueues(messages=[NewMessage("t", b"2", "", -1, 0, "", headers)]))
    (message,) = take(desk, "t")
    desk.do(Nack(topic="t", group=GROUP, msg_id=message["msg_id"], receipt=message["receipt"]))
    assert bodies(take(desk, "dead")) == [2]


def test_a_source_that_has_another_dead_letter_queue_gets_nothing(moving):
    desk = moving
    die(desk, "t", 1)
    desk.do(ChangeQueue(topic="t", attributes={"RedrivePolicy": ""}))
    desk.do(StartMove(topic="dead"))
    run(desk)
    assert latest(desk).status == "FAILED"


@pytest.mark.parametrize("deleted", ["dead", "other"])
def test_a_queue_is_deleted_meanwhile(moving, deleted):
    desk = moving
    die(desk, "t", 1, 2, 3)
    desk.do(StartMove(topic="dead", target="other", rate=1))
    desk.pass_ms(1)
    desk.do(DeleteTopic(topic=deleted))
    desk.pass_ms(60_000)
    if deleted == "other":
        assert (latest(desk).status, latest(desk).reason) == ("FAILED", "AWS.SimpleQueueService.NonExistentQueue")
        assert bodies(take(desk, "dead")) == [2, 3]
    else:
        assert bodies(take(desk, "other")) == [1]


def test_a_target_without_room_gets_the_messages_later(moving):
    desk = moving
    die(desk, "t", 1, 2)
    desk.do(StartMove(topic="dead", target="other"))
    maxima = desk.broker.limits.maxima
    before, maxima["queue_bytes_max"] = maxima["queue_bytes_max"], desk.broker.registry.account.used
    desk.pass_ms(1_000)
    assert (latest(desk).status, latest(desk).moved) == ("RUNNING", 0)
    maxima["queue_bytes_max"] = before
    run(desk)
    assert (latest(desk).status, latest(desk).moved) == ("COMPLETED", 2)
    assert bodies(take(desk, "other")) == [1, 2]


def test_a_queue_is_purged_once_a_minute(moving):
    desk = moving
    send(desk, "t", 1, 2)
    assert desk.do(PurgeQueue(topic="t")).body == {"purged": 2}
    send(desk, "t", 3)
    desk.pass_ms(59_000)
    desk.restart()
    assert desk.do(PurgeQueue(topic="t")).body == {"purged": None}
    desk.pass_ms(1_000)
    assert desk.do(PurgeQueue(topic="t")).body == {"purged": 1}
    assert desk.do(PurgeQueue(topic="none")).code == "not_found"


def test_attributes_change_only_from_what_is_expected(moving):
    desk = moving
    change = ChangeQueue(topic="t", attributes={"Policy": "{}"}, expected={"Policy": ""})
    assert desk.do(change).body == {"changed": True}
    assert desk.do(change).body == {"changed": False}
