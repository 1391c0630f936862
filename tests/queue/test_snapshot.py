"""A node restored from a snapshot behaves exactly like one that applied every entry."""

from __future__ import annotations

import base64
import random

import msgspec
import pytest

from dss_dev.queue_broker import Desk
from dss_dev.queue_recount import recounted_usage
from dss_queue.core.broker import Broker
from dss_queue.core.commands import Ack, Consume, GiveBack, MarkReceived, Nack, Publish, Purge, PutTopic, Redrive
from dss_queue.core.group import Group
from dss_queue.core.topic_commands import DeleteGroup, DeleteTopic, DropIdle, PutGroup, PutQueueSettings
from dss_raft.formats import WrongFormat
from dss_raft.replication.machine import Origin


def random_command(rng, desk):
    """Any command, with retention, backoff, dedup, delays, keys, several topics and groups."""
    topic, group = rng.choice(["t", "t", "u"]), rng.choice(["g", "h"])
    kind = rng.randrange(100)
    if kind < 30:
        fields = {"topic": topic, "delay_ms": rng.choice([0, 0, 0, 30]), "dedup_id": rng.choice(["", "", "x", "y"])}
        return Publish(messages=[desk.message(rng.randrange(9), rng.choice(["", "ä", "b"]), **fields) for _ in range(2)])
    if kind < 65:
        timeout_ms = rng.choice([0, 0, 40])
        visibility_ms = rng.choice([5, 30, 3000])
        attempt_id = rng.choice(["", "", "p", "long" * 20])
        return Consume(
            topic=topic,
            group=group,
            timeout_ms=timeout_ms,
            visibility_ms=visibility_ms,
            attempt_id=attempt_id,
            max_messages=rng.choice([1, 3]),
        )
    held = [d for t in desk.broker.topics.values() for g in t.groups.values() for d in g.in_flight.values()]
    if kind < 94 and held:
        delivery = rng.choice(held)
        number, g = delivery.message.number, delivery.handout.group
        msg_id = f"{number >> 24}-{number % 2**24}"
        named = {"topic": g.messages.topic, "group": g.name, "msg_id": msg_id}
        if kind > 88:
            pushed = {
                "topic": g.messages.topic,
                "group": g.name,
                "msg_ids": [msg_id],
                "receipts": [f"{msg_id}.{delivery.serial:x}"],
            }
            return GiveBack(**pushed) if kind > 91 else MarkReceived(**pushed, received=kind > 90)
        if kind < 75:
            return ack_many(rng, g)
        return Ack(**named) if kind < 82 else Nack(**named, dead=kind > 86)
    if kind < 95:
        return rng.choice(
            [
                DeleteTopic(topic=topic),
                DeleteGroup(topic=topic, group=group),
                DropIdle(topics=["t", "u"]),
                PutQueueSettings(create_topics=rng.choice([True, False])),
            ]
        )
    if kind < 97:
        return PutGroup(topic=topic, group=rng.choice(["g", "h", "late"]), start=rng.choice(["first", "now"]))
    if kind < 98:
        return Redrive(topic=topic, group=group)
    if kind < 99:
        retention_ms, keep_ms = rng.choice([0, 1500]), rng.choice([0, 900, 3000])
        return PutTopic(
            topic=topic, max_attempts=2, backoff_ms=5, retention_ms=retention_ms, dedup_window_ms=200, keep_ms=keep_ms
        )
    return Purge(topic=topic)


def ack_many(rng, group):
    """An ack of messages in flight and of one that is not, with or without receipts."""
    msg_ids = ["1-1"]
    receipts = ["1-1.1"]
    for number, delivery in group.in_flight.items():
        msg_ids.append(f"{number >> 24}-{number % 2**24}")
        receipts.append(f"{msg_ids[-1]}.{delivery.serial + (rng.randrange(9) == 0):x}")
    named = {"topic": group.messages.topic, "group": group.name, "msg_ids": msg_ids}
    return Ack(**named, receipts=receipts) if rng.randrange(2) else Ack(**named)


@pytest.mark.parametrize("seed", range(20))
def test_acks_of_many_messages_have_the_effect_of_single_ones(seed, monkeypatch):
    rng = random.Random(seed)
    one, other = Desk(), Desk()

    def each_by_itself(group, held, at_ms):
        for delivery in held:
            group.acked(delivery, at_ms)

    for desk in (one, other):
        for topic in "tu":
            desk.do(PutTopic(topic=topic, max_attempts=2, backoff_ms=5, dedup_window_ms=200))
    for _ in range(200):
        command = random_command(rng, one)
        one.at_ms = other.at_ms = one.at_ms + rng.choice([0, 0, 1, 10, 10, 700])
        with monkeypatch.context() as patched:
            patched.setattr(Group, "acked_all", each_by_itself)
            expected = other.entry(command)
        assert one.entry(command) == expected
        assert one.broker.snapshot() == other.broker.snapshot()
        assert one.broker.usage() == other.broker.usage()
        assert one.broker.next_deadline_ms() == other.broker.next_deadline_ms()
    check_accounts(one.broker)


@pytest.mark.parametrize("seed", range(40))
def test_restored_at_any_time_it_gives_the_same_answers(seed):
    rng = random.Random(seed)
    one, other = Desk(), Desk()
    for desk in (one, other):
        for topic in "tu":
            desk.do(PutTopic(topic=topic, max_attempts=2, backoff_ms=5, retention_ms=1500, dedup_window_ms=200))
    for _ in range(150):
        command = random_command(rng, one)
        passed_ms = rng.choice([0, 0, 1, 10, 10, 700])
        one.at_ms += passed_ms
        other.at_ms += passed_ms
        assert one.entry(command) == other.entry(command)
        assert one.answers == other.answers
        assert one.broker.next_deadline_ms() == other.broker.next_deadline_ms()
        if rng.randrange(4) == 0:
            other.restart()
        assert one.broker.snapshot() == other.broker.snapshot()
        for desk in (one, other):
            assert desk.broker.usage() == recounted_usage(desk.broker)
    check_accounts(one.broker)


def check_accounts(broker):
    """Bytes, counts and deadlines agree with the messages."""
    for topic in broker.topics.values():
        kept = [*topic.messages.by_number.values()]
        for group in topic.groups.values():
            kept += [*group.backlog.private.values(), *group.dead.values()]
            assert group.backlog.waiting == sum(returned.due_ms > 0 for returned in group.backlog.returned.values())
            assert group.backlog.pending >= len(group.in_flight)
            assert set(group.backlog.private) <= {*group.in_flight, *group.backlog.returned}
        assert topic.messages.bytes == sum(one.size for one in kept)
    for handout in broker.callers.handouts.values():
        assert handout.live == sum(
            number in handout.group.in_flight and handout.group.in_flight[number].handout is handout for number in handout.numbers
        )
        assert handout.live > 0


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost(seed):
    """For each group, published = acked + dead + pending after any sequence of steps, and draining delivers everything."""
    rng = random.Random(seed)
    desk = Desk()
    desk.do(PutTopic(topic="t", max_attempts=3, retention_ms=0))
    desk.take(group="g")
    desk.take(group="h")
    done = {"g": set(), "h": set()}
    published = []
    for _ in range(300):
        group = rng.choice(["g", "h"])
        if rng.randrange(3) == 0:
            published += desk.publish(0, 1, key=rng.choice(["", "a", "b"]), delay_ms=rng.choice([0, 20]))
        for message in desk.take(rng.randrange(1, 4), group=group, visibility_ms=rng.choice([3, 1000])):
            what = rng.randrange(4)
            if what < 2 and desk.ack(message["msg_id"], message["receipt"], group=group).body["acked"]:
                done[group].add(message["msg_id"])
            elif what == 2:
                desk.nack(message["msg_id"], message["receipt"], group=group, delay_ms=rng.choice([0, 15]))
        if rng.randrange(5) == 0:
            desk.cancel(Origin("n1", 1, rng.randrange(1, desk.seq + 1)))
        desk.pass_ms(rng.randrange(4))
    for group in ("g", "h"):
        there = desk.broker.topics["t"].groups[group]
        assert len(published) == len(done[group]) + len(there.dead) + there.backlog.pending
        for _ in range(len(published)):
            desk.pass_ms(2000)
            desk.redrive(group=group)
            for message in desk.take(1000, group=group):
                assert desk.ack(message["msg_id"], group=group).body["acked"]
                done[group].add(message["msg_id"])
        assert done[group] == set(published)
    assert not desk.broker.topics["t"].messages.by_number
    assert desk.broker.usage()["queue_messages"] == 0


def test_another_format_is_refused():
    state = msgspec.msgpack.decode(Broker().snapshot())
    state[0] = 99
    with pytest.raises(WrongFormat, match="format 99"):
        Broker().restore(msgspec.msgpack.encode(state))


#: Written by release 0.2.0: messages in flight, returned, delayed, keyed and dead, a waiter, a topic with settings.
OLD = """
lQLOAA9CQBKTm6F0AYWsbWF4X2F0dGVtcHRzA6piYWNrb2ZmX21zzROIrHJldGVudGlvbl9tc84k
DIQAr2RlZHVwX3dpbmRvd19tc84ABJPgqW1heF9ieXRlc85AAAAAkcSTl5jOAgAAAKAAxAExxADO
AA9CQAAAmM4CAAADoAPEATTEAM4AD0JAAACYzgIAAASgBMQBNcQAzgAPQkAAAJjOAgAABaAFxAE2
xADOAA9CQAAAmM4DAAAAoWsFxAE3xADOAA9CQAAAmM4DAAABoWsFxAE4xADOAA9CQAAAmM4EAAAA
oAjEATnEAM4AD0JAzgAQLKAAkIGheJPOBAAAAAjOAA9CQAkAk2QJAJPOABAsoM4kG8ZAzgAT1iCS
maFnzgIAAASAkJGWzgIAAAABkZUBzgAPQkDOAA9CQKRuYWNrom4xCQfOAA9VyJGazgIAAAKgAsQB
M8QAzgAPQkDOAA9CQAGocmVqZWN0ZWSRlQHOAA9CQM4AD0JAqHJlamVjdGVkom4xkAeWBAABgahy
ZWplY3RlZAGTZAQAk2QBAJmlb3RoZXLOAgAABICQkZbOAgAAAwCQDQAAkJAHlgEAAICTZAEAkwAA
AJulcGxhaW4EhaxtYXhfYXR0ZW1wdHMUqmJhY2tvZmZfbXMArHJldGVudGlvbl9tc84kDIQAr2Rl
ZHVwX3dpbmRvd19tc84ABJPgqW1heF9ieXRlc85AAAAAkcQWkZjOBQAAAKAAxAIxMMQAzgAPQkAA
AJCAAQCTZAEAkwDOJBvGQACQm6RpZGxlD4WsbWF4X2F0dGVtcHRzFKpiYWNrb2ZmX21zAKxyZXRl
bnRpb25fbXPOJAyEAK9kZWR1cF93aW5kb3dfbXPOAAST4KltYXhfYnl0ZXPOQAAAAJCQgAAAkwAA
AJMAAACRmaF3/4CQkJCRlpOibjEBDBLNOpgBoM4AD5BgAJYAAACAkwAAAJMAAACSlZOibjEBCaCh
dKFnkZfOAgAAAwsBzgAPQkDNOpjOAA982JCVk6JuMQELoKF0pW90aGVykZfOAgAAAA4BzgAPQkDN
OpjOAA982JA=
"""


def test_a_snapshot_of_the_previous_format_is_read():
    desk = Desk()
    desk.broker.restore(base64.b64decode(OLD))
    desk.index, desk.at_ms = 100, 1_001_000
    topic = desk.broker.topics["t"]
    assert (topic.used_ms, topic.messages.kept, desk.broker.registry.create_topics) == (1_000_000, [], True)
    assert topic.messages.settings.keep_ms == 0
    assert desk.values(10) == [5, 6, 7]
    desk.pass_ms(70_000)
    desk.pass_ms(6000)  # the backoff
    desk.redrive()
    messages = desk.take(20)
    assert {json_value(one): one["attempt"] for one in messages} == {1: 2, 3: 1, 4: 2, 5: 2, 6: 2, 7: 2, 9: 1}
    assert desk.values(20, group="other") == [1, 4, 5, 6, 7, 9]
    assert desk.values(20, topic="plain") == [10]
    before = desk.broker.snapshot()
    desk.restart()
    assert desk.broker.snapshot() == before
    check_accounts(desk.broker)


def json_value(message):
    return msgspec.json.decode(message["value"])
