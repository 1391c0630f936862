"""Views of the broker for people and metrics: statistics, peeks, rows for the admin. Read-only, each bounded by its limit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heappop, nsmallest
from itertools import islice
from typing import Any

import msgspec

from dss_queue.core.broker import Broker
from dss_queue.core.commands import PeekQuery, TopicSettings
from dss_queue.core.group import Group
from dss_queue.core.records import Dead, Ending, Message, message_id, message_number
from dss_queue.core.topic import Topic

#: Topics in an answer that names none.
TOPICS_SHOWN_MAX = 1000


def stats(broker: Broker, topic_name: str, now_ms: int) -> dict[str, Any]:
    """The answer of `GET /queue/stats`: one topic with its groups, or the list of topics."""
    if not topic_name:
        topics = list(islice(broker.topics.values(), TOPICS_SHOWN_MAX))
        lines = [_topic_line(topic, now_ms) for topic in topics]
        return {"topics": lines, "topic_count": len(broker.topics), "create_topics": broker.registry.create_topics}
    topic = broker.topics.get(topic_name)
    if topic is None:
        return {"topic": topic_name, "exists": False, "messages": 0, "groups": []}
    return {
        **_topic_line(topic, now_ms),
        "exists": True,
        "expired": topic.expired,
        "publish_per_second": topic.publish_rate.per_second(now_ms),
        "settings": _settings(topic),
        "groups": [_group_line(group, now_ms) for group in topic.groups.values()],
    }


def stats_of(broker: Broker, names: Iterable[str], group: str, now_ms: int) -> dict[str, Any]:
    """The answer of `GET /queue/stats` for `topics`: a line for each of them that exists."""
    named = [topic for name in dict.fromkeys(names) if (topic := broker.topics.get(name)) is not None]
    return {
        "topics": [{**_topic_line(topic, now_ms), "settings": _settings(topic), "ready": _ready(topic, group)} for topic in named]
    }


def _settings(topic: Topic) -> dict[str, Any]:
    return {name: getattr(topic.messages.settings, name) for name in TopicSettings.__struct_fields__}


def _ready(topic: Topic, group_name: str) -> int:
    group = topic.groups.get(group_name)
    return 0 if group is None else group.backlog.pending - len(group.in_flight) - group.backlog.delayed


def _topic_line(topic: Topic, now_ms: int) -> dict[str, Any]:
    moving_from = topic.moving_from
    return {
        "topic": topic.name,
        "messages": len(topic.messages.by_number),
        "bytes": topic.messages.bytes,
        "published": topic.published,
        "oldest_age_ms": oldest_age_ms(topic, now_ms),
        "dead": sum(len(group.dead) for group in topic.groups.values()),
        "group_count": len(topic.groups),
        **({"moving_from": moving_from} if moving_from is not None else {}),
    }


def _group_line(group: Group, now_ms: int) -> dict[str, Any]:
    counters, in_flight, delayed = group.counters, len(group.in_flight), group.backlog.delayed
    return {
        "group": group.name,
        "ready": group.backlog.pending - in_flight - delayed,
        "delayed": delayed,
        "in_flight": in_flight,
        "dead": len(group.dead),
        "waiters": group.waiting,
        "oldest_age_ms": _group_age_ms(group, now_ms),
        "delivered": counters.delivered,
        "redelivered": counters.redelivered,
        "acked": counters.acked,
        "dead_total": dict(counters.dead),
        "deliver_per_second": counters.deliver_rate.per_second(now_ms),
        "ack_per_second": counters.ack_rate.per_second(now_ms),
    }


def oldest_age_ms(topic: Topic, now_ms: int) -> int:
    """Age of the oldest retained message; 0 when there is none."""
    for message in topic.messages.by_number.values():
        return max(0, now_ms - message.published_ms)
    return 0


def _group_age_ms(group: Group, now_ms: int) -> int:
    """Age of the oldest message that the group is not finished with."""
    if not group.backlog.pending:
        return 0
    numbers = group.backlog.unmet(1)
    numbers += [min(numbers_of) for numbers_of in (group.in_flight, group.backlog.returned) if numbers_of]
    ages = [now_ms - message.published_ms for number in numbers if (message := group.backlog.find(number)) is not None]
    return max(0, *ages) if ages else 0


# --------------------------------------------------------------------- peek


def peek(broker: Broker, query: PeekQuery, now_ms: int) -> list[dict[str, Any]]:
    """The list in the answer of `GET /queue/peek`, oldest first."""
    topic, limit = broker.topics.get(query.topic), query.limit
    if topic is None:
        return []
    group = topic.groups.get(query.group)
    if query.group and group is None:
        return []
    if query.msg_id is not None or query.dedup_id:
        return _peek_one(topic, group, query, now_ms)
    if group is None:
        return [_message_line(message, now_ms) for message in islice(topic.messages.by_number.values(), limit)]
    if query.dead:
        return [dead_line(one) for one in islice(group.dead.values(), limit)]
    return [_unfinished_line(group, message, now_ms) for message in _unfinished(group, limit)]


def _unfinished(group: Group, limit: int) -> list[Message]:
    """The first messages that the group has not finished, in publish order."""
    backlog, messages = group.backlog, group.messages
    unkeyed = messages.unkeyed
    positions = map(unkeyed.get, range(backlog.cursor, unkeyed.end))
    unmet = (number for number in positions if number is not None and backlog.find(number) is not None)
    delayed = nsmallest(limit, (number for _, number in messages.hidden_heap))
    # Besides messages without a key, these are the first ones of each key. Some entries of the heap are outdated.
    heap, heads = backlog.ready.copy(), set[int]()
    while heap and len(heads) < limit:
        number = heappop(heap)
        if (message := backlog.find(number)) is not None and _is_unfinished(group, message):
            heads.add(number)
    numbers = {*nsmallest(limit, {*group.in_flight, *backlog.returned, *islice(unmet, limit), *delayed, *heads})}
    for key in {message.key for number in numbers if (message := backlog.find(number)) is not None and message.key}:
        numbers.update(backlog.unfinished_of(key, limit))
    found = map(backlog.find, sorted(numbers))
    return [*islice((message for message in found if message is not None), limit)]


def _peek_one(topic: Topic, group: Group | None, query: PeekQuery, now_ms: int) -> list[dict[str, Any]]:
    """The message that the query names, or nothing."""
    number = topic.dedup.get(query.dedup_id, (-1,))[0] if query.msg_id is None else message_number(query.msg_id)
    if group is None:
        message = topic.messages.by_number.get(number)
        return [] if message is None else [_message_line(message, now_ms)]
    if (dead := group.dead.get(number)) is not None:
        return [dead_line(dead)]
    message = None if query.dead else group.backlog.find(number)
    if message is None or not _is_unfinished(group, message):
        return []
    return [_unfinished_line(group, message, now_ms)]


def _unfinished_line(group: Group, message: Message, now_ms: int) -> dict[str, Any]:
    line = {**_message_line(message, now_ms), **_state_in(group, message.number)}
    if line["state"] == "ready" and line["delayed_for_ms"]:
        line["state"] = "delayed"
    return line


def _is_unfinished(group: Group, message: Message) -> bool:
    backlog = group.backlog
    if message.number in group.in_flight or message.number in backlog.returned:
        return True
    if not message.key:
        return not backlog.is_past(message)
    state = backlog.keys.get(message.key)
    if state is None:
        return True
    first = group.messages.chains[message.key].get(state.position)
    return first is not None and message.number >= first and message.number not in state.early


def _message_line(message: Message, now_ms: int) -> dict[str, Any]:
    return {
        "msg_id": message_id(message.number),
        "value": message.value,
        "headers": message.headers,
        "key": message.key,
        "partition": message.partition,
        "published_ms": message.published_ms,
        "delayed_for_ms": max(0, message.ready_ms - now_ms),
    }


def _state_in(group: Group, number: int) -> dict[str, Any]:
    delivery = group.in_flight.get(number)
    if delivery is not None:
        return {
            "state": "in_flight",
            "attempt": delivery.attempt,
            "attempt_id": delivery.handout.attempt_id,
            "delivered_ms": delivery.delivered_ms,
            "visible_until_ms": delivery.due_ms,
            "node": delivery.handout.origin.node,
            "history": history_lines(delivery.history),
        }
    returned = group.backlog.returned.get(number)
    if returned is None:
        return {"state": "ready", "attempt": 0}
    state = "delayed" if returned.due_ms else "ready"
    return {"state": state, "attempt": returned.attempts, "history": history_lines(returned.history)}


def dead_line(dead: Dead) -> dict[str, Any]:
    """A dead letter for display."""
    return {
        "msg_id": message_id(dead.number),
        "value": dead.value,
        "headers": dead.headers,
        "key": dead.key,
        "partition": dead.partition,
        "published_ms": dead.published_ms,
        "state": "dead",
        "dead_ms": dead.dead_ms,
        "reason": dead.reason,
        "attempt": dead.attempts,
        "history": history_lines(dead.history),
    }


def history_lines(history: tuple[Ending, ...]) -> list[dict[str, Any]]:
    """Ended deliveries for display."""
    return [ending._asdict() for ending in history]


def json_text(value: bytes) -> msgspec.Raw | None:
    """Stored JSON, to be put into an answer unchanged; None when there is none."""
    return msgspec.Raw(value) if value else None


# ------------------------------------------------------- rows for the admin


def backlogs(broker: Broker, now_ms: int) -> Iterator[dict[str, Any]]:
    """The unfinished messages of each group of each topic."""
    for topic in broker.topics.values():
        yield from backlogs_of(topic, now_ms)


def backlogs_of(topic: Topic, now_ms: int) -> Iterator[dict[str, Any]]:
    """The unfinished messages of each group of a topic; one line if it has none."""
    of_topic = {
        "topic": topic.name,
        "bytes": topic.messages.bytes,
        "published_per_s": topic.publish_rate.per_second(now_ms),
    }
    groups = list(topic.groups.values())
    for group in groups:
        line = _group_line(group, now_ms)
        yield {
            **of_topic,
            **{name: line[name] for name in ("group", "ready", "delayed", "in_flight", "dead", "oldest_age_ms")},
            "waiting": line["waiters"],
            "acked_per_s": line["ack_per_second"],
        }
    if not groups:
        counts = {
            "ready": len(topic.messages.by_number) - topic.messages.hidden,
            "delayed": topic.messages.hidden,
            "in_flight": 0,
            "dead": 0,
            "waiting": 0,
        }
        yield {**of_topic, **counts, "group": "", "oldest_age_ms": oldest_age_ms(topic, now_ms), "acked_per_s": 0.0}
