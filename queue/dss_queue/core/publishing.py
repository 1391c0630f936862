"""Publishing: the limits of topics, the numbers of messages, and new topics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dss_api.result import Result
from dss_queue.core.commands import TOPICS_MAX, TOTAL_BYTES_MAX, NewMessage
from dss_queue.core.group import Callers
from dss_queue.core.records import COUNT_BITS, Message, message_id
from dss_queue.core.registry import Registry
from dss_queue.core.topic import TIMERS, Topic


class Publisher:
    """Adds messages and topics to `topics`, the topics of a broker by name."""

    def __init__(self, topics: dict[str, Topic], registry: Registry, callers: Callers) -> None:
        self._topics = topics
        self._registry = registry
        self._callers = callers
        #: index of the current entry, and how many messages it has stored
        self._entry_index = 0
        self._entry_count = 0

    def new_topic(self, name: str, at_ms: int) -> Topic | None:
        """Add a topic; None when there are too many."""
        if len(self._topics) >= TOPICS_MAX:
            return None
        registry = self._registry
        first = registry.next_serial()
        registry.serial += TIMERS - 1
        topic = self._topics[name] = Topic(name, registry, self._callers, first)
        topic.used_ms = at_ms
        return topic

    def may_not_create(self, name: str) -> Result | None:
        """A refusal when a topic that does not exist must not be created by using it."""
        if self._registry.create_topics:
            return None
        detail = (
            f"topic {name!r} does not exist, and topics are not created by using them (`create_topics` of PUT /queue/settings)"
        )
        return Result({"detail": detail}, "not_found")

    def over_limits(self, messages: list[NewMessage], at_ms: int) -> Result | None:
        """A refusal when these messages do not fit. Duplicates need no space."""
        topics = self._topics
        sizes: dict[str, int] = {}
        for new in messages:
            name = new.topic
            if new.dedup_id and (topic := topics.get(name)) is not None:
                topic.forget_dedup(at_ms)
                if new.dedup_id in topic.dedup:
                    continue
            sizes[name] = sizes.get(name, 0) + len(new.value) + len(new.key) + len(new.headers)
        total, new_topics = self._registry.bytes, 0
        for name, size in sizes.items():
            total += size
            topic = topics.get(name)
            if topic is None:
                new_topics += 1
                refused = self.may_not_create(name)
                if refused is not None:
                    return refused
            elif (limit := topic.messages.settings.max_bytes) and not topic.messages.make_room(size, limit):
                return over_limit(f"topic {name!r} holds {topic.messages.bytes} of {limit} bytes")
        if total > TOTAL_BYTES_MAX:
            return over_limit(f"all topics hold {self._registry.bytes} of {TOTAL_BYTES_MAX} bytes")
        if new_topics and len(topics) + new_topics > TOPICS_MAX:
            return too_many_topics()
        return None

    def store(self, messages: Iterable[NewMessage], at_ms: int, index: int) -> list[dict[str, Any]]:
        """Store messages for which `over_limits` gave None; an answer for each."""
        return [self._store(new, at_ms, index) for new in messages]

    def _store(self, new: NewMessage, at_ms: int, index: int) -> dict[str, Any]:
        topic = self._topics.get(new.topic) or self.new_topic(new.topic, at_ms)
        assert topic is not None
        if new.dedup_id:
            known = topic.dedup.get(new.dedup_id)
            if known is not None:
                return {"msg_id": message_id(known[0]), "partition": known[1], "duplicate": True}
        if index != self._entry_index:
            self._entry_index, self._entry_count = index, 0
        number = index << COUNT_BITS | self._entry_count
        self._entry_count += 1
        ready_ms = at_ms + new.delay_ms if new.delay_ms else 0
        message = Message(number, new.key, new.partition, new.value, new.headers, at_ms, ready_ms)
        topic.add(message, at_ms)
        if new.dedup_id:
            topic.remember(new.dedup_id, message, at_ms)
        return {"msg_id": message_id(number), "partition": message.partition, "duplicate": False}

    def serve(self, messages: Iterable[NewMessage], at_ms: int) -> None:
        """Give stored messages to the consumes that wait for them."""
        served = ""
        for new in messages:
            if new.topic != served:
                served = new.topic
                for group in self._topics[served].groups.values():
                    if group.waiters:
                        group.serve(at_ms)


def over_limit(detail: str) -> Result:
    """A refusal with the code `over_limit`."""
    return Result({"detail": detail}, "over_limit")


def too_many_topics() -> Result:
    """The refusal of a new topic."""
    return over_limit(f"there are {TOPICS_MAX} topics")
