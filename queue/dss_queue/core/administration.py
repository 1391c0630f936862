"""Commands about whole topics and groups: their settings, creation and deletion, purge and redrive.

Creating a group that skips messages, and deleting a group, visit every retained message of the topic once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from dss_api.result import Result
from dss_queue.core.account import GROUP_KEY_BYTES, PENDING_BYTES, new_group_bytes, new_topic_bytes
from dss_queue.core.commands import GROUPS_PER_TOPIC_MAX, Purge, PutTopic, Redrive, SetTopic, TopicSettings
from dss_queue.core.engine_moves import EngineMoves
from dss_queue.core.engines import chosen
from dss_queue.core.group import Group
from dss_queue.core.publishing import Publisher, over_limit
from dss_queue.core.records import message_number
from dss_queue.core.registry import Registry
from dss_queue.core.sqs_queues import GROUP, TAGS_MAX, ChangeQueue, CreateQueue, Queue, queue_bytes, settings_of
from dss_queue.core.topic import Topic
from dss_queue.core.topic_commands import CreateGroup, DeleteDead, DeleteGroup, DeleteTopic, DropIdle, PutGroup, PutQueueSettings
from dss_raft.replication.commands import Command
from dss_raft.replication.machine import Origin

#: greater than any message number
_AFTER_ALL = 1 << 128


class Administration:
    """See the module. `topics` are the topics of a broker by name."""

    def __init__(self, topics: dict[str, Topic], registry: Registry, publisher: Publisher) -> None:
        self._topics = topics
        self._registry = registry
        self._publisher = publisher
        self._engine_moves = EngineMoves(topics, registry)
        self.appliers: dict[type[Command], Callable[[Any, int, int, Origin], Result | None]] = {
            PutTopic: self._put_topic,
            SetTopic: self._put_topic,
            CreateQueue: self._create_queue,
            ChangeQueue: self._change_queue,
            DeleteTopic: self._delete_topic,
            PutGroup: self._put_group,
            CreateGroup: self._create_group_of_consume,
            DeleteGroup: self._delete_group,
            PutQueueSettings: self._put_settings,
            DropIdle: self._drop_idle,
            Redrive: self._redrive,
            Purge: self._purge,
            DeleteDead: self._delete_dead,
            **self._engine_moves.appliers,
        }

    # -------------------------------------------------------------------- topics

    def _put_topic(self, command: PutTopic | SetTopic, at_ms: int, index: int, origin: Origin) -> Result:
        topic = self._topics.get(command.topic)
        if topic is not None and topic.queue is not None:
            # They would say something else than its attributes, which SQS clients see.
            detail = (
                f"{command.topic!r} is a queue of the SQS endpoint: its settings follow from its attributes (SetQueueAttributes)"
            )
            return Result({"field": "topic", "detail": detail}, "invalid")
        given = type(command).__struct_fields__
        fields = {name: getattr(command, name) for name in TopicSettings.__struct_fields__ if name in given}
        present = None if topic is None else topic.messages.settings
        engine, acks = chosen(fields.get("engine"), fields.get("acks"), present)
        if isinstance(command, SetTopic) or engine != "raft":
            # Answers are kept for repeats: those of older cluster versions stay as they were.
            fields |= {"engine": engine, "acks": acks}
        settings = TopicSettings(**fields)
        growth = self._engine_moves.needed(command.topic, settings)
        if isinstance(growth, Result):
            return growth
        if topic is None:
            refused = self._publisher.no_room_for_topics(1, growth + new_topic_bytes(command.topic))
        else:
            refused = self._registry.account.refusal(growth) if growth else None
        if refused is not None:
            return refused
        topic = topic or self._publisher.new_topic(command.topic, at_ms)
        self._engine_moves.change_settings(topic, settings, at_ms)
        return Result({"topic": command.topic, **fields})

    def _create_queue(self, command: CreateQueue, at_ms: int, index: int, origin: Origin) -> Result:
        topic = self._topics.get(command.topic)
        if topic is not None and topic.queue is not None:
            present = topic.queue.attributes
            given = command.attributes.items()
            return Result({"created": False, "differs": [name for name, text in given if present.get(name) != text]})
        queue = Queue(dict(command.attributes), dict(command.tags), at_ms, at_ms)
        settings = settings_of(queue.attributes)
        growth = self._engine_moves.needed(command.topic, settings, is_queue=True)
        if isinstance(growth, Result):
            return growth
        growth += queue.bytes
        if topic is None:
            growth += new_topic_bytes(command.topic) + new_group_bytes(GROUP)
            refused = self._publisher.no_room_for_topics(1, growth)
        elif GROUP in topic.groups:
            refused = self._registry.account.refusal(growth)
        else:
            refused = self._no_room_for_group(topic, growth + new_group_bytes(GROUP))
        if refused is not None:
            return refused
        topic = topic or self._publisher.new_topic(command.topic, at_ms)
        topic.set_queue(queue)
        self._engine_moves.change_settings(topic, settings, at_ms)
        group = topic.groups.get(GROUP) or topic.add_group(GROUP, at_ms)
        group.declared = True
        return Result({"created": True, "differs": []})

    def _change_queue(self, command: ChangeQueue, at_ms: int, index: int, origin: Origin) -> Result:
        topic = self._topics.get(command.topic)
        if topic is None or topic.queue is None:
            return Result({"detail": f"{command.topic!r} is no queue"}, "not_found")
        present = topic.queue
        if any(present.attributes.get(name, "") != text for name, text in command.expected.items()):
            return Result({"changed": False})
        attributes = {**present.attributes, **command.attributes}
        attributes = {name: text for name, text in attributes.items() if text}
        tags = {name: text for name, text in {**present.tags, **command.tags}.items() if name not in command.untag}
        settings = settings_of(attributes)
        growth = self._engine_moves.needed(command.topic, settings, is_queue=True) if command.attributes else 0
        if isinstance(growth, Result):
            return growth
        growth += queue_bytes(attributes, tags) - queue_bytes(present.attributes, present.tags)
        refused = self._registry.account.refusal(growth) if growth > 0 else None
        if refused is None and len(tags) > max(TAGS_MAX, len(present.tags)):
            refused = over_limit("tags_per_queue_max", TAGS_MAX, f"{command.topic!r} has {len(present.tags)} tags")
        if refused is not None:
            return refused
        modified_ms = at_ms if command.attributes else present.modified_ms
        topic.set_queue(msgspec.structs.replace(present, attributes=attributes, tags=tags, modified_ms=modified_ms))
        if command.attributes:
            self._engine_moves.change_settings(topic, settings, at_ms)
        return Result({"changed": True})

    def _delete_topic(self, command: DeleteTopic, at_ms: int, index: int, origin: Origin) -> Result:
        topic = self._topics.pop(command.topic, None)
        return Result({"deleted": topic is not None, "purged": topic.close() if topic is not None else 0})

    def _drop_idle(self, command: DropIdle, at_ms: int, index: int, origin: Origin) -> Result:
        # As an ordered set: nothing prevents a leader from naming a topic twice.
        idle = [name for name in dict.fromkeys(command.topics) if name in self._topics and self._topics[name].is_idle]
        if not self._registry.create_topics:
            # Topics are created on purpose then, and stay.
            idle = []
        for name in idle:
            self._topics.pop(name).close()
        return Result({"dropped": len(idle)})

    def _put_settings(self, command: PutQueueSettings, at_ms: int, index: int, origin: Origin) -> Result:
        self._registry.create_topics = command.create_topics
        return Result({"create_topics": command.create_topics})

    # -------------------------------------------------------------------- groups

    def _put_group(self, command: PutGroup, at_ms: int, index: int, origin: Origin) -> Result:
        start = 0 if command.start == "first" else _AFTER_ALL
        if command.msg_id is not None:
            start = message_number(command.msg_id)
            if start < 0:
                return Result({"field": "msg_id", "detail": "no message can have this `msg_id`"}, "invalid")
        group = self.find_group(command.topic, command.group)
        created = group is None
        if group is None:
            made = self.create_group(command.topic, command.group, at_ms, start)
            if isinstance(made, Result):
                return made
            group = made
        group.declared = True
        return Result({"created": created, "pending": group.backlog.pending})

    def _create_group_of_consume(self, command: CreateGroup, at_ms: int, index: int, origin: Origin) -> Result:
        made = self.find_group(command.topic, command.group) or self.create_group(command.topic, command.group, at_ms)
        if isinstance(made, Result):
            return made
        self._topics[command.topic].used_ms = at_ms
        return Result({})

    def create_group(self, topic_name: str, group_name: str, at_ms: int, start: int = 0, growth: int = 0) -> Group | Result:
        """A new group that begins with message number `start`, or a refusal. The topic is created if that is allowed.

        Args:
            growth: bytes that the caller needs for more than the group.
        """
        topic = self._topics.get(topic_name)
        growth += new_group_bytes(group_name)
        if topic is None:
            growth += new_topic_bytes(topic_name)
            refused = self._publisher.may_not_create(topic_name) or self._publisher.no_room_for_topics(1, growth)
            if refused is not None:
                return refused
            topic = self._publisher.new_topic(topic_name, at_ms)
        else:
            refused = self._no_room_for_group(topic, growth)
            if refused is not None:
                return refused
        return topic.add_group(group_name, at_ms, start)

    def _no_room_for_group(self, topic: Topic, growth: int) -> Result | None:
        if len(topic.groups) >= GROUPS_PER_TOPIC_MAX:
            detail = f"topic {topic.name!r} has {GROUPS_PER_TOPIC_MAX} groups"
            return over_limit("groups_per_topic_max", GROUPS_PER_TOPIC_MAX, detail)
        messages = topic.messages
        growth += len(messages.by_number) * PENDING_BYTES + len(messages.chains) * GROUP_KEY_BYTES
        return self._registry.account.refusal(growth)

    def _delete_group(self, command: DeleteGroup, at_ms: int, index: int, origin: Origin) -> Result:
        topic = self._topics.get(command.topic)
        if topic is None or command.group not in topic.groups:
            return Result({"deleted": False})
        if topic.queue is not None and command.group == GROUP:
            # All its messages would be lost, as if it had been purged, and the next call would create it again.
            detail = (
                f"the group {GROUP!r} is the queue {command.topic!r} of the SQS endpoint: use PurgeQueue or DeleteQueue, or delete "
                "the topic"
            )
            return Result({"field": "group", "detail": detail}, "invalid")
        topic.remove_group(command.group)
        return Result({"deleted": True})

    def find_group(self, topic_name: str, group_name: str) -> Group | None:
        """The group, if it exists."""
        topic = self._topics.get(topic_name)
        return None if topic is None else topic.groups.get(group_name)

    # ---------------------------------------------------------- redrive and purge

    def _redrive(self, command: Redrive, at_ms: int, index: int, origin: Origin) -> Result:
        group = self.find_group(command.topic, command.group)
        if group is None:
            return Result({"redriven": 0})
        numbers = sorted(group.dead) if command.msg_id is None else [message_number(command.msg_id)]
        numbers = [number for number in numbers if number in group.dead]
        for number in numbers:
            group.redrive(number, at_ms)
        group.serve(at_ms)
        return Result({"redriven": len(numbers)})

    def _purge(self, command: Purge, at_ms: int, index: int, origin: Origin) -> Result:
        topic = self._topics.get(command.topic)
        if topic is None:
            return Result({"purged": 0})
        if not command.dead:
            purged = topic.purge()
            topic.serve(at_ms)
            return Result({"purged": purged})
        groups = [group for group in topic.groups.values() if command.group in ("", group.name)]
        return Result({"purged": sum(group.forget_dead() for group in groups)})

    def _delete_dead(self, command: DeleteDead, at_ms: int, index: int, origin: Origin) -> Result:
        group = self.find_group(command.topic, command.group)
        return Result({"deleted": group is not None and group.forget_one_dead(message_number(command.msg_id))})
