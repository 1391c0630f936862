"""`queue_bytes_max`: when the queue is full, commands that make it grow are refused, and commands that make it shrink work."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from dss_dev.queue_broker import Desk
from dss_dev.queue_recount import recounted_usage
from dss_project.runtime import state_machines
from dss_queue.core.account import ATTEMPT_ID_BYTES, ENDING_BYTES, LIMIT, PENDING_BYTES
from dss_queue.core.broker import Broker
from dss_queue.core.commands import Publish, PutTopic
from dss_queue.core.records import GONE, HISTORY_MAX
from dss_queue.core.topic_commands import DeleteTopic
from dss_raft.replication.machine import Origin
from dss_raft.replication.replica import Replica
from dss_raft.state_usage import UsageAlarm

LONG = "n" * 500
MIB = 1024 * 1024


class Full(Desk):
    """A queue whose limit is what it has."""

    def fill(self) -> int:
        """Set the limit to what is in use."""
        self.broker.limits.maxima[LIMIT] = self.used
        return self.used

    @property
    def used(self) -> int:
        return self.broker.registry.account.used

    def check(self) -> None:
        """The account agrees with the state, and with the account of a restored broker."""
        expected = recounted_usage(self.broker)
        assert self.broker.usage() == expected
        assert self.used == sum(expected.values())
        self.restart()
        assert self.broker.usage() == expected


@pytest.fixture
def full() -> Full:
    """Messages of a topic with two groups: ready, in flight, returned, delayed, keyed and dead; a consume waits at another topic."""
    desk = Full()
    desk.settings(max_attempts=50)
    for group in ("g", "h"):
        desk.take(group=group)
    desk.publish("flight", "nacked", "dead", "ready", dedup_id="")
    desk.publish("k", "l", key="kéy")
    desk.publish("later", delay_ms=60_000, dedup_id="d")
    taken = desk.take(3, attempt_id=LONG)
    desk.nack(taken[1]["msg_id"], delay_ms=5_000)
    desk.nack(taken[2]["msg_id"], dead=True)
    assert desk.consume(topic="u", timeout_ms=10_000) is None
    desk.fill()
    desk.check()
    return desk


def refusal(result) -> tuple[str, str, int]:
    return result.code, result.body["limit"], result.body["maximum"]


def test_commands_that_grow_the_queue_are_refused_with_the_limit(full):
    expected = ("over_limit", LIMIT, full.used)
    before = full.broker.snapshot()
    publishes = (
        full.message(0),
        full.message(0, key="kéy"),
        full.message(0, dedup_id="new"),
        full.message(0, delay_ms=5),
        full.message(0, topic="new"),
    )
    for message in publishes:
        assert refusal(full.do(Publish(messages=[message]))) == expected
    assert refusal(full.do(PutTopic(topic="new"))) == expected
    assert refusal(full.put_group("new")) == expected
    assert refusal(full.consume(group="new")) == expected
    assert refusal(full.consume(topic="new")) == expected
    assert refusal(full.consume(topic="u", timeout_ms=1000)) == expected
    assert refusal(full.consume(attempt_id=LONG + "x")) == expected
    assert full.broker.snapshot() == before


def test_a_transaction_that_publishes_is_refused_as_a_whole(full):
    expected = ("over_limit", LIMIT, full.used)
    (message, *_) = full.take(attempt_id=LONG)
    assert refusal(full.ack(message["msg_id"], publish=[full.message(0, topic="u")])) == expected
    assert full.ack(message["msg_id"]).body["acked"]


def test_what_a_full_queue_has_can_be_consumed(full):
    before = full.used
    assert full.settings(max_attempts=50).code == ""
    assert full.do(Publish(messages=[full.message(0, dedup_id="d")])).body["messages"][0]["duplicate"]
    taken = full.take(9, attempt_id="a" * 64) + full.take(9, group="h")
    assert len(taken) == 2 + 5
    assert full.used <= before
    for message in taken:
        full.ack(message["msg_id"])
        full.ack(message["msg_id"], group="h")
    assert full.used < before
    full.check()


def test_a_waiting_consume_is_answered_in_a_full_queue(full):
    full.broker.limits.maxima[LIMIT] = full.used + MIB
    waiting = full.consume(topic="w", timeout_ms=10_000, attempt_id=LONG)
    origin = full.origin
    assert waiting is None
    full.publish("x", topic="w")
    assert full.answers[origin].body["messages"]
    full.check()


@pytest.mark.parametrize("dead", [False, True])
def test_a_message_that_fails_costs_a_full_queue_nothing(full, dead):
    before = full.used
    for message in full.take(9, group="h"):
        full.nack(message["msg_id"], group="h", dead=dead)
    assert full.used == before
    lines = full.broker.topics["t"].groups["h"]
    assert len(lines.dead) == (5 if dead else 0)
    assert full.redrive(group="h").body["redriven"] == len(lines.dead) + (5 if dead else 0)
    assert full.used == before
    full.check()


def test_the_history_of_a_full_queue_keeps_the_latest_deliveries():
    desk = Full()
    (msg_id,) = desk.publish("a")
    for _ in range(3):
        desk.take()
        desk.nack(msg_id)
    desk.fill()
    desk.take()
    desk.nack(msg_id)
    returned = desk.broker.topics["t"].groups["g"].backlog.returned.values()
    assert [ending.attempt for one in returned for ending in one.history] == [2, 3, 4]
    assert desk.broker.usage()["queue_history"] == 3 * ENDING_BYTES


def test_a_history_costs_at_most_its_maximum(desk):
    desk.settings(max_attempts=100)
    (msg_id,) = desk.publish("a")
    for _ in range(HISTORY_MAX + 5):
        desk.take()
        desk.nack(msg_id)
    assert desk.broker.usage()["queue_history"] == HISTORY_MAX * ENDING_BYTES
    desk.take()
    desk.ack(msg_id)
    assert desk.broker.usage()["queue_history"] == 0


def test_timeouts_retention_and_delays_end_in_a_full_queue(full):
    before = full.used
    full.pass_ms(20_000)
    full.pass_ms(60_000)
    assert full.used <= before
    full.settings(retention_ms=1)
    full.pass_ms(2_000)
    full.pass_ms(2_000)
    topic = full.broker.topics["t"]
    assert not topic.messages.by_number
    assert len(topic.groups["h"].dead) == 7
    assert full.used < before
    full.check()


def test_a_value_is_counted_once_however_many_groups_have_it_as_a_dead_letter():
    desk = Full()
    for group in "abc":
        desk.take(group=group)
    (msg_id,) = desk.publish("v" * 10_000)
    before = desk.used
    for group in "abc":
        desk.take(group=group)
        desk.nack(msg_id, group=group, dead=True)
        assert desk.used <= before + 3 * ENDING_BYTES
        desk.check()
    groups = desk.broker.topics["t"].groups.values()
    assert len({id(dead.value) for group in groups for dead in group.dead.values()}) == 1, "restored, they share the value too"
    desk.redrive(group="a")
    desk.check()
    for group in "bc":
        desk.purge(dead=True, group=group)
        desk.check()
    assert desk.used > 10_000
    desk.take(group="a")
    desk.ack(msg_id, group="a")
    assert desk.broker.usage()["queue_messages"] == 0


def test_consumed_and_expired_the_account_falls_to_its_start():
    desk = Full()
    desk.settings(dedup_window_ms=1000, keep_ms=5_000)
    for group in "gh":
        desk.take(group=group)
    start = desk.used
    for n in range(30):
        desk.publish("v" * n, key=f"k{n % 3}" if n % 2 else "", delay_ms=n % 4, dedup_id=f"d{n}", headers=b'{"h":"x"}')
    assert desk.consume(topic="t", group="g", timeout_ms=10, attempt_id=LONG) is not None
    desk.pass_ms(10)
    for group in "gh":
        while taken := desk.take(7, group=group, attempt_id="a" * 100):
            for number, message in enumerate(taken):
                if number == 5:
                    desk.nack(message["msg_id"], group=group)
                else:
                    desk.ack(message["msg_id"], group=group)
        desk.pass_ms(16_000)
        while taken := desk.take(7, group=group):
            for message in taken:
                desk.ack(message["msg_id"], group=group)
        desk.check()
    desk.pass_ms(10_000)
    assert desk.used == start
    desk.do(DeleteTopic(topic="t"))
    assert desk.used == 0


def test_a_queue_above_a_lowered_limit_loads_and_shrinks(full):
    full.broker.limits.maxima[LIMIT] = 1
    full.check()
    assert refusal(full.do(Publish(messages=[full.message(0)]))) == ("over_limit", LIMIT, 1)
    for topic in "tu":
        full.do(DeleteTopic(topic=topic))
    assert full.used == 0
    full.broker.limits.maxima[LIMIT] = MIB
    full.publish("again")


def test_a_group_for_late_messages_is_charged_for_all_of_them():
    desk = Full()
    for _ in range(10):
        desk.publish("x", key="k")
    before = desk.used
    desk.put_group("late")
    assert desk.used - before > 10 * PENDING_BYTES
    grown = desk.used - before
    desk.delete_group("late")
    assert desk.used == before
    desk.broker.limits.maxima[LIMIT] = before + grown - 1
    assert refusal(desk.put_group("late"))[:2] == ("over_limit", LIMIT)
    desk.broker.limits.maxima[LIMIT] = before + grown
    assert desk.put_group("late").code == ""


#: kind -> publishes or consumes that make it grow, by number
FLOODS = {
    "queue_dedup": lambda desk, n: desk.do(Publish(messages=[desk.message(0, dedup_id=f"{n}{LONG}")])),
    "queue_delays": lambda desk, n: desk.do(Publish(messages=[desk.message(0, delay_ms=10_000 + n)])),
    "queue_topics": lambda desk, n: desk.do(Publish(messages=[desk.message(0, topic=f"typo-{n}{LONG}")])),
    "queue_groups": lambda desk, n: desk.consume(group=f"typo-{n}{LONG}"),
    "queue_keys": lambda desk, n: desk.do(Publish(messages=[desk.message(0, key=f"{n}{LONG}")])),
    "queue_waiters": lambda desk, n: desk.consume(timeout_ms=10_000, attempt_id=f"{n}{LONG}"),
    "queue_messages": lambda desk, n: desk.do(Publish(messages=[desk.message(0, headers=b"h" * 16_000)])),
    "queue_in_flight": lambda desk, n: desk.do(Publish(messages=[desk.message(n) for n in range(9)])),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_stays_within_the_limit(kind):
    desk = Full()
    desk.take()
    maximum = desk.broker.limits.maxima[LIMIT] = MIB
    results = [FLOODS[kind](desk, n) for n in range(3_000)]
    refused = [result for result in results if result is not None and result.code]
    assert refused
    assert len(refused) < len(results)
    assert {refusal(result) for result in refused} == {("over_limit", LIMIT, maximum)}
    assert maximum * 0.9 < desk.used <= maximum
    usage = desk.broker.usage()
    assert usage[kind] > maximum // 16
    desk.check()
    # Deliveries, dead letters and acks are possible still.
    desk.pass_ms(60_000)
    for message in desk.take(1000):
        desk.nack(message["msg_id"], dead=True)
    assert desk.used <= maximum
    desk.purge(dead=True)
    desk.check()


def test_long_attempt_ids_are_charged_while_their_messages_are_in_flight():
    desk = Full()
    desk.publish(*range(3))
    desk.take(attempt_id="short")
    before = desk.used
    (message,) = desk.take(attempt_id=LONG)
    assert desk.used == before + len(LONG) - ATTEMPT_ID_BYTES
    desk.check()
    desk.ack(message["msg_id"])
    assert desk.broker.registry.account.attempts == 0


def test_a_node_shows_the_kinds_and_warns_at_80_percent():
    machines = state_machines()
    broker = machines[1]
    assert isinstance(broker, Broker)
    replica = Replica("n1", machines)
    origin = Origin("n1", 1, 1)
    broker.apply(PutTopic(topic="t"), 1000, 1, origin)
    shown = {kind: used for kind, used in replica.usage().items() if kind.startswith("queue_")}
    assert shown == broker.usage() == recounted_usage(broker)
    used = replica.limits.declared[LIMIT].used()
    assert used == sum(shown.values()) > 0
    alarm = UsageAlarm(replica.limits)
    with capture_logs() as logs:
        for maximum in (used * 2, used * 5 // 4):
            replica.limits.maxima[LIMIT] = maximum
            alarm.check()
    assert [(line["event"], line["limit"], line["used"]) for line in logs] == [("raft.limit_near", LIMIT, used)]


# Lists that the account cannot show, because a restored broker does not have what is outdated in them.


def test_an_ended_delivery_keeps_no_value_in_memory(desk):
    acked, returned = desk.publish("v" * 1000, "w" * 1000)
    desk.take(2)
    group = desk.broker.topics["t"].groups["g"]
    deliveries = list(group.in_flight.values())
    desk.nack(returned, delay_ms=60_000)
    (waiting,) = group.backlog.returned.values()
    desk.ack(acked)
    assert all(delivery.message is GONE for delivery in deliveries)
    desk.ack(returned)
    assert waiting.message is GONE


def test_one_delivery_does_not_keep_the_numbers_of_its_batch(desk):
    ids = desk.publish(*range(1000))
    desk.take(1000)
    origin = desk.origin
    for msg_id in ids[:-1]:
        desk.ack(msg_id)
    (handout,) = desk.broker.callers.handouts.values()
    assert len(handout.numbers) < 100
    desk.cancel(origin)
    assert desk.values(9) == [999]


def test_a_waiting_consume_does_not_keep_the_cancelled_ones_behind_it(desk):
    assert desk.consume(timeout_ms=20_000) is None
    first = desk.origin
    for _ in range(1000):
        desk.consume(timeout_ms=20_000)
        desk.cancel(desk.origin)
    assert len(desk.broker.topics["t"].groups["g"].waiters) < 100
    desk.consume(timeout_ms=20_000)
    second = desk.origin
    desk.publish("a")
    desk.publish("b")
    assert [desk.answers[origin].body["messages"][0]["value"] for origin in (first, second)] == [b'"a"', b'"b"']


def test_groups_that_come_and_go_do_not_grow_the_list_of_kept_messages(desk):
    desk.settings(keep_ms=60_000)
    for msg_id in desk.publish(*range(100)):
        desk.take()
        desk.ack(msg_id)
    for _ in range(20):
        desk.put_group("late")
        desk.delete_group("late")
    assert len(desk.broker.topics["t"].messages.kept) < 600
    desk.put_group("late")
    assert len(desk.take(1000, group="late")) == 100


def test_one_message_does_not_keep_the_places_of_those_after_it(desk):
    desk.settings(keep_ms=1000)
    desk.publish("stays")
    desk.take(visibility_ms=3_600_000)
    for _ in range(20):
        for msg_id in desk.publish(*range(100)):
            desk.take()
            desk.ack(msg_id)
        desk.pass_ms(2000)
    messages = desk.broker.topics["t"].messages
    assert len(messages.by_number) == 1
    assert messages.unkeyed.end - messages.unkeyed.start < 400
    desk.publish("next")
    assert desk.values(9) == ["next"]
    assert desk.values(9, group="late") == ["stays", "next"]
