"""The commands of SNS topics: a message goes to the queue of each subscription that matches, in one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from dss_api.result import Result
from dss_queue.core import filter_policies
from dss_queue.core.commands import NewMessage
from dss_queue.core.engines import not_on_engine
from dss_queue.core.filter_policies import COMPARISONS_MAX, Policy, Values
from dss_queue.core.publishing import Publisher, over_limit
from dss_queue.core.registry import Registry
from dss_queue.core.sns_topics import (
    SNS_TOPICS_MAX,
    SUBSCRIPTIONS_MAX,
    CreateSnsTopic,
    DeleteSnsTopic,
    Notice,
    PublishToSns,
    SnsTopic,
    Subscribe,
    Subscription,
    Unsubscribe,
)
from dss_queue.core.topic import Topic
from dss_raft.replication.commands import Command
from dss_raft.replication.machine import Origin

#: The header of a message in which SQS keeps its attributes.
ATTRIBUTES_HEADER = "sqs-attributes"


class SnsFanout:
    """See the module. `topics` are the topics of a broker by name, those of the queues among them."""

    def __init__(self, topics: dict[str, Topic], registry: Registry, publisher: Publisher) -> None:
        self._topics = topics
        self._registry = registry
        self._publisher = publisher
        #: filter policies that were parsed, by the serial number of their subscription, which accounts for them
        self._policies: dict[int, Policy] = {}
        self.appliers: dict[type[Command], Callable[[Any, int, int, Origin], Result | None]] = {
            CreateSnsTopic: self._create,
            DeleteSnsTopic: self._delete,
            Subscribe: self._subscribe,
            Unsubscribe: self._unsubscribe,
            PublishToSns: self._publish,
        }

    def _create(self, command: CreateSnsTopic, at_ms: int, index: int, origin: Origin) -> Result:
        sns = self._registry.sns
        if command.sns_topic in sns:
            return Result({"created": False})
        if len(sns) >= SNS_TOPICS_MAX:
            return over_limit("sns_topics_max", SNS_TOPICS_MAX, f"there are {len(sns)} topics of SNS")
        made = SnsTopic(command.sns_topic, dict(command.attributes))
        refused = self._registry.account.refusal(made.own_bytes)
        if refused is not None:
            return refused
        self._registry.add_sns(made)
        return Result({"created": True})

    def _delete(self, command: DeleteSnsTopic, at_ms: int, index: int, origin: Origin) -> Result:
        topic = self._registry.sns.pop(command.sns_topic, None)
        if topic is not None:
            for one in topic.subscriptions:
                self._policies.pop(one.serial, None)
            self._registry.account.add_topic(-topic.own_bytes - sum(one.bytes for one in topic.subscriptions))
        return Result({"deleted": topic is not None})

    def _subscribe(self, command: Subscribe, at_ms: int, index: int, origin: Origin) -> Result:
        topic = self._registry.sns.get(command.sns_topic)
        if topic is None:
            return _no_topic()
        for one in topic.subscriptions:
            if one.queue == command.queue:
                return Result({"subscription": one.serial, "is_same": one.attributes == command.attributes})
        target = self._topics.get(command.queue)
        if target is not None and target.is_on_engine:
            detail = f"queue {command.queue!r} is on the engine `redis`, to which topics of SNS cannot publish"
            return not_on_engine("queue", detail)
        if len(topic.subscriptions) >= SUBSCRIPTIONS_MAX:
            detail = f"{command.sns_topic!r} has {len(topic.subscriptions)} subscriptions"
            return over_limit("sns_subscriptions_max", SUBSCRIPTIONS_MAX, detail)
        made = Subscription(0, command.queue, dict(command.attributes))
        refused = self._registry.account.refusal(made.bytes)
        if refused is not None:
            return refused
        made.serial = self._registry.next_serial()
        topic.subscriptions.append(made)
        self._registry.account.add_topic(made.bytes)
        return Result({"subscription": made.serial, "is_same": True})

    def _unsubscribe(self, command: Unsubscribe, at_ms: int, index: int, origin: Origin) -> Result:
        topic = self._registry.sns.get(command.sns_topic)
        ended = [one for one in topic.subscriptions if one.serial == command.subscription] if topic is not None else []
        for one in ended:
            assert topic is not None
            topic.subscriptions.remove(one)
            self._policies.pop(one.serial, None)
            self._registry.account.add_topic(-one.bytes)
        return Result({"ended": bool(ended)})

    def _publish(self, command: PublishToSns, at_ms: int, index: int, origin: Origin) -> Result:
        topic = self._registry.sns.get(command.sns_topic)
        if topic is None:
            return _no_topic()
        values = [filter_policies.values_of(notice.attributes) for notice in command.notices]
        needed = sum(filter_policies.comparisons(self._policy_of(one), each) for one in topic.subscriptions for each in values)
        if needed > COMPARISONS_MAX:
            detail = f"the filter policies of {command.sns_topic!r} would need {needed} comparisons with these attributes"
            return over_limit("sns_comparisons_max", COMPARISONS_MAX, detail)
        pairs = zip(command.notices, values, strict=True)
        messages = [one for notice, each in pairs for one in self._messages(topic, notice, each)]
        refused = self._publisher.over_limits(messages, at_ms)
        if refused is not None:
            return refused
        self._publisher.store(messages, at_ms, index)
        self._publisher.serve(messages, at_ms)
        return Result({"sent": len(messages)})

    def _messages(self, topic: SnsTopic, notice: Notice, values: dict[str, Values]) -> list[NewMessage]:
        """A message for each queue that gets this. A queue that was deleted gets nothing."""
        contents: dict[bool, tuple[bytes, bytes]] = {}
        messages = []
        for one in topic.subscriptions:
            target = self._topics.get(one.queue)
            if target is None or target.queue is None or not filter_policies.matches(self._policy_of(one), values):
                continue
            is_raw = one.attributes.get("RawMessageDelivery") == "true"
            if is_raw not in contents:
                contents[is_raw] = _raw(notice) if is_raw else _enveloped(notice)
            value, headers = contents[is_raw]
            delay_ms = int(target.queue.attributes.get("DelaySeconds") or 0) * 1000
            messages.append(NewMessage(one.queue, value, "", -1, delay_ms, "", headers))
        return messages

    def _policy_of(self, subscription: Subscription) -> Policy:
        policy = self._policies.get(subscription.serial)
        if policy is None:
            text = subscription.attributes.get("FilterPolicy")
            policy = self._policies[subscription.serial] = filter_policies.parsed(text) if text else {}
        return policy


def _raw(notice: Notice) -> tuple[bytes, bytes]:
    """Value and headers of the message in a queue with raw delivery."""
    headers = notice.headers
    if notice.attributes:
        headers = {**headers, ATTRIBUTES_HEADER: msgspec.json.encode(notice.attributes).decode()}
    return msgspec.json.encode(notice.message), msgspec.json.encode(headers)


def _enveloped(notice: Notice) -> tuple[bytes, bytes]:
    """The same in other queues: a JSON object in a JSON string."""
    shown = {
        name: {"Type": one.get("DataType", ""), "Value": one.get("StringValue", one.get("BinaryValue", ""))}
        for name, one in notice.attributes.items()
    }
    whole: dict[str, Any] = {"Type": "Notification", **notice.envelope, "Message": notice.message}
    if shown:
        whole["MessageAttributes"] = shown
    return msgspec.json.encode(msgspec.json.encode(whole).decode()), msgspec.json.encode(notice.headers)


def _no_topic() -> Result:
    return Result({"detail": "there is no such topic of SNS"}, "not_found")
