"""A topic: its messages, its groups, and the dedup_ids of published messages that it remembers."""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush

import msgspec

from dss_queue.core.commands import TopicSettings
from dss_queue.core.group import Callers, Group
from dss_queue.core.partitions import PARTITIONS
from dss_queue.core.records import Message, Rate
from dss_queue.core.registry import Registry
from dss_queue.core.topic_messages import TopicMessages
from dss_queue.core.window import Chain
from dss_raft.replication.deadlines import NO_TIMER

#: Messages that one retention run drops; the rest follow a moment later.
RETENTION_BATCH_MAX = 10_000
#: Upkeep that no caller waits for runs at full seconds, for many messages at a time.
UPKEEP_MS = 1000
#: Timers that each topic has.
TIMERS = 3


class TopicTimer(msgspec.Struct):
    """One of the topic's own deadlines: for delayed messages, for retention or for dedup_ids."""

    topic: Topic
    serial: int
    due_ms: int = 0
    timer: int = NO_TIMER


class Topic:
    """See the module."""

    def __init__(self, name: str, registry: Registry, callers: Callers, serial: int) -> None:
        self.name = name
        #: the first of `TIMERS` serial numbers, for the topic's own timers
        self.serial = serial
        self.messages = TopicMessages(name, registry)
        self.groups: dict[str, Group] = {}
        #: dedup_id -> (message number, partition, published_ms)
        self.dedup: dict[str, tuple[int, int, int]] = {}
        self._dedup_order: deque[str] = deque()
        self.published = 0
        #: messages that were too old before the topic had a group
        self.expired = 0
        self.publish_rate = Rate()
        self._registry = registry
        self._callers = callers
        self._delay_timer = TopicTimer(self, serial)
        self._retention_timer = TopicTimer(self, serial + 1)
        self._dedup_timer = TopicTimer(self, serial + 2)

    @property
    def timers(self) -> tuple[TopicTimer, TopicTimer, TopicTimer]:
        return self._delay_timer, self._retention_timer, self._dedup_timer

    def timer_is_due(self, timer: TopicTimer, at_ms: int) -> None:
        """Handle one of the topic's timers."""
        if timer is self._delay_timer:
            self.release_due(at_ms)
        elif timer is self._retention_timer:
            self.drop_old(at_ms)
        else:
            self.forget_dedup(at_ms)

    # ------------------------------------------------------------------- publish

    def add(self, message: Message, at_ms: int) -> None:
        """Retain a new message, and tell the groups."""
        messages, number = self.messages, message.number
        if message.partition < 0:
            message.partition = self.published % PARTITIONS
        messages.by_number[number] = message
        self.published += 1
        self.publish_rate.add(at_ms)
        messages.add_bytes(message.size)
        for group in self.groups.values():
            group.backlog.pending += 1
        if message.key:
            self._add_to_chain(message, at_ms)
        elif message.ready_ms:
            heappush(messages.hidden_heap, (message.ready_ms, number))
            self._registry.arm(self._delay_timer, messages.hidden_heap[0][0])
        else:
            messages.unkeyed.append(number)
        if not self._retention_timer.due_ms:
            self._await_retention(message.published_ms, at_ms)

    def _add_to_chain(self, message: Message, at_ms: int) -> None:
        key, chains = message.key, self.messages.chains
        chain = chains.get(key)
        if chain is None:
            chain = chains[key] = Chain(key)
            chain.append(message.number)
            for group in self.groups.values():
                group.backlog.chain_begins(message, at_ms)
        else:
            message.key = chain.key
            chain.append(message.number)
            for group in self.groups.values():
                group.backlog.chain_grows(key, at_ms)

    def release_due(self, at_ms: int) -> None:
        """Messages without a routing key whose delay is over join the ready ones of every group."""
        messages = self.messages
        heap = messages.hidden_heap
        while heap and heap[0][0] <= at_ms:
            message = messages.by_number[heappop(heap)[1]]
            messages.released[message.number] = None
            for group in self.groups.values():
                group.backlog.meet(message)
        if heap:
            self._registry.arm(self._delay_timer, heap[0][0])

    # -------------------------------------------------------------------- groups

    def add_group(self, name: str, at_ms: int) -> Group:
        """A new group gets every retained message, the oldest first."""
        messages = self.messages
        messages.trim_unkeyed()
        unkeyed = messages.unkeyed
        group = Group(messages, name, self._registry, self._callers, unkeyed.start)
        first = unkeyed.get(unkeyed.start)
        behind = dict(messages.released)
        for other in self.groups.values():
            for number in (*other.in_flight, *other.backlog.returned):
                message = messages.by_number.get(number)
                if message is None or message.key or message.ready_ms or number in other.backlog.private:
                    continue
                if first is None or number < first:
                    behind[number] = None
        for number in sorted(behind):
            group.backlog.meet(messages.by_number[number])
        for chain in messages.chains.values():
            head = chain.get(chain.start)
            assert head is not None
            group.backlog.chain_begins(messages.by_number[head], at_ms)
        self.attach(group)
        return group

    def attach(self, group: Group) -> None:
        """From now on messages are retained until this group is finished with them, too."""
        self.groups[group.name] = group
        self.messages.readers.append(group.backlog)

    # -------------------------------------------------------------------- upkeep

    def remember(self, dedup_id: str, message: Message, at_ms: int) -> None:
        """Keep a message's dedup_id for the window."""
        if self.messages.settings.dedup_window_ms:
            self.dedup[dedup_id] = (message.number, message.partition, at_ms)
            self._dedup_order.append(dedup_id)
            self._await_dedup(at_ms)

    def restore_dedup(self, dedup: dict[str, tuple[int, int, int]]) -> None:
        """After a restore, oldest first."""
        self.dedup = dedup
        self._dedup_order = deque(dedup)

    def forget_dedup(self, at_ms: int) -> None:
        """Drop the dedup_ids whose window is over."""
        order, dedup = self._dedup_order, self.dedup
        horizon = at_ms - self.messages.settings.dedup_window_ms
        while order and dedup[order[0]][2] <= horizon:
            del dedup[order.popleft()]
        self._await_dedup(at_ms)

    def drop_old(self, at_ms: int) -> None:
        """Retention: an old message that a group has not finished goes to its dead letters; without a group it is counted."""
        messages = self.messages
        retention_ms = messages.settings.retention_ms
        if not retention_ms:
            return
        old: list[Message] = []
        next_ms = 0
        for message in messages.by_number.values():
            if message.published_ms + retention_ms > at_ms or len(old) == RETENTION_BATCH_MAX:
                next_ms = min(next_ms or message.published_ms, message.published_ms)
                break
            if message.ready_ms + retention_ms > at_ms:
                # Its delay is longer than the retention, which then counts from the end of the delay.
                next_ms = min(next_ms or message.ready_ms, message.ready_ms)
            else:
                old.append(message)
        for message in old:
            if message.key and not messages.is_head(message):
                # Behind one that is kept for its delay: a key's messages go in order.
                continue
            if not self.groups:
                self.expired += 1
                messages.drop(message)
            for group in [group for group in self.groups.values() if not group.is_finished_with(message)]:
                group.outlived(message, at_ms)
        messages.trim_unkeyed()
        if next_ms:
            self._await_retention(next_ms, at_ms)

    def settings_changed(self, settings: TopicSettings, at_ms: int) -> None:
        """Replace the settings; shorter durations apply to existing messages, too."""
        messages = self.messages
        messages.settings = settings
        self._registry.disarm(self._retention_timer)
        if messages.by_number:
            self._await_retention(next(iter(messages.by_number.values())).published_ms, at_ms)
        self.forget_dedup(at_ms)

    def purge(self) -> int:
        """Delete all messages, including those in flight, but no dead letters. Returns their number."""
        messages = self.messages
        count = len(messages.by_number) + sum(len(group.backlog.private) for group in self.groups.values())
        messages.clear()
        for group in self.groups.values():
            group.reset(messages.unkeyed.end)
        self._registry.disarm(self._delay_timer)
        return count

    def _await_retention(self, published_ms: int, at_ms: int) -> None:
        if self.messages.settings.retention_ms:
            self._registry.arm(self._retention_timer, _upkeep_ms(published_ms + self.messages.settings.retention_ms, at_ms))

    def _await_dedup(self, at_ms: int) -> None:
        if self._dedup_order and not self._dedup_timer.due_ms:
            first_ms = self.dedup[self._dedup_order[0]][2]
            self._registry.arm(self._dedup_timer, _upkeep_ms(first_ms + self.messages.settings.dedup_window_ms, at_ms))


def _upkeep_ms(due_ms: int, at_ms: int) -> int:
    """The next full second at or after `due_ms`, and after now."""
    return -(-max(due_ms, at_ms + 1) // UPKEEP_MS) * UPKEEP_MS
