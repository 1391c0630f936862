"""A topic on the engine `redis`, as the log knows it: what it refuses, who is sent to the engine, and the way back."""

from __future__ import annotations

import msgspec
import pytest

from dss_api.result import Result
from dss_dev.queue_recount import recounted_usage
from dss_queue.core import engine_moves
from dss_queue.core.commands import Ack, NewMessage, PeekQuery, Publish, PutTopic, SetTopic, TopicFields
from dss_queue.core.engines import EngineClosed, EngineForgotten, EngineLeft, EngineUse
from dss_queue.core.inspection import peek, stats
from dss_queue.core.sns_topics import CreateSnsTopic, Notice, PublishToSns, Subscribe
from dss_queue.core.sqs_queues import ChangeQueue, CreateQueue, PublishToQueues, PurgeQueue, StartMove
from dss_queue.core.topic_commands import CreateGroup, DeleteTopic, DropIdle, PutQueueSettings


def to_engine(desk, topic="t", **fields):
    result = desk.settings(topic=topic, engine="redis", **fields)
    assert not result.code, result
    return desk.broker.topics[topic].engine.incarnation


def to_log(desk, topic="t"):
    """Move a topic back. The engine takes no more messages."""
    leave(desk, topic)
    assert close(desk, topic)


def leave(desk, topic="t"):
    """Move a topic back. The engine may still take messages."""
    assert not desk.settings(topic=topic, engine="raft").code


def close(desk, topic="t"):
    """A node has closed the partitions; whether that counts."""
    incarnation = desk.broker.topics[topic].engine.incarnation
    return desk.do(EngineClosed(topic=topic, incarnation=incarnation)).body["closed"]


def why_not(desk, **fields):
    result = desk.settings(**fields)
    return result.code, result.body.get("field", result.body.get("limit"))


def published(desk, topic="t", **fields):
    return desk.do(Publish(messages=[desk.message(1, topic=topic, **fields)]))


def moving_from(desk):
    return stats(desk.broker, "t", desk.at_ms).get("moving_from")


# ----------------------------------------------------------------- settings


def test_the_settings_name_the_engine(desk):
    answer = desk.settings(engine="redis", acks="fsync")
    assert (answer.body["engine"], answer.body["acks"]) == ("redis", "fsync")
    settings = stats(desk.broker, "t", desk.at_ms)["settings"]
    assert (settings["engine"], settings["acks"]) == ("redis", "fsync")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"engine": "redis", "keep_ms": 1}, ("not_on_engine", "keep_ms")),
        ({"engine": "redis", "dead_letter_topic": "dead"}, ("not_on_engine", "dead_letter_topic")),
        ({"acks": "fsync"}, ("invalid", "acks")),
    ],
)
def test_settings_that_exclude_each_other_are_refused(desk, fields, why):
    assert why_not(desk, **fields) == why
    assert "t" not in desk.broker.topics


@pytest.mark.parametrize("command", [PutTopic, SetTopic])
def test_settings_without_an_engine_leave_the_topic_where_it_is(desk, command):
    use = EngineUse(to_engine(desk, acks="fsync", max_attempts=3))
    answer = desk.do(command(topic="t", backoff_ms=7)).body
    assert (answer["engine"], answer["acks"], answer["max_attempts"]) == ("redis", "fsync", 20)
    topic = desk.broker.topics["t"]
    assert (topic.engine, topic.messages.settings.acks, topic.messages.settings.backoff_ms) == (use, "fsync", 7)
    leave(desk)
    assert desk.do(command(topic="t", backoff_ms=8)).body.get("engine", "raft") == "raft"
    assert topic.engine == EngineUse(use.incarnation, is_leaving=True)


def test_acks_that_are_left_out_stay_while_the_topic_is_on_the_engine(desk):
    to_engine(desk, acks="fsync")
    assert desk.settings(engine="redis").body["acks"] == "fsync"
    assert desk.settings(acks="replica").body["acks"] == "replica"
    assert desk.settings(engine="raft").body["acks"] == "primary"
    desk.do(EngineLeft(topic="t", incarnation=desk.broker.topics["t"].engine.incarnation))
    assert desk.settings(engine="redis").body["acks"] == "primary"


@pytest.mark.parametrize(
    "fields",
    [{"keep_ms": 1}, {"dead_letter_topic": "dead"}, {"engine": "raft", "acks": "fsync"}],
    ids=lambda fields: [*fields][-1],
)
def test_what_the_present_engine_cannot_have_is_refused(desk, fields):
    use = EngineUse(to_engine(desk))
    code, field = why_not(desk, **fields)
    assert (code, field) == ("invalid" if field == "acks" else "not_on_engine", [*fields][-1])
    assert desk.broker.topics["t"].engine == use
    assert why_not(desk, topic="in the log", acks="fsync") == ("invalid", "acks")
    assert "in the log" not in desk.broker.topics


def test_older_cluster_versions_get_the_answers_that_they_always_got(desk):
    """They are kept for repeats, so they are part of the state that all nodes must have alike."""
    fields = {name: getattr(PutTopic(topic="t"), name) for name in TopicFields.__struct_fields__}
    assert desk.do(PutTopic(topic="t")).body == {"topic": "t", **fields}


def test_the_same_settings_again_are_the_same_stay(desk):
    first = to_engine(desk)
    assert to_engine(desk, backoff_ms=5) == first


def test_a_cluster_that_begins_again_has_other_incarnations(desk):
    """The servers may still have the keys of the cluster before it, which had the same name."""
    first = to_engine(desk)
    again = type(desk)()
    again.at_ms = desk.at_ms + 1
    assert to_engine(again) != first


def test_topics_that_move_in_one_entry_have_incarnations_of_their_own(desk):
    moves = [SetTopic(topic=topic, engine="redis") for topic in ("t", "u")]
    desk.entry(*moves, DeleteTopic(topic="t"), moves[0])
    assert len({desk.broker.topics[topic].engine.incarnation for topic in ("t", "u")} | {*desk.broker.registry.abandoned}) == 3


# ------------------------------------------------------------------ publish


def test_nothing_is_published_in_the_log(desk):
    desk.settings()
    desk.publish(1, dedup_id="a")
    to_engine(desk)
    before = stats(desk.broker, "t", desk.at_ms)
    for messages in ([desk.message()], [desk.message(topic="other"), desk.message()], [desk.message(dedup_id="a")]):
        result = desk.do(Publish(messages=messages))
        assert (result.code, result.body["topic"]) == ("on_engine", "t")
    assert stats(desk.broker, "t", desk.at_ms) == before
    assert "other" not in desk.broker.topics


def test_an_ack_that_publishes_to_the_engine_does_nothing(desk):
    (msg_id,) = desk.publish(1, topic="source")
    desk.take(topic="source")
    to_engine(desk)
    new = NewMessage("t", b"0", "", -1, 0, "", b"")
    result = desk.do(Ack(topic="source", group="g", msg_id=msg_id, publish=[new]))
    assert result.code == "on_engine"
    assert desk.ack(msg_id, topic="source").body["acked"]


# ------------------------------------------------------------------ consume


def test_a_group_that_has_nothing_in_the_log_goes_on_with_the_engine(desk):
    to_engine(desk)
    assert desk.consume(timeout_ms=5000).code == "on_engine"
    assert desk.consume().code == "on_engine"
    assert list(desk.broker.topics["t"].groups) == ["g"]


def test_what_is_in_the_log_comes_first(desk):
    desk.publish(1, 2)
    to_engine(desk)
    assert moving_from(desk) == "raft"
    (first,) = desk.take(group="late")
    (second,) = desk.take(group="late")
    assert desk.why_empty(group="late") == "all_in_flight"
    assert desk.consume(group="late", timeout_ms=1000) is None
    waits = desk.origin
    desk.ack(first["msg_id"], group="late")
    assert waits not in desk.answers
    desk.ack(second["msg_id"], group="late")
    assert desk.answers[waits].code == "on_engine"
    assert desk.consume(group="late", timeout_ms=1000).code == "on_engine"
    assert moving_from(desk) is None


def test_a_consume_that_waits_is_sent_to_the_engine_with_the_topic(desk):
    desk.put_group("g")
    assert desk.consume(timeout_ms=5000) is None
    waits = desk.origin
    to_engine(desk)
    assert desk.answers == {waits: Result({"topic": "t", "detail": desk.answers[waits].body["detail"]}, "on_engine")}
    assert not desk.broker.callers.waiters


@pytest.mark.parametrize("how", ["ack", "ack_many", "nack_dead", "timeout", "retention", "purge", "delayed"])
def test_the_last_end_of_the_rest_sends_those_that_wait_to_the_engine(desk, how):
    desk.settings(max_attempts=1, retention_ms=50_000)
    (msg_id,) = desk.publish(1, delay_ms=10 if how == "delayed" else 0)
    if how != "delayed":
        desk.take(visibility_ms=1000)
    to_engine(desk, max_attempts=1, retention_ms=50_000)
    waiting = []
    for _ in range(2):
        assert desk.consume(timeout_ms=20_000 if how != "retention" else 2000, attempt_id="a" if waiting else "") is None
        waiting.append(desk.origin)
    if how == "ack":
        desk.ack(msg_id)
    elif how == "ack_many":
        desk.do(Ack(topic="t", group="g", msg_ids=[msg_id]))
    elif how == "nack_dead":
        desk.nack(msg_id, dead=True)
    elif how in ("timeout", "retention"):
        desk.pass_ms(1000)
    elif how == "purge":
        desk.purge()
    else:
        desk.pass_ms(10)
        assert len(desk.answers[waiting.pop(0)].body["messages"]) == 1
        assert not [desk.answers[one] for one in waiting if one in desk.answers]
        desk.ack(msg_id)
    assert [desk.answers[one].code for one in waiting] == ["on_engine"] * len(waiting)


def test_a_returned_message_is_waited_for(desk):
    desk.settings(backoff_ms=1000)
    (msg_id,) = desk.publish(1)
    desk.take()
    to_engine(desk, backoff_ms=1000)
    desk.nack(msg_id)
    assert desk.consume(timeout_ms=5000) is None
    desk.pass_ms(1000)
    assert [len(one.body["messages"]) for one in desk.answers.values()] == [1]


def test_the_rest_without_a_group_waits_for_one_or_for_retention(desk):
    desk.settings(retention_ms=5000)
    desk.publish(1)
    to_engine(desk, retention_ms=5000)
    assert moving_from(desk) == "raft"
    desk.pass_ms(7000)
    assert moving_from(desk) is None
    assert stats(desk.broker, "t", desk.at_ms)["expired"] == 1


def test_the_rest_dies_of_age_as_ever(desk):
    desk.settings(retention_ms=5000)
    desk.put_group("g")
    (msg_id,) = desk.publish(1)
    to_engine(desk, retention_ms=5000)
    desk.pass_ms(7000)
    (dead,) = peek(desk.broker, PeekQuery(topic="t", group="g", dead=True), desk.at_ms)
    assert (dead["msg_id"], dead["reason"]) == (msg_id, "expired")
    assert desk.redrive().body == {"redriven": 1}
    assert [one["msg_id"] for one in desk.take()] == [msg_id]


def test_groups_stand_in_the_log(desk):
    to_engine(desk)
    desk.put_group("g", start="now")
    desk.consume(group="h")
    assert [line["group"] for line in stats(desk.broker, "t", desk.at_ms)["groups"]] == ["g", "h"]
    assert desk.delete_group("h").body == {"deleted": True}
    assert desk.delete_group("h").body == {"deleted": False}


# ----------------------------------------------------------------- the way back


def test_a_topic_that_leaves_is_in_the_log_when_the_engine_is_closed(desk):
    incarnation = to_engine(desk)
    leave(desk)
    assert desk.broker.topics["t"].engine == EngineUse(incarnation, is_leaving=True)
    assert moving_from(desk) == "redis"
    assert published(desk, topic="t").code == "on_engine"
    assert close(desk)
    assert desk.broker.topics["t"].engine == EngineUse(incarnation, is_leaving=True, is_closed=True)
    assert moving_from(desk) == "redis"
    desk.publish(1)
    assert desk.values(incarnation=incarnation) == [1]
    assert desk.consume(group="h", timeout_ms=0, incarnation=incarnation).body["messages"]


def test_the_log_takes_nothing_before_the_engine_is_closed(desk):
    """A node that does not know of the move still publishes on the engine, also a later message of the same key."""
    desk.settings()
    (msg_id,) = desk.publish(1, topic="source")
    desk.take(topic="source")
    desk.publish(1, dedup_id="a")
    desk.purge()
    to_engine(desk)
    leave(desk)
    new = NewMessage("t", b"0", "", -1, 0, "", b"")
    for command in (
        Publish(messages=[desk.message()]),
        Publish(messages=[desk.message(topic="other"), desk.message()]),
        Publish(messages=[desk.message(dedup_id="a")]),
        Ack(topic="source", group="g", msg_id=msg_id, publish=[new]),
    ):
        result = desk.do(command)
        assert (result.code, result.body["topic"]) == ("on_engine", "t")
    assert "other" not in desk.broker.topics
    leave(desk)
    assert published(desk).code == "on_engine", "the same settings again say nothing about the engine"
    assert close(desk)
    leave(desk)
    assert desk.do(Ack(topic="source", group="g", msg_id=msg_id, publish=[new])).body["published"]
    assert not published(desk).code


def test_only_the_stay_that_is_closed_is_over(desk):
    first = to_engine(desk)
    assert not close(desk), "it does not leave"
    assert published(desk).code == "on_engine"
    leave(desk)
    assert desk.do(EngineClosed(topic="t", incarnation=first + 1)).body == {"closed": False}
    assert desk.do(EngineClosed(topic="gone", incarnation=first)).body == {"closed": False}
    assert published(desk).code == "on_engine"
    desk.do(DeleteTopic(topic="t"))
    second = to_engine(desk)
    leave(desk)
    assert desk.do(EngineClosed(topic="t", incarnation=first)).body == {"closed": False}
    assert published(desk).code == "on_engine"
    assert desk.do(EngineLeft(topic="t", incarnation=second)).body == {"left": True}
    assert not published(desk).code, "what has nothing left takes no more, either"
    assert desk.do(EngineClosed(topic="t", incarnation=second)).body == {"closed": False}


def test_dead_letters_of_others_wait_with_their_group_until_the_engine_is_closed(desk):
    desk.settings(topic="source", max_attempts=1, dead_letter_topic="t")
    to_engine(desk)
    leave(desk)
    first, second = desk.publish(1, 2, topic="source")
    desk.take(2, topic="source")
    assert desk.nack(first, topic="source").body["dead"]
    (dead,) = peek(desk.broker, PeekQuery(topic="source", group="g", dead=True), desk.at_ms)
    assert dead["msg_id"] == first
    assert not desk.broker.topics["t"].messages.by_number
    assert close(desk)
    desk.nack(second, topic="source")
    assert len(desk.broker.topics["t"].messages.by_number) == 1


def test_a_consume_that_does_not_know_of_the_move_overtakes_nothing_on_the_engine(desk):
    """Its node has not applied the move when it makes the call: it has not looked on the engine."""
    incarnation = to_engine(desk)
    to_log(desk)
    desk.publish("behind what is on the engine")
    assert desk.consume(timeout_ms=1000).code == "on_engine"
    assert desk.consume(timeout_ms=1000, max_per_key=2).code == "on_engine"
    assert desk.consume(incarnation=incarnation - 1).code == "on_engine", "that was another stay"
    assert desk.values(incarnation=incarnation) == ["behind what is on the engine"]
    desk.do(EngineLeft(topic="t", incarnation=incarnation))
    desk.publish("late")
    assert desk.values() == ["late"]


@pytest.mark.parametrize("how", ["ack", "purge", "delete_group"])
def test_it_cannot_leave_before_the_log_has_nothing_left_from_before(desk, how):
    """What is published then would come with it, before what is on the engine."""
    (msg_id,) = desk.publish(1)
    desk.take()
    to_engine(desk)
    assert why_not(desk, engine="raft") == ("moving", "engine")
    assert why_not(desk, engine="raft", max_attempts=7) == ("moving", "engine")
    assert desk.broker.topics["t"].is_on_engine
    assert not desk.settings(max_attempts=7).code
    assert not desk.settings(engine="redis", max_attempts=7).code
    if how == "ack":
        desk.ack(msg_id)
    elif how == "purge":
        desk.purge()
    else:
        desk.put_group("other", start="now")
        desk.delete_group("g")
    to_log(desk)


def test_dead_letters_in_the_log_do_not_count_as_left(desk):
    (msg_id,) = desk.publish(1)
    desk.take()
    to_engine(desk)
    desk.nack(msg_id, dead=True)
    assert moving_from(desk) is None
    desk.redrive()
    assert (moving_from(desk), why_not(desk, engine="raft")) == ("raft", ("moving", "engine"))
    assert desk.values() == [1]


def test_without_create_topics_a_deleted_topic_does_not_come_back_on_either_engine(desk):
    to_engine(desk)
    desk.do(PutQueueSettings(create_topics=False))
    assert desk.consume(group="new").code == "on_engine", "its groups are created as before"
    desk.do(DeleteTopic(topic="t"))
    assert (published(desk).code, desk.consume().code) == ("not_found", "not_found")
    to_engine(desk)
    assert published(desk).code == "on_engine"


def test_those_that_wait_for_the_rest_of_a_deleted_group_are_refused(desk):
    for group in ("g", "h"):
        desk.put_group(group)
    desk.publish(1)
    waiting = {}
    for group in ("g", "h"):
        desk.take(group=group)
        assert desk.consume(group=group, timeout_ms=5000) is None
        waiting[group] = desk.origin
    to_engine(desk)
    desk.delete_group("g")
    assert {origin: answer.code for origin, answer in desk.answers.items()} == {waiting["g"]: "not_found"}
    desk.purge()
    assert desk.answers[waiting["h"]].code == "on_engine"


def test_it_cannot_return_before_it_has_left(desk):
    incarnation = to_engine(desk)
    to_log(desk)
    assert why_not(desk, engine="redis") == ("moving", "engine")
    assert desk.do(EngineLeft(topic="t", incarnation=incarnation)).body == {"left": True}
    assert moving_from(desk) is None
    assert desk.broker.registry.abandoned == {incarnation: "t"}
    assert to_engine(desk) > incarnation


def test_a_topic_that_was_on_the_engine_may_be_deleted_after_a_day_without_use(desk):
    """As one that never was: the group of a consume does not keep it, and the calls that the engine answered were a use."""
    incarnation = to_engine(desk)
    desk.do(CreateGroup(topic="t", group="g"))
    desk.do(CreateGroup(topic="t", group="g"))
    topic = desk.broker.topics["t"]
    assert list(topic.groups) == ["g"]
    to_log(desk)
    desk.pass_ms(1000)
    desk.do(EngineLeft(topic="t", incarnation=incarnation))
    assert topic.used_ms == desk.at_ms
    assert topic.is_idle
    desk.put_group("g")
    assert not topic.is_idle


def test_what_the_leader_proposes_twice_or_too_late_does_nothing(desk):
    first = to_engine(desk)
    assert desk.do(EngineLeft(topic="t", incarnation=first)).body == {"left": False}, "it does not leave"
    to_log(desk)
    assert desk.do(EngineLeft(topic="t", incarnation=first + 1)).body == {"left": False}, "another incarnation"
    assert desk.do(EngineLeft(topic="t", incarnation=first)).body == {"left": True}
    second = to_engine(desk)
    to_log(desk)
    assert desk.do(EngineLeft(topic="t", incarnation=first)).body == {"left": False}
    assert desk.do(EngineLeft(topic="gone", incarnation=first)).body == {"left": False}
    assert desk.broker.topics["t"].engine.incarnation == second
    assert desk.do(EngineForgotten(incarnations=[first, first, second])).body == {"forgotten": 1}
    assert desk.broker.registry.abandoned == {}


def test_a_deleted_topic_leaves_its_keys_to_the_leader(desk):
    incarnation = to_engine(desk)
    desk.do(DeleteTopic(topic="t"))
    assert desk.broker.registry.abandoned == {incarnation: "t"}
    desk.publish(1)
    assert desk.broker.topics["t"].engine is None
    assert to_engine(desk) != incarnation


def test_a_topic_with_something_on_the_engine_is_not_idle(desk):
    incarnation = to_engine(desk)
    assert desk.do(DropIdle(topics=["t"])).body == {"dropped": 0}
    to_log(desk)
    assert desk.do(DropIdle(topics=["t"])).body == {"dropped": 0}
    desk.do(EngineLeft(topic="t", incarnation=incarnation))
    assert desk.do(DropIdle(topics=["t"])).body == {"dropped": 1}


# ------------------------------------------------------------------- limits


def test_what_is_on_the_engine_counts_until_its_keys_are_deleted(desk):
    desk.settings()
    before = desk.broker.usage()
    incarnation = to_engine(desk)
    during = desk.broker.usage()
    assert during == recounted_usage(desk.broker)
    assert during["queue_topics"] > before["queue_topics"]
    to_log(desk)
    desk.do(EngineLeft(topic="t", incarnation=incarnation))
    assert desk.broker.usage() == during == recounted_usage(desk.broker)
    desk.do(EngineForgotten(incarnations=[incarnation]))
    assert desk.broker.usage() == before


def test_a_full_queue_lets_no_topic_move(desk):
    desk.settings()
    desk.broker.limits.maxima["queue_bytes_max"] = desk.broker.registry.account.used
    assert why_not(desk, engine="redis") == ("over_limit", "queue_bytes_max")
    assert desk.broker.topics["t"].engine is None


def test_no_topic_moves_while_too_many_keys_are_left(desk, monkeypatch):
    monkeypatch.setattr(engine_moves, "ABANDONED_MAX", 1)
    incarnation = to_engine(desk)
    desk.do(DeleteTopic(topic="t"))
    assert why_not(desk, engine="redis") == ("over_limit", "abandoned_max")
    assert "t" not in desk.broker.topics
    desk.do(EngineForgotten(incarnations=[incarnation]))
    to_engine(desk)


# ------------------------------------------------------------- dead letters


def test_no_dead_letters_of_others_go_to_the_engine(desk):
    desk.settings(topic="source", max_attempts=1, dead_letter_topic="t")
    to_engine(desk)
    (msg_id,) = desk.publish(1, topic="source")
    desk.take(topic="source")
    assert desk.nack(msg_id, topic="source").body["dead"]
    (dead,) = peek(desk.broker, PeekQuery(topic="source", group="g", dead=True), desk.at_ms)
    assert dead["msg_id"] == msg_id
    assert not desk.broker.topics["t"].messages.by_number
    assert why_not(desk, topic="new", dead_letter_topic="t") == ("not_on_engine", "dead_letter_topic")
    assert not desk.settings(topic="source", max_attempts=2, dead_letter_topic="t").code, "what it has already may stay"
    to_log(desk)
    assert not desk.settings(topic="new", dead_letter_topic="t").code


# --------------------------------------------------------------- SQS and SNS


def queue(desk, name, **attributes):
    return desk.do(CreateQueue(topic=name, attributes=attributes))


def change(desk, name, **attributes):
    return desk.do(ChangeQueue(topic=name, attributes=attributes))


def refusal(result):
    return result.code, result.body.get("field")


def policy(target):
    return f'{{"deadLetterTargetArn":"arn:aws:sqs:local:000000000000:{target}","maxReceiveCount":3}}'


def test_an_attribute_moves_a_queue(desk):
    assert queue(desk, "q").body["created"]
    desk.publish(1, topic="q")
    assert change(desk, "q", DssEngine="redis", DssAcks="replica").body == {"changed": True}
    topic = desk.broker.topics["q"]
    assert (topic.is_on_engine, topic.messages.settings.acks) == (True, "replica")
    assert desk.do(PublishToQueues(messages=[desk.message(topic="q")])).code == "on_engine"
    assert desk.values(topic="q", group="sqs") == [1]
    assert desk.consume(topic="q", group="sqs", timeout_ms=1000) is None
    waits = desk.origin
    assert desk.do(PurgeQueue(topic="q")).body == {"purged": 1}
    assert desk.answers[waits].code == "on_engine"
    assert change(desk, "q", DelaySeconds="1").body == {"changed": True}
    assert topic.is_on_engine
    assert change(desk, "q", DssEngine="", DssAcks="").body == {"changed": True}
    assert topic.engine.is_leaving
    assert refusal(change(desk, "q", DssEngine="redis")) == ("moving", "engine")


def test_a_queue_may_begin_on_the_engine(desk):
    assert queue(desk, "q", DssEngine="redis").body["created"]
    assert desk.consume(topic="q", group="sqs").code == "on_engine"


def test_what_a_queue_on_the_engine_cannot_have_is_refused(desk):
    assert refusal(queue(desk, "q", DssEngine="redis", RedrivePolicy=policy("dead"))) == ("not_on_engine", "dead_letter_topic")
    assert refusal(queue(desk, "q", DssAcks="fsync")) == ("invalid", "acks")
    assert "q" not in desk.broker.topics
    queue(desk, "q", DssEngine="redis")
    queue(desk, "log")
    assert refusal(change(desk, "q", RedrivePolicy=policy("log"))) == ("not_on_engine", "dead_letter_topic")
    assert refusal(change(desk, "log", RedrivePolicy=policy("q"))) == ("not_on_engine", "dead_letter_topic")
    assert refusal(desk.do(StartMove(topic="q", target="log"))) == ("not_on_engine", "topic")
    assert refusal(desk.do(StartMove(topic="log", target="q"))) == ("not_on_engine", "target")
    with pytest.raises(ValueError, match="DssEngine must be one of raft, redis"):
        CreateQueue(topic="q", attributes={"DssEngine": "etcd"})


def test_a_move_task_ends_when_its_target_goes_to_the_engine(desk):
    for name in ("q", "target"):
        queue(desk, name)
    desk.publish(1, 2, topic="q")
    desk.do(StartMove(topic="q", target="target", rate=1))
    change(desk, "target", DssEngine="redis")
    desk.pass_ms(1000)
    (task,) = desk.broker.topics["q"].queue.moves
    assert (task.status, task.reason) == ("FAILED", "AWS.SimpleQueueService.UnsupportedOperation")
    assert sorted(desk.values(2, topic="q", group="sqs")) == [1, 2]


def test_a_move_task_waits_until_the_engine_is_closed(desk):
    queue(desk, "q")
    queue(desk, "target", DssEngine="redis")
    change(desk, "target", DssEngine="")
    desk.publish(1, topic="q")
    desk.do(StartMove(topic="q", target="target"))
    desk.pass_ms(1000)
    (task,) = desk.broker.topics["q"].queue.moves
    assert (task.status, task.moved) == ("RUNNING", 0)
    assert close(desk, "target")
    desk.pass_ms(2000)
    (task,) = desk.broker.topics["q"].queue.moves
    assert (task.status, task.moved) == ("COMPLETED", 1)


def test_sns_publishes_nothing_to_a_queue_before_the_engine_is_closed(desk):
    queue(desk, "q", DssEngine="redis")
    queue(desk, "other")
    change(desk, "q", DssEngine="")
    desk.do(CreateSnsTopic(sns_topic="news"))
    for name in ("other", "q"):
        assert not desk.do(Subscribe(sns_topic="news", queue=name)).code
    publish = PublishToSns(sns_topic="news", notices=[Notice("x", {}, {}, {})])
    assert desk.do(publish).code == "on_engine"
    assert not desk.broker.topics["other"].messages.by_number
    assert close(desk, "q")
    assert desk.do(publish).body == {"sent": 2}


def test_topics_of_sns_and_the_engine_exclude_each_other(desk):
    queue(desk, "q", DssEngine="redis")
    queue(desk, "log")
    desk.do(CreateSnsTopic(sns_topic="news"))
    assert refusal(desk.do(Subscribe(sns_topic="news", queue="q"))) == ("not_on_engine", "queue")
    assert not desk.do(Subscribe(sns_topic="news", queue="log")).code
    assert refusal(change(desk, "log", DssEngine="redis")) == ("not_on_engine", "engine")
    desk.do(Subscribe(sns_topic="news", queue="later"))
    assert refusal(queue(desk, "later", DssEngine="redis")) == ("not_on_engine", "engine")
    # As a topic that is no queue, it gets nothing from SNS, so it may be there.
    to_engine(desk, "later")
    assert refusal(queue(desk, "later", DssEngine="redis")) == ("not_on_engine", "engine")
    assert desk.do(PublishToSns(sns_topic="news", notices=[Notice("x", {}, {}, {})])).body == {"sent": 1}


# ------------------------------------------------------------------ snapshot


def test_each_state_survives_a_restart(desk):
    def same_after_restart():
        before = desk.broker.snapshot(), desk.broker.usage(), desk.broker.next_deadline_ms()
        desk.restart()
        assert (desk.broker.snapshot(), desk.broker.usage(), desk.broker.next_deadline_ms()) == before

    desk.publish(1)
    incarnation = to_engine(desk, acks="replica")
    same_after_restart()
    assert published(desk).code == "on_engine"
    assert desk.values() == [1]
    assert desk.consume(timeout_ms=5000) is None
    same_after_restart()
    desk.purge()
    assert [one.code for one in desk.answers.values()] == ["on_engine"]
    leave(desk)
    same_after_restart()
    assert published(desk).code == "on_engine"
    assert close(desk)
    same_after_restart()
    assert why_not(desk, engine="redis") == ("moving", "engine")
    desk.do(EngineLeft(topic="t", incarnation=incarnation))
    same_after_restart()
    assert desk.broker.registry.abandoned == {incarnation: "t"}
    desk.do(EngineForgotten(incarnations=[incarnation]))
    same_after_restart()


def test_a_topic_that_was_on_the_engine_is_stored_as_any_other(desk):
    def stored():
        """How long the state and its topic are, and the names of the topic's settings."""
        state = msgspec.msgpack.decode(desk.broker.snapshot())
        (topic,) = state[3]
        return len(state), len(topic), sorted(topic[2])

    desk.settings()
    before = stored()
    incarnation = to_engine(desk)
    assert stored() > before
    to_log(desk)
    desk.do(EngineLeft(topic="t", incarnation=incarnation))
    desk.do(EngineForgotten(incarnations=[incarnation]))
    assert stored() == before
