"""Commands of all kinds in any order: none raises, accounts stay right, and a restored broker goes on like the others."""

from __future__ import annotations

import random

import pytest

from dss_dev.queue_broker import Desk
from dss_dev.queue_recount import recounted_usage
from dss_queue.core.broker import Broker
from dss_queue.core.commands import (
    Ack,
    Consume,
    ConsumeRuns,
    Extend,
    GiveBack,
    MarkReceived,
    Nack,
    Publish,
    Purge,
    PutTopic,
    Redrive,
    SetTopic,
)
from dss_queue.core.engines import ConsumeAfterEngine, EngineClosed, EngineForgotten, EngineLeft
from dss_queue.core.records import message_id, receipt_of
from dss_queue.core.sns_topics import CreateSnsTopic, DeleteSnsTopic, Notice, PublishToSns, Subscribe, Unsubscribe
from dss_queue.core.sqs_queues import CancelMove, ChangeQueue, CreateQueue, PublishToQueues, PurgeQueue, StartMove
from dss_queue.core.topic_commands import CreateGroup, DeleteDead, DeleteGroup, DeleteTopic, DropIdle, PutGroup, PutQueueSettings

TOPICS = ("a", "b", "c")
GROUPS = ("sqs", "g")
#: what the broker may answer; every other code would be a fault
CODES = {"", "stale_receipt", "not_found", "invalid", "over_limit", "on_engine", "not_on_engine", "moving", "not_holder"}


class AnyOrder:
    """Makes commands that fit the state, most of the time."""

    def __init__(self, seed: int, desk: Desk) -> None:
        self.rng = random.Random(seed)
        self.desk = desk

    def command(self):
        kind = self.rng.choice([*self.often, *self.often, *self.seldom])
        return kind(self)

    def named(self):
        """A topic, a group, and a delivery, if there is one."""
        held = [d for t in self.desk.broker.topics.values() for g in t.groups.values() for d in g.in_flight.values()]
        if not held or not self.rng.randrange(8):
            return self.rng.choice(TOPICS), self.rng.choice(GROUPS), "1-0", "1-0.1"
        one = self.rng.choice(held)
        msg_id = message_id(one.message.number)
        group = one.handout.group
        return group.messages.topic, group.name, msg_id, receipt_of(msg_id, one.serial)

    def message(self, topic=""):
        rng = self.rng
        fields = {"delay_ms": rng.choice([0, 0, 0, 30]), "dedup_id": rng.choice(["", "", "x"])}
        return self.desk.message(1, rng.choice(["", "k"]), topic=topic or rng.choice(TOPICS), **fields)

    def attributes(self):
        rng = self.rng
        found = {"DssEngine": rng.choice(["", "raft", "redis", "redis"]), "DssAcks": rng.choice(["", "", "replica"])}
        found["MessageRetentionPeriod"] = rng.choice(["", "1"])
        if not rng.randrange(4):
            target = rng.choice(TOPICS)
            found["RedrivePolicy"] = f'{{"deadLetterTargetArn":"arn:aws:sqs:x:0:{target}","maxReceiveCount":1}}'
        return {name: text for name, text in found.items() if rng.randrange(2)}

    def put_topic(self):
        rng = self.rng
        fields = {"topic": rng.choice(TOPICS), "max_attempts": rng.choice([1, 2]), "retention_ms": rng.choice([0, 900])}
        if not rng.randrange(4):
            return PutTopic(**fields, keep_ms=rng.choice([0, 500]))
        target = rng.choice(["", "", *TOPICS])
        engine, acks = rng.choice([None, "raft", "redis", "redis"]), rng.choice([None, "primary", "primary", "fsync"])
        target = "" if target == fields["topic"] else target
        return SetTopic(**fields, dead_letter_topic=target, engine=engine, acks=acks)

    def consume(self):
        rng = self.rng
        fields = {"topic": rng.choice(TOPICS), "group": rng.choice(GROUPS), "timeout_ms": rng.choice([0, 40, 400])}
        fields |= {
            "visibility_ms": rng.choice([5, 300]),
            "attempt_id": rng.choice(["", "", "p"]),
            "create": bool(rng.randrange(4)),
        }
        if rng.randrange(2):
            return Consume(**fields, max_messages=rng.choice([1, 3]))
        if rng.randrange(2):
            topic = self.desk.broker.topics.get(fields["topic"])
            finished = 1 if topic is None or topic.engine is None else topic.engine.incarnation
            return ConsumeAfterEngine(**fields, max_messages=2, max_per_key=1, incarnation=finished)
        return ConsumeRuns(**fields, max_messages=3, max_per_key=2)

    def end(self):
        rng = self.rng
        topic, group, msg_id, receipt = self.named()
        one = {"topic": topic, "group": group, "msg_id": msg_id, "receipt": receipt}
        several = {"topic": topic, "group": group, "msg_ids": [msg_id], "receipts": [receipt]}
        return rng.choice(
            [
                Ack(**one),
                Ack(**one, publish=[self.message()]),
                Ack(**several),
                Nack(**one, dead=not rng.randrange(2)),
                Nack(**one, silent=True),
                Extend(**one, visibility_ms=50),
                GiveBack(**several),
                MarkReceived(**several, received=False),
            ]
        )

    def move(self):
        """Of the engine's: what the leader proposes, in time or not."""
        registry = self.desk.broker.registry
        used = [(t.name, t.engine.incarnation) for t in self.desk.broker.topics.values() if t.engine is not None]
        topic, incarnation = self.rng.choice([*used, (self.rng.choice(TOPICS), 1)])
        some = [*registry.abandoned, *(number for _, number in used)]
        one = {"topic": topic, "incarnation": incarnation}
        return self.rng.choice([EngineClosed(**one), EngineLeft(**one), EngineForgotten(incarnations=some[:2])])

    def manage(self):
        rng = self.rng
        topic, group = rng.choice(TOPICS), rng.choice(GROUPS)
        return rng.choice(
            [
                DeleteTopic(topic=topic),
                DeleteGroup(topic=topic, group=group),
                PutGroup(topic=topic, group=group, start=rng.choice(["first", "now"])),
                CreateGroup(topic=topic, group=group),
                DropIdle(topics=list(TOPICS)),
                PutQueueSettings(create_topics=bool(rng.randrange(4))),
                Redrive(topic=topic, group=group),
                DeleteDead(topic=topic, group=group, msg_id="1-0"),
                Purge(topic=topic),
                Purge(topic=topic, dead=True),
                PurgeQueue(topic=topic),
            ]
        )

    def queue(self):
        rng = self.rng
        topic = rng.choice(TOPICS)
        tasks = [task.serial for t in self.desk.broker.topics.values() if t.queue is not None for task in t.queue.moves]
        return rng.choice(
            [
                CreateQueue(topic=topic, attributes={n: t for n, t in self.attributes().items() if t}),
                ChangeQueue(topic=topic, attributes=self.attributes()),
                StartMove(topic=topic, target=rng.choice(["", *TOPICS])),
                CancelMove(topic=topic, task=rng.choice([*tasks, 1])),
                PublishToQueues(messages=[self.message(topic)]),
            ]
        )

    def sns(self):
        rng = self.rng
        serials = [one.serial for topic in self.desk.broker.registry.sns.values() for one in topic.subscriptions]
        return rng.choice(
            [
                CreateSnsTopic(sns_topic="s"),
                DeleteSnsTopic(sns_topic="s"),
                Subscribe(sns_topic="s", queue=rng.choice(TOPICS)),
                Unsubscribe(sns_topic="s", subscription=rng.choice([*serials, 1])),
                PublishToSns(sns_topic="s", notices=[Notice("x", {}, {}, {})]),
            ]
        )

    def publish(self):
        return Publish(messages=[self.message() for _ in range(self.rng.choice([1, 1, 2]))])

    often = (publish, consume, end, put_topic)
    seldom = (move, manage, queue, sns)


def test_every_command_is_among_them():
    steps = AnyOrder(1, Desk())
    seen = {type(steps.command()) for _ in range(5000)}
    assert seen == set(Broker.commands)


@pytest.mark.parametrize("seed", range(30))
def test_any_order(seed):
    one, other = Desk(), Desk()
    steps = AnyOrder(seed, one)
    for _ in range(200):
        commands = [steps.command() for _ in range(steps.rng.choice([1, 1, 3]))]
        passed_ms = steps.rng.choice([0, 0, 1, 10, 100, 700])
        one.at_ms += passed_ms
        other.at_ms += passed_ms
        results = one.entry(*commands)
        assert results == other.entry(*commands)
        assert {result.code for result in results if result is not None} <= CODES
        assert one.answers == other.answers
        if not steps.rng.randrange(4):
            other.restart()
        assert one.broker.snapshot() == other.broker.snapshot()
        assert one.broker.next_deadline_ms() == other.broker.next_deadline_ms()
        for desk in (one, other):
            assert desk.broker.usage() == recounted_usage(desk.broker)
        check_engines(one.broker)


def check_engines(broker):
    """What must be true of topics on the engine at any time."""
    used = {topic.engine.incarnation for topic in broker.topics.values() if topic.engine is not None}
    assert len(used) == sum(topic.engine is not None for topic in broker.topics.values())
    assert not used & broker.registry.abandoned.keys()
    for topic in broker.topics.values():
        settings = topic.messages.settings
        assert (settings.engine == "redis") == topic.is_on_engine
        assert topic.engine is None or topic.engine.is_leaving or not topic.engine.is_closed
        if topic.is_on_engine:
            assert not settings.keep_ms
            assert not settings.dead_letter_topic
            assert not topic.is_idle
            assert not (topic.queue is not None and broker.registry.is_subscribed(topic.name))
            for group in topic.groups.values():
                assert not group.waiters or group.backlog.pending
