"""A topic: its messages, its groups, and the dedup_ids of published messages that it remembers."""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush

import msgspec

from dss_queue.core.account import DEDUP_BYTES, PENDING_BYTES, new_group_bytes, new_topic_bytes
from dss_queue.core.commands import Engine, TopicSettings
from dss_queue.core.engines import EngineUse, incarnation_bytes
from dss_queue.core.group import Callers, Group
from dss_queue.core.partitions import PARTITIONS
from dss_queue.core.records import Message, Rate
from dss_queue.core.registry import Registry
from dss_queue.core.sqs_queues import Queue
from dss_queue.core.topic_messages import TopicMessages
from dss_queue.core.window import Chain
from dss_raft.replication.deadlines import NO_TIMER
from dss_raft.replication.limits import text_bytes

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


class MoveTimer(msgspec.Struct):
    """The deadline of the queue's move task that runs."""

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
        #: what the SQS endpoint keeps of it; None: it is no queue of that endpoint
        self.queue: Queue | None = None
        self._queue_bytes = 0
        #: its part on the engine `redis`; None: there is none
        self.engine: EngineUse | None = None
        self.published = 0
        #: messages that were too old before the topic had a group
        self.expired = 0
        self.publish_rate = Rate()
        #: applied time of the last publish or consume
        self.used_ms = 0
        self.messages.on_kept = self._await_end_of_keep
        self._registry = registry
        self._account = registry.account
        self._account.add_topic(new_topic_bytes(name))
        self._callers = callers
        self._move_timer: MoveTimer | None = None
        self._delay_timer = TopicTimer(self, serial)
        self._retention_timer = TopicTimer(self, serial + 1)
        self._dedup_timer = TopicTimer(self, serial + 2)

    @property
    def is_idle(self) -> bool:
        """It has nothing that its deletion would lose: no messages, settings, dedup_ids or declared groups, and no consumer waits."""
        if self.queue is not None or self.engine is not None or self.messages.settings != TopicSettings():
            return False
        if self.messages.by_number or self.dedup:
            return False
        return not any(group.declared or group.dead or group.backlog.pending or group.waiters for group in self.groups.values())

    def set_queue(self, queue: Queue | None) -> None:
        """The attributes and tags of the queue that it is."""
        self.queue = queue
        self.messages.drops_expired = queue is not None
        self._account.add_topic((queue.bytes if queue is not None else 0) - self._queue_bytes)
        self._queue_bytes = queue.bytes if queue is not None else 0
        self.await_move()

    @property
    def is_on_engine(self) -> bool:
        """Whether its messages are published on the engine `redis`."""
        return self.engine is not None and not self.engine.is_leaving

    @property
    def moving_from(self) -> Engine | None:
        """The engine from which it moves, while something is left there.

        In the log: messages to deliver. On `redis`: anything, also dead letters, until the leader says that there is nothing.
        """
        if self.engine is None:
            return None
        if self.engine.is_leaving:
            return "redis"
        return "raft" if self.messages.by_number or any(group.backlog.pending for group in self.groups.values()) else None

    def set_engine(self, use: EngineUse | None) -> None:
        """What it has on the engine `redis`."""
        before, self.engine = self.engine, use
        self._account.add_topic(incarnation_bytes(self.name) * ((use is not None) - (before is not None)))

    def abandon_engine(self) -> None:
        """It has nothing on the engine `redis` any more, or does not need it: its keys there are to be deleted."""
        if self.engine is not None:
            self._registry.abandon(self.engine.incarnation, self.name)
            self.set_engine(None)

    def await_move(self) -> None:
        """Set the deadline of the queue's move task that runs, or remove it."""
        task = self.queue.running if self.queue is not None else None
        if self._move_timer is not None and (task is None or self._move_timer.serial != task.serial):
            self._registry.disarm(self._move_timer)
            self._registry.moving -= 1
            self._move_timer = None
        if task is not None:
            if self._move_timer is None:
                self._registry.moving += 1
                self._move_timer = MoveTimer(self, task.serial)
            self._registry.arm(self._move_timer, task.due_ms)

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
        messages.retain(message)
        self.published += 1
        self.used_ms = at_ms
        self.publish_rate.add(at_ms)
        for group in self.groups.values():
            group.backlog.pending += 1
            self._account.pending += 1
            self._account.used += PENDING_BYTES
        if message.key:
            self._add_to_chain(message, at_ms)
        elif message.ready_ms:
            heappush(messages.hidden_heap, (message.ready_ms, number))
            self._registry.arm(self._delay_timer, messages.hidden_heap[0][0])
        else:
            messages.unkeyed.append(number)
        if not self._retention_timer.due_ms or messages.settings.keep_ms:
            self._await_retention(message.published_ms, at_ms)

    def _add_to_chain(self, message: Message, at_ms: int) -> None:
        key, chains = message.key, self.messages.chains
        chain = chains.get(key)
        if chain is None:
            chain = chains[key] = Chain(key)
            chain.append(message.number)
            self._account.add_keys(1, len(self.groups))
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

    def serve(self, at_ms: int) -> None:
        """Give ready messages to the consumes that wait."""
        for group in self.groups.values():
            if group.waiters:
                group.serve(at_ms)

    # -------------------------------------------------------------------- groups

    def add_group(self, name: str, at_ms: int, start: int = 0) -> Group:
        """A new group gets every retained message, the oldest first.

        It skips those with a number below `start`, except messages that are still delayed and those behind them with their key.
        """
        messages = self.messages
        messages.trim_unkeyed()
        unkeyed = messages.unkeyed
        group = Group(messages, name, self._registry, self._callers, unkeyed.position_of(start))
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
            if number >= start:
                group.backlog.meet(messages.by_number[number])
        skipped = self._skipped(start, at_ms) if start else []
        for message in skipped:
            if message.key:
                group.backlog.skip(message.key)
        for chain in messages.chains.values():
            group.backlog.chain_is_new(chain.key, at_ms)
        self.attach(group)
        for message in skipped:
            group.backlog.pending -= 1
            self._account.add_pending(-1)
            messages.finished_by_one_more(message)
        return group

    def _skipped(self, start: int, at_ms: int) -> list[Message]:
        """The messages that a new group does not get if it begins with number `start`."""
        skipped: list[Message] = []
        delayed_keys: set[str] = set()
        for message in self.messages.by_number.values():
            if message.number >= start:
                break
            if message.key in delayed_keys:
                continue
            if message.key and message.ready_ms > at_ms:
                delayed_keys.add(message.key)
            elif message.key or not message.ready_ms or message.number in self.messages.released:
                skipped.append(message)
        return skipped

    def remove_group(self, name: str) -> None:
        """Delete a group. What every other group has finished is finished now."""
        messages, group = self.messages, self.groups[name]
        finished = [message for message in messages.by_number.values() if not message.key and group.is_finished_with(message)]
        for chain in messages.chains.values():
            finished += [messages.by_number[number] for number in group.backlog.past_of(chain)]
        for message in finished:
            message.done -= 1
        self._detach(group)
        if messages.readers:
            for message in list(messages.by_number.values()):
                if message.done == len(messages.readers):
                    messages.finished_by_all(message)
        else:
            # Without groups every message is retained until it is too old, and the next group gets it.
            messages.kept = []
            messages.restart_unkeyed()
        messages.trim_unkeyed()

    def close(self) -> int:
        """The topic is deleted. How many messages it had."""
        count = self.purge()
        for group in list(self.groups.values()):
            self._detach(group)
        for timer in self.timers:
            self._registry.disarm(timer)
        self._account.add_dedup(-sum(map(_dedup_bytes, self.dedup)))
        self.set_queue(None)
        self.abandon_engine()
        self._account.add_topic(-new_topic_bytes(self.name))
        return count

    def attach(self, group: Group) -> None:
        """From now on messages are retained until this group is finished with them, too."""
        self.groups[group.name] = group
        self.messages.readers.append(group.backlog)
        self._account.add_group(new_group_bytes(group.name))
        self._account.add_group_keys(len(self.messages.chains))
        self._account.add_pending(group.backlog.pending)

    def _detach(self, group: Group) -> None:
        """Delete a group; the messages do not know yet."""
        group.close()
        del self.groups[group.name]
        self.messages.readers.remove(group.backlog)
        self._account.add_group(-new_group_bytes(group.name))
        self._account.add_group_keys(-len(self.messages.chains))

    # -------------------------------------------------------------------- upkeep

    def remember(self, dedup_id: str, message: Message, at_ms: int) -> None:
        """Keep a message's dedup_id for the window."""
        if self.messages.settings.dedup_window_ms:
            self.dedup[dedup_id] = (message.number, message.partition, at_ms)
            self._dedup_order.append(dedup_id)
            self._account.add_dedup(_dedup_bytes(dedup_id))
            self._await_dedup(at_ms)

    def restore_dedup(self, dedup: dict[str, tuple[int, int, int]]) -> None:
        """After a restore, oldest first."""
        self.dedup = dedup
        self._dedup_order = deque(dedup)
        self._account.add_dedup(sum(map(_dedup_bytes, dedup)))

    def forget_dedup(self, at_ms: int) -> None:
        """Drop the dedup_ids whose window is over."""
        order, dedup = self._dedup_order, self.dedup
        horizon = at_ms - self.messages.settings.dedup_window_ms
        while order and dedup[order[0]][2] <= horizon:
            dedup_id = order.popleft()
            del dedup[dedup_id]
            self._account.add_dedup(-_dedup_bytes(dedup_id))
        self._await_dedup(at_ms)

    def drop_old(self, at_ms: int) -> None:
        """Retention, and the end of `keep_ms`."""
        # After a gap in time a delay may be over, too, although its timer comes later.
        self.release_due(at_ms)
        messages = self.messages
        messages.drop_kept(at_ms - messages.settings.keep_ms)
        next_ms = self._outlive(at_ms) if messages.settings.retention_ms else 0
        messages.trim_unkeyed()
        self._await_retention(next_ms, at_ms)

    def _outlive(self, at_ms: int) -> int:
        """An old message that a group has not finished goes to its dead letters; without a group it is counted.

        Returns the time from which the retention of the oldest message left counts; 0: there is none.
        """
        messages = self.messages
        retention_ms = messages.settings.retention_ms
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
            if message.number not in messages.by_number:
                # It was finished before the head of its run, and went with it.
                continue
            if message.key and not messages.is_head(message):
                # Behind one that is kept for its delay: a key's messages go in order.
                continue
            if not self.groups:
                self.expired += 1
                messages.drop(message)
            for group in [group for group in self.groups.values() if not group.is_finished_with(message)]:
                group.outlived(message, at_ms)
            if message.number in messages.by_number:
                messages.drop(message)
        return next_ms

    def settings_changed(self, settings: TopicSettings, at_ms: int) -> None:
        """Replace the settings; shorter durations apply to existing messages, too."""
        messages = self.messages
        begins_to_keep = settings.keep_ms and not messages.settings.keep_ms
        messages.settings = settings
        if begins_to_keep:
            messages.restart_unkeyed()
        self._registry.disarm(self._retention_timer)
        messages.drop_kept(at_ms - settings.keep_ms)
        messages.trim_unkeyed()
        first = next(iter(messages.by_number.values()), None)
        self._await_retention(0 if first is None else first.published_ms, at_ms)
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
        """Look again when a message from `published_ms` (0: none) is too old, or `keep_ms` ends for the oldest kept one."""
        settings, kept_ms = self.messages.settings, self.messages.kept_since_ms
        due_ms = [published_ms + settings.retention_ms] if published_ms and settings.retention_ms else []
        if kept_ms:
            due_ms.append(kept_ms + settings.keep_ms)
        if due_ms:
            self._look_at(_upkeep_ms(min(due_ms), at_ms))

    def _await_end_of_keep(self, message: Message) -> None:
        self._look_at(_upkeep_ms(message.published_ms + self.messages.settings.keep_ms, 0))

    def _look_at(self, due_ms: int) -> None:
        timer = self._retention_timer
        if not timer.due_ms or due_ms < timer.due_ms:
            self._registry.arm(timer, due_ms)

    def _await_dedup(self, at_ms: int) -> None:
        if self._dedup_order and not self._dedup_timer.due_ms:
            first_ms = self.dedup[self._dedup_order[0]][2]
            self._registry.arm(self._dedup_timer, _upkeep_ms(first_ms + self.messages.settings.dedup_window_ms, at_ms))


def _dedup_bytes(dedup_id: str) -> int:
    return DEDUP_BYTES + text_bytes(dedup_id)


def _upkeep_ms(due_ms: int, at_ms: int) -> int:
    """The next full second at or after `due_ms`, and after now."""
    return -(-max(due_ms, at_ms + 1) // UPKEEP_MS) * UPKEEP_MS
