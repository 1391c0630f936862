"""Publishing: the limits of topics, the numbers of messages, and new topics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from dss_api.result import Result
from dss_queue.core.account import (
    DEDUP_BYTES,
    DELAY_BYTES,
    GROUP_KEY_BYTES,
    KEY_BYTES,
    LIMIT,
    MESSAGE_BYTES,
    PENDING_BYTES,
    new_topic_bytes,
)
from dss_queue.core.commands import TOPICS_MAX, NewMessage
from dss_queue.core.engines import on_engine
from dss_queue.core.group import Callers
from dss_queue.core.records import COUNT_BITS, DeadMove, Message, decoded_headers, message_id
from dss_queue.core.registry import Registry
from dss_queue.core.topic import TIMERS, Topic
from dss_raft.replication.limits import text_bytes

#: cluster version from which an answer says that the topic is new
CREATED_SINCE = 5


class Publisher:
    """Adds messages and topics to `topics`, the topics of a broker by name."""

    def __init__(self, topics: dict[str, Topic], registry: Registry, callers: Callers) -> None:
        self._topics = topics
        self._registry = registry
        self._callers = callers
        #: index of the current entry, and how many messages it has stored
        self._entry_index = 0
        self._entry_count = 0
        #: dead letters that were moved, until their topics have been served
        self._moved: list[NewMessage] = []
        registry.move_dead = self.move_dead

    def new_topic(self, name: str, at_ms: int) -> Topic:
        """Add a topic, for which there is room."""
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
        """A refusal when these messages do not fit, or the log does not take those of a topic (`EngineUse`). Duplicates need no space."""
        topics = self._topics
        sizes: dict[str, int] = {}
        growth = new_topics = 0
        for new in messages:
            name = new.topic
            topic = topics.get(name)
            if topic is not None and topic.engine is not None and not topic.engine.is_closed:
                return on_engine(name)
            if new.dedup_id and topic is not None:
                topic.forget_dedup(at_ms)
                if new.dedup_id in topic.dedup:
                    continue
            size = len(new.value) + len(new.key) + len(new.headers)
            sizes[name] = sizes.get(name, 0) + size
            growth += MESSAGE_BYTES + size
            if topic is not None:
                growth += PENDING_BYTES * len(topic.groups)
            if new.key or new.delay_ms or new.dedup_id:
                growth += _extra_bytes(new, topic)
        for name, size in sizes.items():
            topic = topics.get(name)
            if topic is None:
                new_topics += 1
                growth += new_topic_bytes(name)
                refused = self.may_not_create(name)
                if refused is not None:
                    return refused
                continue
            stored = topic.messages
            limit = stored.settings.max_bytes
            if limit and stored.bytes + size > limit and not stored.make_room(size, limit):
                return over_limit("max_bytes", limit, f"topic {name!r} holds {stored.bytes} of {limit} bytes")
        if new_topics:
            return self.no_room_for_topics(new_topics, growth)
        account = self._registry.account
        return account.refusal(growth) if account.used + growth > account.maxima[LIMIT] else None

    def no_room_for_topics(self, count: int, growth: int) -> Result | None:
        """A refusal of a command that adds `count` topics and `growth` bytes, those of the topics included."""
        if count and len(self._topics) + count > TOPICS_MAX:
            return over_limit("topics_max", TOPICS_MAX, f"there are {len(self._topics)} topics, and at most {TOPICS_MAX}")
        return self._registry.account.refusal(growth)

    def store(self, messages: Iterable[NewMessage], at_ms: int, index: int) -> list[dict[str, Any]]:
        """Store messages for which `over_limits` gave None; an answer for each."""
        return [self._store(new, at_ms, index) for new in messages]

    def _store(self, new: NewMessage, at_ms: int, index: int) -> dict[str, Any]:
        topic = self._topics.get(new.topic)
        is_new = topic is None
        if topic is None:
            topic = self.new_topic(new.topic, at_ms)
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
        answer = {"msg_id": message_id(number), "partition": message.partition, "duplicate": False}
        if is_new and self._registry.account.limits.cluster_version >= CREATED_SINCE:
            answer["created"] = True
        return answer

    def move_dead(self, move: DeadMove, at_ms: int) -> bool:
        """Publish a dead letter to the dead-letter topic.

        False: that topic has no room for it, must not be created, or takes no messages in the log (`EngineUse`).
        """
        message = move.message
        headers = decoded_headers(message.headers)
        origin = {
            "dss-dead-topic": move.topic,
            "dss-dead-group": move.group,
            "dss-dead-msg-id": message_id(message.number),
            "dss-dead-published-ms": str(message.published_ms),
        }
        if "dss-dead-msg-id" in headers:
            # It was a dead letter before: the first topic stays its origin.
            origin = {}
        headers = {**headers, **origin, "dss-dead-reason": move.reason, "dss-dead-attempts": str(move.attempts)}
        new = NewMessage(move.target, message.value, message.key, message.partition, 0, "", msgspec.json.encode(headers))
        if self.over_limits([new], at_ms) is not None:
            return False
        self.store([new], at_ms, self._registry.index)
        self._moved.append(new)
        return True

    def serve_moved(self, at_ms: int) -> None:
        """Give dead letters that were moved by this entry to the consumes that wait for them."""
        if self._moved:
            moved, self._moved = self._moved, []
            self.serve([new for new in moved if new.topic in self._topics], at_ms)

    def serve(self, messages: Iterable[NewMessage], at_ms: int) -> None:
        """Give stored messages to the consumes that wait for them."""
        served = ""
        for new in messages:
            if new.topic != served:
                served = new.topic
                self._topics[served].serve(at_ms)


def over_limit(limit: str, maximum: int, detail: str) -> Result:
    """A refusal by a limit that is no `StateLimit`."""
    return Result({"limit": limit, "maximum": maximum, "detail": detail}, "over_limit")


def _extra_bytes(new: NewMessage, topic: Topic | None) -> int:
    """What a message with a routing key, a delay or a dedup_id costs beyond others."""
    growth = DELAY_BYTES if new.delay_ms else 0
    if new.dedup_id:
        growth += DEDUP_BYTES + text_bytes(new.dedup_id)
    if new.key:
        growth += text_bytes(new.key) - len(new.key)
        if topic is None:
            growth += KEY_BYTES
        elif new.key not in topic.messages.chains:
            growth += KEY_BYTES + GROUP_KEY_BYTES * len(topic.groups)
    return growth
