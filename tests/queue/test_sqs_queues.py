"""Queues of the SQS endpoint in the replicated state: a topic with attributes, tags and the group `sqs`."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from dss_api.caller import Caller, set_caller
from dss_api.rights import Access
from dss_dev.queue_recount import recounted_usage
from dss_queue.core.commands import PeekQuery, PutTopic, SetTopic
from dss_queue.core.inspection import peek, stats
from dss_queue.core.sqs_queues import GROUP, ChangeQueue, CreateQueue, PublishToQueues, redrive_policy, settings_of
from dss_queue.core.topic_commands import DeleteGroup, DeleteTopic, PutGroup
from dss_queue.sqs.attributes import checked
from dss_queue.sqs.calls import Call
from dss_queue.sqs.errors import SqsError
from dss_queue.sqs.queue_calls import set_attributes

POLICY = '{"deadLetterTargetArn": "arn:aws:sqs:eu-west-1:000000000000:dead", "maxReceiveCount": "3"}'


def create(desk, topic="t", **attributes):
    return desk.do(CreateQueue(topic=topic, attributes=attributes)).body


@pytest.fixture
def counted(desk):
    """Checks after the test that all bytes are accounted for, also after a restart."""
    yield desk
    assert desk.broker.usage() == recounted_usage(desk.broker)
    desk.restart()
    assert desk.broker.usage() == recounted_usage(desk.broker)


def test_a_queue_is_a_topic_with_a_group(counted):
    desk = counted
    assert create(desk, VisibilityTimeout="5", RedrivePolicy=POLICY) == {"created": True, "differs": []}
    desk.publish("a")
    assert stats(desk.broker, "t", desk.at_ms)["groups"][0]["group"] == GROUP
    settings = stats(desk.broker, "t", desk.at_ms)["settings"]
    assert (settings["max_attempts"], settings["dead_letter_topic"]) == (3, "dead")
    assert settings["retention_ms"] == 345_600_000
    desk.restart()
    queue = desk.broker.topics["t"].queue
    assert (queue.attributes["VisibilityTimeout"], queue.created_ms) == ("5", desk.at_ms)


def test_creating_again_says_what_differs(counted):
    desk = counted
    create(desk, VisibilityTimeout="5")
    assert create(desk, VisibilityTimeout="5") == {"created": False, "differs": []}
    assert create(desk, VisibilityTimeout="6", DelaySeconds="1")["differs"] == ["VisibilityTimeout", "DelaySeconds"]
    assert desk.broker.topics["t"].queue.attributes == {"VisibilityTimeout": "5"}


def test_a_topic_becomes_a_queue(counted):
    desk = counted
    desk.publish("a", "b")
    create(desk)
    assert len(desk.take(2, group=GROUP)) == 2


def test_attributes_and_tags_change(counted):
    desk = counted
    create(desk, VisibilityTimeout="5", RedrivePolicy=POLICY)
    desk.pass_ms(5)
    desk.do(ChangeQueue(topic="t", attributes={"RedrivePolicy": "", "DelaySeconds": "1"}, tags={"a": "1", "b": "2"}))
    desk.do(ChangeQueue(topic="t", untag=["a", "other"]))
    queue = desk.broker.topics["t"].queue
    assert (queue.attributes, queue.tags) == ({"VisibilityTimeout": "5", "DelaySeconds": "1"}, {"b": "2"})
    assert queue.modified_ms == queue.created_ms + 5
    assert stats(desk.broker, "t", desk.at_ms)["settings"]["max_attempts"] == 0
    assert desk.do(ChangeQueue(topic="none", tags={"a": "1"})).code == "not_found"


@pytest.mark.parametrize("command", [PutTopic(topic="t", max_attempts=9), SetTopic(topic="t", dead_letter_topic="other")])
def test_settings_of_the_topic_cannot_differ_from_the_attributes(counted, command):
    desk = counted
    create(desk, RedrivePolicy=POLICY)
    before = stats(desk.broker, "t", desk.at_ms)["settings"]
    refused = desk.do(command)
    assert (refused.code, refused.body["field"]) == ("invalid", "topic")
    assert "SetQueueAttributes" in refused.body["detail"]
    assert stats(desk.broker, "t", desk.at_ms)["settings"] == before


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ('{"deadLetterTargetArn": "%s",  "maxReceiveCount": 3}', '{"deadLetterTargetArn": "%s",  "maxReceiveCount": 3}'),
        ('{"deadLetterTargetArn": "%s", "maxReceiveCount": "3"}', '{"deadLetterTargetArn":"%s","maxReceiveCount":3}'),
        ('{"deadLetterTargetArn": "%s", "maxReceiveCount": 3, "x": 1}', '{"deadLetterTargetArn":"%s","maxReceiveCount":3}'),
    ],
)
def test_a_redrive_policy_stays_as_it_was_written_if_the_state_can_read_it(given, stored):
    arn = "arn:aws:sqs:eu-west-1:000000000000:dead"
    kept = checked("t", {"RedrivePolicy": given % arn}, creates=True)
    assert kept == {"RedrivePolicy": stored % arn}
    assert redrive_policy(kept) == ("dead", 3)


def test_the_group_of_a_queue_is_not_deleted(counted):
    """It would be a purge that does not say so."""
    desk = counted
    desk.publish("early")
    assert desk.do(PutGroup(topic="t", group=GROUP)).body["created"]
    create(desk)
    desk.do(PutGroup(topic="t", group="other"))
    refused = desk.do(DeleteGroup(topic="t", group=GROUP))
    assert (refused.code, refused.body["field"]) == ("invalid", "group")
    assert "PurgeQueue" in refused.body["detail"]
    assert desk.do(DeleteGroup(topic="t", group="other")).body == {"deleted": True}
    groups = stats(desk.broker, "t", desk.at_ms)["groups"]
    assert [(one["group"], one["ready"]) for one in groups] == [(GROUP, 1)]
    assert desk.do(DeleteTopic(topic="t")).body["deleted"]
    # A group of this name of another topic is not a queue.
    desk.do(PutGroup(topic="t", group=GROUP))
    assert desk.do(DeleteGroup(topic="t", group=GROUP)).body == {"deleted": True}


def test_tags_have_a_limit(counted):
    desk = counted
    create(desk)
    desk.do(ChangeQueue(topic="t", tags={f"a{i}": "" for i in range(50)}))
    refused = desk.do(ChangeQueue(topic="t", tags={"more": ""}))
    assert (refused.code, refused.body["limit"]) == ("over_limit", "tags_per_queue_max")


def test_a_queue_counts_towards_the_limit_of_the_state(counted):
    desk = counted
    desk.broker.limits.maxima["queue_bytes_max"] = 10_000
    refused = desk.do(CreateQueue(topic="t", attributes={"Policy": "x" * 10_000}))
    assert (refused.code, refused.body["limit"]) == ("over_limit", "queue_bytes_max")
    create(desk)
    assert desk.do(ChangeQueue(topic="t", attributes={"Policy": "x" * 10_000})).code == "over_limit"
    assert desk.do(ChangeQueue(topic="t", attributes={"Policy": ""})).code == ""


def test_a_deleted_queue_does_not_come_back_as_a_topic(counted):
    desk = counted
    create(desk)
    desk.do(DeleteTopic(topic="t"))
    assert desk.do(PublishToQueues(messages=[desk.message("a")])).code == "not_found"
    assert "t" not in desk.broker.topics
    desk.publish("a")
    assert desk.do(PublishToQueues(messages=[desk.message("a")])).code == "not_found", "a topic is no queue"


def test_messages_that_are_too_old_are_deleted(counted):
    desk = counted
    create(desk, MessageRetentionPeriod="60")
    desk.publish("a")
    desk.publish("b", "c", key="k")
    (message,) = desk.take(group=GROUP, visibility_ms=1000)
    desk.pass_ms(1000)
    desk.pass_ms(61_000)
    assert message["attempt"] == 1
    assert stats(desk.broker, "t", desk.at_ms)["messages"] == 0
    assert not peek(desk.broker, PeekQuery(topic="t", group=GROUP, dead=True), desk.at_ms)
    desk.restart()
    desk.publish("d")
    desk.pass_ms(61_000)
    assert not desk.dead


def test_a_queue_is_not_dropped_for_lack_of_use(desk):
    create(desk)
    assert not desk.broker.topics["t"].is_idle


@pytest.mark.parametrize(
    "policy",
    [
        "",
        "{}",
        "[]",
        "7",
        "no",
        '{"deadLetterTargetArn": "a:b", "maxReceiveCount": "x"}',
        '{"deadLetterTargetArn": "a:b", "maxReceiveCount": 5, "more": [[]]}',
    ],
)
def test_a_policy_that_is_none_changes_nothing(policy):
    assert redrive_policy({"RedrivePolicy": policy}) is None
    assert settings_of({"RedrivePolicy": policy}).max_attempts == 0


@pytest.mark.parametrize(
    ("scopes", "is_allowed"),
    [
        (["all"], True),
        (["operate"], True),
        (["queue:t:manage", "queue:dead:publish"], True),
        (["queue:t:manage", "queue:dead:consume"], False),
        (["read"], False),
    ],
)
def test_who_may_name_a_dead_letter_queue(desk, scopes, is_allowed):
    """The same callers as for `dead_letter_topic` of `PUT /queue/topic`."""
    create(desk)
    create(desk, "dead")
    sent = []

    async def submit(command, wait_ms):
        sent.append(command)
        return SimpleNamespace(code="", body={})

    policy = '{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:dead","maxReceiveCount":3}'
    node = SimpleNamespace(machine=lambda name: desk.broker, submit=submit)
    call = Call(node, "t", SimpleNamespace(attributes={"RedrivePolicy": policy}), "", "us-east-1")

    async def set_it():
        set_caller(Caller("token", Access(scopes), "token"))
        await set_attributes(call)

    if is_allowed:
        asyncio.run(set_it())
    else:
        with pytest.raises(SqsError) as refusal:
            asyncio.run(set_it())
        assert refusal.value.code == "AccessDenied"
    assert len(sent) == is_allowed
