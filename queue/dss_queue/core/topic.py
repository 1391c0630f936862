"""A topic: its retained messages, in the order that groups take them from, and what it remembers of published ones.

A message is retained until every known group is finished with it; while there is no group, until it is too old. It is counted,
not listed: `Message.done` says how many groups are finished with it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from heapq import heappop, heappush

from dss_queue.core.commands import TopicSettings
from dss_queue.core.group import Group
from dss_queue.core.partitions import PARTITIONS
from dss_queue.core.records import Message, Rate
from dss_queue.core.registry import Registry, TopicTimer
from dss_queue.core.window import Chain, Window

#: Messages that one expiry lets go for their age; the rest follow a moment later.
RETENTION_BATCH_MAX = 10_000
#: Upkeep that nobody waits for is done at full seconds, for many messages at once.
UPKEEP_MS = 1000
#: Timers that each topic has.
TIMERS = 3


class Topic:
    """See the module."""

    def __init__(self, name: str, registry: Registry, serial: int) -> None:
        self.name = name
        #: the first of `TIMERS` serial numbers, for the topic's own timers
        self.serial = serial
        self.settings = TopicSettings()
        #: retained messages by number, in publish order
        self.messages: dict[int, Message] = {}
        #: those without a routing key and without a delay
        self.lane = Window()
        #: those with a routing key
        self.chains: dict[str, Chain] = {}
        #: those without a routing key whose delay is not over: (ready_ms, number)
        self.hidden_heap: list[tuple[int, int]] = []
        #: those whose delay is over (None stands for "no value": an ordered set)
        self.released: dict[int, None] = {}
        self.groups: dict[str, Group] = {}
        #: dedup_id -> (message number, partition, published_ms)
        self.dedup: dict[str, tuple[int, int, int]] = {}
        self._dedup_order: deque[str] = deque()
        #: of retained messages, private ones and dead letters
        self.bytes = 0
        self.published = 0
        #: messages nobody took before they were too old, when there was no group
        self.expired = 0
        self.publish_rate = Rate()
        self._registry = registry
        self._delay_timer = TopicTimer(self, "delay", serial)
        self._retention_timer = TopicTimer(self, "retention", serial + 1)
        self._dedup_timer = TopicTimer(self, "dedup", serial + 2)

    @property
    def timers(self) -> tuple[TopicTimer, TopicTimer, TopicTimer]:
        return self._delay_timer, self._retention_timer, self._dedup_timer

    @property
    def hidden(self) -> int:
        """Messages without a routing key whose delay is not over."""
        return len(self.hidden_heap)

    def add_bytes(self, count: int) -> None:
        """Account for memory, here and in the broker's total."""
        self.bytes += count
        self._registry.bytes += count

    # ------------------------------------------------------------------- publish

    def add(self, message: Message, at_ms: int) -> None:
        """Retain a new message, and tell the groups."""
        number, key = message.number, message.key
        if message.partition < 0:
            message.partition = self.published % PARTITIONS
        self.messages[number] = message
        self.published += 1
        self.publish_rate.add(at_ms)
        self.add_bytes(message.size)
        for group in self.groups.values():
            group.pending += 1
        if key:
            self._add_to_chain(message, at_ms)
        elif message.ready_ms:
            heappush(self.hidden_heap, (message.ready_ms, number))
            self._registry.timers.arm(self._delay_timer, self.hidden_heap[0][0])
        else:
            self.lane.append(number)
        if not self._retention_timer.due_ms:
            self._await_retention(message.published_ms, at_ms)

    def _add_to_chain(self, message: Message, at_ms: int) -> None:
        key = message.key
        chain = self.chains.get(key)
        if chain is None:
            chain = self.chains[key] = Chain(key)
            chain.append(message.number)
            for group in self.groups.values():
                group.chain_begins(message, at_ms)
        else:
            message.key = chain.key
            chain.append(message.number)
            for group in self.groups.values():
                group.chain_grows(key, at_ms)

    def release_due(self, at_ms: int) -> None:
        """Messages without a routing key whose delay is over join the ready ones of every group."""
        heap = self.hidden_heap
        while heap and heap[0][0] <= at_ms:
            message = self.messages[heappop(heap)[1]]
            self.released[message.number] = None
            for group in self.groups.values():
                group.meet(message)
        if heap:
            self._registry.timers.arm(self._delay_timer, heap[0][0])

    # -------------------------------------------------------------------- groups

    def add_group(self, name: str, at_ms: int) -> Group:
        """A group that first appears gets every retained message, the oldest first."""
        self.trim_lane()
        lane = self.lane
        group = Group(self, name, self._registry, lane.start)
        first = lane.get(lane.start)
        behind = dict(self.released)
        for other in self.groups.values():
            for number in (*other.in_flight, *other.returned):
                message = self.messages.get(number)
                if message is None or message.key or message.ready_ms or number in other.private:
                    continue
                if first is None or number < first:
                    behind[number] = None
        for number in sorted(behind):
            group.meet(self.messages[number])
        for chain in self.chains.values():
            head = chain.get(chain.start)
            assert head is not None
            group.chain_begins(self.messages[head], at_ms)
        self.groups[name] = group
        return group

    def trim_lane(self) -> None:
        """The lane forgets what every group has met, or, without groups, what is gone."""
        lane = self.lane
        start = min((group.cursor for group in self.groups.values()), default=lane.start)
        while (number := lane.get(start)) is not None and number not in self.messages:
            start += 1
        for group in self.groups.values():
            group.cursor = max(group.cursor, start)
        lane.forget_before(start)

    def place_cursor(self, group: Group, fresh: int) -> None:
        """After a restore: the group's cursor stands at the message `fresh`; -1: at the end."""
        lane = self.lane
        group.cursor = lane.end if fresh < 0 else bisect_left(lane.following(0, lane.end), fresh)

    def finished_by_one_more(self, message: Message) -> None:
        """A group is finished with a message; with the last one it goes."""
        message.done += 1
        if message.done == len(self.groups):
            self._drop(message)

    def _drop(self, message: Message) -> None:
        number, key = message.number, message.key
        del self.messages[number]
        self.add_bytes(-message.size)
        if key:
            # Groups finish the messages of a key in order: it is the head.
            chain = self.chains[key]
            chain.forget_before(chain.start + 1)
            if chain.start == chain.end:
                del self.chains[key]
                for group in self.groups.values():
                    group.chain_ends(key)
        elif message.ready_ms:
            self.released.pop(number, None)

    # -------------------------------------------------------------------- upkeep

    def remember(self, dedup_id: str, message: Message, at_ms: int) -> None:
        """Keep a message's dedup_id for the window."""
        if self.settings.dedup_window_ms:
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
        horizon = at_ms - self.settings.dedup_window_ms
        while order and dedup[order[0]][2] <= horizon:
            del dedup[order.popleft()]
        self._await_dedup(at_ms)

    def let_go_of_old(self, at_ms: int) -> None:
        """Retention: what a group has not taken in time goes to its dead letters; where there is no group it is counted."""
        retention_ms = self.settings.retention_ms
        if not retention_ms:
            return
        old: list[Message] = []
        next_ms = 0
        for message in self.messages.values():
            if message.published_ms + retention_ms > at_ms or len(old) == RETENTION_BATCH_MAX:
                next_ms = min(next_ms or message.published_ms, message.published_ms)
                break
            if message.ready_ms + retention_ms > at_ms:
                # Its delay is longer than the retention: it has its time after the delay.
                next_ms = min(next_ms or message.ready_ms, message.ready_ms)
            else:
                old.append(message)
        for message in old:
            if message.key and not self._is_head(message):
                # Behind one that is kept for its delay: a key's messages go in order.
                continue
            if not self.groups:
                self.expired += 1
                self._drop(message)
            for group in [group for group in self.groups.values() if not group.is_finished_with(message)]:
                group.outlived(message, at_ms)
        self.trim_lane()
        if next_ms:
            self._await_retention(next_ms, at_ms)

    def _is_head(self, message: Message) -> bool:
        chain = self.chains[message.key]
        return chain.get(chain.start) == message.number

    def settings_changed(self, settings: TopicSettings, at_ms: int) -> None:
        """Replace the settings; what they shorten is shortened at once."""
        self.settings = settings
        self._registry.timers.disarm(self._retention_timer)
        if self.messages:
            self._await_retention(next(iter(self.messages.values())).published_ms, at_ms)
        self.forget_dedup(at_ms)

    def purge(self) -> int:
        """Throw all messages away, those in flight too; dead letters stay. How many there were."""
        count = len(self.messages) + sum(len(group.private) for group in self.groups.values())
        self.add_bytes(-sum(message.size for message in self.messages.values()))
        self.messages, self.chains, self.released, self.hidden_heap = {}, {}, {}, []
        self.lane.forget_before(self.lane.end)
        for group in self.groups.values():
            group.reset(self.lane.end)
        self._registry.timers.disarm(self._delay_timer)
        return count

    def _await_retention(self, published_ms: int, at_ms: int) -> None:
        if self.settings.retention_ms:
            self._registry.timers.arm(self._retention_timer, _upkeep_ms(published_ms + self.settings.retention_ms, at_ms))

    def _await_dedup(self, at_ms: int) -> None:
        if self._dedup_order and not self._dedup_timer.due_ms:
            first_ms = self.dedup[self._dedup_order[0]][2]
            self._registry.timers.arm(self._dedup_timer, _upkeep_ms(first_ms + self.settings.dedup_window_ms, at_ms))


def _upkeep_ms(due_ms: int, at_ms: int) -> int:
    """The next full second at or after `due_ms`, and after now."""
    return -(-max(due_ms, at_ms + 1) // UPKEEP_MS) * UPKEEP_MS
