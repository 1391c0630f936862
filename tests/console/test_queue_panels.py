"""Topics on the engine `redis` as the live view shows them: with the same columns as others, or marked if what is there is not known."""

from __future__ import annotations

from typing import Any

import pytest

from dss_console.live import panels
from dss_dev.queue_broker import Desk
from dss_queue.answers import GroupStats
from dss_queue.core.commands import SetTopic
from dss_queue.core.topic import Topic
from dss_queue.core.topic_commands import PutGroup
from dss_queue.engine_numbers import TopicNumbers
from dss_queue.redis_engine.views import EngineTopicStats


def group_stats(group: str, **numbers: Any) -> GroupStats:
    names = ("ready", "delayed", "in_flight", "dead", "waiters", "oldest_age_ms", "delivered", "redelivered", "acked")
    of_all: dict[str, Any] = {**dict.fromkeys(names, 0), "dead_total": {}, "deliver_per_second": 0.0, "ack_per_second": 0.0}
    return GroupStats(group=group, **{**of_all, **numbers})


def of_clicks(topic: Topic) -> TopicNumbers | None:
    """The engine has 7 messages of `clicks`."""
    if topic.name != "clicks":
        return None
    numbers = {"messages": 7, "bytes": 700, "published": 9, "oldest_age_ms": 65_000, "dead": 2, "group_count": 1}
    stats = EngineTopicStats(topic="clicks", expired=0, publish_per_second=0.5, **numbers)  # type: ignore[arg-type]
    counts = {"ready": 4, "delayed": 1, "in_flight": 2, "dead": 2, "waiters": 3}
    group = group_stats("g", **counts, oldest_age_ms=65_000, deliver_per_second=1.5, ack_per_second=0.5)
    return TopicNumbers(stats, {"g": group})


def unknown(topic: Topic) -> None:
    return None


@pytest.fixture
def desk() -> Desk:
    """`orders` is in the log; `clicks` is on the engine, and has one message left in the log."""
    desk = Desk()
    for name in ("orders", "clicks"):
        desk.entry(PutGroup(topic=name, group="g"))
        desk.publish(1, topic=name)
    desk.entry(SetTopic(topic="clicks", engine="redis"))
    return desk


def test_a_row_has_the_sum_of_both(desk: Desk) -> None:
    panel = panels.queues_panel(desk.broker, of_clicks, desk.at_ms, panels.ROWS_FEW)
    clicks, orders = panel.rows
    assert (clicks.id, clicks.engine, orders.id, orders.engine) == ("clicks/g", "redis", "orders/g", "")
    assert (clicks.ready, clicks.delayed, clicks.in_flight, clicks.dead, clicks.waiting) == (5, 1, 2, 2, 3)
    assert (clicks.oldest, clicks.level) == ("1 min 5 s", "warn")
    assert panel.summary == "2 topics, 6 ready, 2 dead; 1 topic is on the engine redis"
    assert panels.dead_letters(desk.broker, of_clicks) == [("clicks", "g", 2)]
    assert panels.topics_on_engine(desk.broker, of_clicks) == (1, 0)


def test_a_row_without_the_numbers_of_the_engine_says_so(desk: Desk) -> None:
    panel = panels.queues_panel(desk.broker, unknown, desk.at_ms, panels.ROWS_FEW)
    marked = {row.id: row.engine for row in panel.rows}
    assert marked == {"clicks/g": "redis: not known", "orders/g": ""}
    assert panel.summary == (
        "2 topics, 2 ready, 0 dead; 1 topic is on the engine redis; the numbers of 1 topic there are not known now, and not counted"
    )
    assert panels.topics_on_engine(desk.broker, unknown) == (1, 1)


def test_the_page_of_a_topic_has_the_sum_of_both(desk: Desk) -> None:
    detail = panels.topic_detail(desk.broker, of_clicks, "clicks", desk.at_ms)
    assert detail.summary == "It moves from the engine raft. 8 messages retained, 10 published, 2 dead letters."
    (group,) = detail.groups
    assert (group.ready, group.in_flight, group.dead, group.waiting) == (5, 2, 2, 3)
    assert group.rates == "1.5 delivered and 0.5 acknowledged each second"
    assert (detail.no_messages, detail.more) == ("", "Messages on redis are listed in the admin.")
    not_known = panels.topic_detail(desk.broker, unknown, "clicks", desk.at_ms)
    assert "What redis has is not known now. In the log: 1 message retained" in not_known.summary
    logged = panels.topic_detail(desk.broker, unknown, "orders", desk.at_ms)
    assert (logged.summary, logged.no_messages) == (
        "1 message retained, 1 published, 0 dead letters.",
        "No message is in flight or dead.",
    )


def test_messages_of_a_topic_that_no_group_consumes(desk: Desk) -> None:
    desk.entry(SetTopic(topic="lone", engine="redis"))

    def of_lone(topic: Topic) -> TopicNumbers | None:
        numbers = of_clicks(desk.broker.topics["clicks"])
        return numbers and TopicNumbers(numbers.topic, {})

    rows = {row.id: row for row in panels.queues_panel(desk.broker, of_lone, desk.at_ms, panels.ROWS_FEW).rows}
    assert (rows["lone/"].ready, rows["lone/"].oldest) == (7, "1 min 5 s")
