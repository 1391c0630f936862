"""The account of a broker, counted from its state."""

from __future__ import annotations

from dss_queue.core import account as costs
from dss_queue.core.broker import Broker
from dss_queue.core.engines import INCARNATION_BYTES
from dss_queue.core.filter_policies import parsed_bytes
from dss_queue.core.records import Dead, Message
from dss_queue.core.sns_topics import SNS_BYTES
from dss_queue.core.sqs_queues import ENTRY_BYTES, MOVE_TASK_BYTES, QUEUE_BYTES
from dss_queue.core.topic import Topic


def encoded(*texts: str) -> int:
    return sum(len(text.encode()) for text in texts)


def recounted_usage(broker: Broker) -> dict[str, int]:
    """What `Broker.usage` must say."""
    kinds = dict.fromkeys(costs.Account(broker.limits).usage(), 0)
    for topic in broker.topics.values():
        count_topic(topic, kinds)
    for sns_topic in broker.registry.sns.values():
        for name, attributes in (
            (sns_topic.name, sns_topic.attributes),
            *((one.queue, one.attributes) for one in sns_topic.subscriptions),
        ):
            kinds["queue_topics"] += SNS_BYTES + encoded(name, *attributes, *attributes.values())
            policy = attributes.get("FilterPolicy", "")
            kinds["queue_topics"] += encoded(policy) + parsed_bytes(policy)
    used = [(topic.name, topic.engine) for topic in broker.topics.values() if topic.engine is not None]
    for name in (*(name for name, _ in used), *broker.registry.abandoned.values()):
        kinds["queue_topics"] += INCARNATION_BYTES + encoded(name)
    for waiter in broker.callers.waiters.values():
        kinds["queue_waiters"] += costs.WAITER_BYTES + encoded(waiter.attempt_id)
    for handout in broker.callers.handouts.values():
        kinds["queue_in_flight"] += max(0, encoded(handout.attempt_id) - costs.ATTEMPT_ID_BYTES)
    return kinds


def count_topic(topic: Topic, kinds: dict[str, int]) -> None:
    groups, messages = topic.groups.values(), topic.messages.by_number
    contents: dict[int, Message | Dead] = {**messages}
    for group in groups:
        contents |= {**group.backlog.private, **group.dead}
    kinds["queue_messages"] += costs.MESSAGE_BYTES * len(contents)
    kinds["queue_messages"] += sum(len(one.value) + len(one.headers) + encoded(one.key) for one in contents.values())
    keys = {one.key for one in messages.values() if one.key}
    kinds["queue_keys"] += len(keys) * (costs.KEY_BYTES + len(groups) * costs.GROUP_KEY_BYTES)
    kinds["queue_delays"] += costs.DELAY_BYTES * sum(message.ready_ms > 0 for message in messages.values())
    kinds["queue_dedup"] += costs.DEDUP_BYTES * len(topic.dedup) + encoded(*topic.dedup)
    kinds["queue_topics"] += costs.TOPIC_BYTES + encoded(topic.name)
    if topic.queue is not None:
        entries = [*topic.queue.attributes.items(), *topic.queue.tags.items()]
        kinds["queue_topics"] += QUEUE_BYTES + sum(ENTRY_BYTES + encoded(*entry) for entry in entries)
        kinds["queue_topics"] += MOVE_TASK_BYTES * len(topic.queue.moves)
    for group in groups:
        kinds["queue_groups"] += costs.GROUP_BYTES + encoded(group.name)
        kinds["queue_in_flight"] += costs.PENDING_BYTES * group.backlog.pending
        kinds["queue_dead"] += costs.PENDING_BYTES * len(group.dead)
        histories = [delivery.history for delivery in group.in_flight.values()]
        histories += [returned.history for returned in group.backlog.returned.values()]
        histories += [dead.history for dead in group.dead.values()]
        kinds["queue_history"] += costs.ENDING_BYTES * sum(map(len, histories))
