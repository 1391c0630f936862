"""Topics and groups are created on purpose, deleted, and kept for groups that come later."""

from __future__ import annotations

import pytest

from dss_queue.core.commands import Ack, NewMessage, Publish
from dss_queue.core.topic_commands import DeleteTopic, DropIdle, PutQueueSettings
from dss_queue.idle_topics import IDLE_MS, LOOK_MS, IdleTopics

DAY_MS = 24 * 3600 * 1000


def topic_of(desk):
    return desk.broker.topics["t"]


# ---------------------------------------------------------------------- topics


def test_a_deleted_topic_leaves_nothing(desk):
    desk.settings(max_attempts=3)
    desk.publish(1, 2, 3, key="k", dedup_id="")
    desk.publish(4, delay_ms=1000, dedup_id="d")
    (first,) = desk.take()
    desk.nack(first["msg_id"], dead=True)
    desk.take()
    assert desk.do(DeleteTopic(topic="t")).body == {"deleted": True, "purged": 3}
    assert not desk.broker.topics
    assert desk.broker.registry.account.used == 0
    assert not desk.broker.callers.handouts
    assert desk.broker.next_deadline_ms() is None
    desk.pass_ms(10 * DAY_MS)
    assert desk.do(DeleteTopic(topic="t")).body == {"deleted": False, "purged": 0}


def test_a_deleted_topic_is_new_when_it_is_used_again(desk):
    desk.settings(max_attempts=3)
    desk.publish(1, dedup_id="d")
    desk.do(DeleteTopic(topic="t"))
    desk.publish(2, dedup_id="d")
    assert desk.values() == [2]
    assert topic_of(desk).messages.settings.max_attempts == 20


@pytest.mark.parametrize("what", ["topic", "group"])
def test_consumes_that_wait_are_refused_when_their_group_is_deleted(desk, what):
    assert desk.consume(timeout_ms=20_000, attempt_id="a") is None
    waiting = desk.origin
    desk.do(DeleteTopic(topic="t")) if what == "topic" else desk.delete_group("g")
    assert desk.answers[waiting].code == "not_found"
    assert not desk.broker.callers.waiters
    desk.pass_ms(30_000)


def test_ten_thousand_typing_errors_do_not_fill_the_table(desk):
    for n in range(3):
        desk.consume(topic=f"typo-{n}")
        assert desk.do(DeleteTopic(topic=f"typo-{n}")).body["deleted"]
    assert not desk.broker.topics


# --------------------------------------------------------- creating by using


def test_a_cluster_may_forbid_to_create_topics_by_using_them(desk):
    desk.do(PutQueueSettings(create_topics=False))
    desk.restart()
    message = NewMessage("typo", b"1", "", -1, 0, "", b"")
    refused = desk.do(Publish(messages=[message]))
    assert refused.code == "not_found"
    assert "create_topics" in refused.body["detail"]
    assert desk.consume(topic="typo").code == "not_found"
    assert desk.do(Publish(messages=[desk.message(1), message])).code == "not_found"
    assert desk.put_group("g").code == "not_found"
    assert not desk.broker.topics
    desk.settings()
    (msg_id,) = desk.publish(1)
    assert desk.values() == [1]
    refused = desk.do(Ack(topic="t", group="g", msg_id=msg_id, publish=[message]))
    assert refused.code == "not_found"
    assert topic_of(desk).groups["g"].in_flight, "nothing was done"
    desk.do(PutQueueSettings())
    assert desk.do(Publish(messages=[message])).code == ""


# ---------------------------------------------------------------------- groups


def test_a_group_from_the_start_from_now_or_from_a_message(desk):
    ids = desk.publish(1, 2, 3)
    assert desk.put_group("start").body == {"created": True, "pending": 3}
    assert desk.put_group("now", start="now").body == {"created": True, "pending": 0}
    assert desk.put_group("from", msg_id=ids[1]).body == {"created": True, "pending": 2}
    desk.publish(4)
    assert desk.values(9, group="start") == [1, 2, 3, 4]
    assert desk.values(9, group="now") == [4]
    assert desk.values(9, group="from") == [2, 3, 4]
    assert desk.put_group("now").body == {"created": False, "pending": 1}


def test_a_message_id_that_cannot_be_is_refused(desk):
    refused = desk.put_group("g", msg_id="x")
    assert (refused.code, refused.body["field"]) == ("invalid", "msg_id")
    assert not desk.broker.topics


def test_a_group_from_now_gets_what_is_still_delayed_and_what_waits_behind_it(desk):
    desk.publish(1, delay_ms=1000)
    desk.publish(2, key="k", delay_ms=1000)
    desk.publish(3, key="k")
    desk.publish(4, key="other")
    assert desk.put_group("g", start="now").body["pending"] == 3
    desk.pass_ms(1000)
    assert desk.values(9) == [1, 2]
    assert desk.why_empty() == "key_blocked"


def test_what_a_new_group_skips_and_others_have_finished_is_deleted(desk):
    ids = desk.publish(1, 2, key="k")
    desk.take(group="other")
    desk.ack(ids[0], group="other")
    desk.publish(3)
    desk.put_group("g", start="now")
    assert len(topic_of(desk).messages.by_number) == 2, "the other group has not finished these"
    desk.ack(desk.take(group="other")[0]["msg_id"], group="other")
    desk.ack(desk.take(group="other")[0]["msg_id"], group="other")
    assert not topic_of(desk).messages.by_number


def test_messages_that_only_a_deleted_group_held_back_are_deleted(desk):
    ids = desk.publish(1, 2, key="k") + desk.publish(3, 4)
    desk.put_group("slow")
    for message in [*desk.take(9), *desk.take(9)]:
        desk.ack(message["msg_id"])
    desk.ack(desk.take()[0]["msg_id"])
    assert len(topic_of(desk).messages.by_number) == len(ids)
    desk.take(2, group="slow")
    assert desk.delete_group("slow").body == {"deleted": True}
    assert not topic_of(desk).messages.by_number
    assert desk.broker.usage()["queue_messages"] == 0
    assert desk.delete_group("slow").body == {"deleted": False}


# --------------------------------------------------------------------- keep_ms


@pytest.mark.parametrize("restarts", [False, True])
def test_finished_messages_are_kept_for_late_groups(desk, restarts):
    desk.settings(keep_ms=60_000)
    desk.publish(1, 2)
    desk.publish(3, 4, key="k")
    while messages := desk.take(9):
        for message in messages:
            desk.ack(message["msg_id"])
    desk.pass_ms(59_000)
    if restarts:
        desk.restart()
    assert desk.why_empty() == "no_messages"
    assert desk.values(9, group="late") == [1, 2, 3]
    assert desk.put_group("now", start="now").body["pending"] == 0
    desk.delete_group("late")
    desk.pass_ms(1000)
    assert not topic_of(desk).messages.by_number
    assert desk.values(9, group="too late") == []


def test_a_kept_message_that_a_late_group_has_not_finished_stays_for_it(desk):
    desk.settings(keep_ms=10_000)
    desk.publish(1, 2)
    for message in desk.take(9):
        desk.ack(message["msg_id"])
    (one,) = desk.take(group="late")
    desk.pass_ms(11_000)
    assert [message["attempt"] for message in desk.take(9, group="late")] == [1]
    desk.ack(one["msg_id"], group="late")
    desk.pass_ms(1000)
    assert len(topic_of(desk).messages.by_number) == 1


def test_kept_messages_give_way_to_new_ones(desk):
    desk.settings(keep_ms=60_000, max_bytes=3)
    for value in range(5):
        desk.publish(value)
        desk.ack(desk.take()[0]["msg_id"])
    assert desk.values(9, group="late") == [2, 3, 4]


def test_an_end_of_keeping_drops_what_is_kept(desk):
    desk.settings(keep_ms=60_000)
    desk.publish(1, 2, 3)
    for message in desk.take(2):
        desk.ack(message["msg_id"])
    desk.settings()
    assert [topic_of(desk).messages.by_number[n].value for n in topic_of(desk).messages.by_number] == [b"3"]


def test_retention_ends_a_longer_keep(desk):
    desk.settings(keep_ms=60_000, retention_ms=5000)
    desk.publish(1)
    desk.ack(desk.take()[0]["msg_id"])
    desk.pass_ms(6000)
    assert not topic_of(desk).messages.by_number


def test_keeping_can_begin_while_messages_are_in_flight(desk):
    desk.publish(1, 2)
    (one, two) = desk.take(2)
    desk.settings(keep_ms=60_000)
    desk.ack(one["msg_id"])
    desk.ack(two["msg_id"])
    assert desk.values(9, group="late") == [1, 2]


# ------------------------------------------------------------------ idle topics


class IdleNode:
    """The part of a node that finds idle topics."""

    is_leader = True

    def __init__(self, desk) -> None:
        self.desk = desk
        self.proposed = []

    def machine(self, name):
        return self.desk.broker

    def on_upkeep(self, callback) -> None:
        self.tick = callback

    def now_ms(self) -> int:
        return self.desk.at_ms

    def propose_as_leader(self, command) -> bool:
        self.proposed.append(command)
        self.desk.do(command)
        return True


@pytest.fixture
def idle_node(desk):
    node = IdleNode(desk)
    IdleTopics(node)
    return node


def test_a_topic_that_was_empty_and_unused_for_a_day_is_removed(desk, idle_node):
    desk.consume(topic="typo")
    desk.publish(1, topic="full")
    desk.settings(max_attempts=5)
    desk.topic = "declared"
    desk.put_group("g")
    desk.take(topic="used")
    desk.pass_ms(IDLE_MS - 1000)
    idle_node.tick()
    assert not idle_node.proposed
    desk.take(topic="used")
    desk.pass_ms(LOOK_MS)
    idle_node.tick()
    assert idle_node.proposed == [DropIdle(topics=["typo"])]
    assert sorted(desk.broker.topics) == ["declared", "full", "t", "used"]
    idle_node.tick()
    assert len(idle_node.proposed) == 1, "it looks once a minute"


def test_a_topic_that_a_consumer_waits_for_is_not_removed(desk, idle_node):
    desk.consume(topic="quiet", timeout_ms=20_000)
    desk.at_ms += 2 * IDLE_MS
    idle_node.tick()
    assert not idle_node.proposed


@pytest.mark.parametrize(("is_leader", "create_topics"), [(False, True), (True, False)])
def test_only_a_leader_removes_topics_and_only_if_use_creates_them(desk, idle_node, is_leader, create_topics):
    desk.consume(topic="typo")
    desk.do(PutQueueSettings(create_topics=create_topics))
    idle_node.is_leader = is_leader
    desk.pass_ms(2 * IDLE_MS)
    idle_node.tick()
    assert not idle_node.proposed


def test_a_topic_that_is_named_twice_is_removed_once(desk):
    desk.consume(topic="typo")
    assert desk.do(DropIdle(topics=["typo", "typo"])).body == {"dropped": 1}


def test_a_topic_that_was_used_since_the_proposal_stays(desk):
    desk.publish(1)
    assert desk.do(DropIdle(topics=["t", "gone"])).body == {"dropped": 0}
    assert desk.values() == [1]
