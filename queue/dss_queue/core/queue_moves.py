"""The commands of the SQS endpoint that delete or move all messages of a queue.

A move task is a part of the queue, and goes on when its deadline is due, as visibility timeouts end. No node drives it, so it goes on
after a change of the leader. A message that moves is a new one in its new queue.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from dss_api.result import Result
from dss_queue.core.commands import NewMessage
from dss_queue.core.engines import not_on_engine
from dss_queue.core.group import Group, was_deleted
from dss_queue.core.publishing import Publisher, over_limit
from dss_queue.core.records import decoded_headers, message_number
from dss_queue.core.registry import Registry
from dss_queue.core.sqs_queues import (
    GROUP,
    MOVE_TASK_BYTES,
    MOVE_TASKS_MAX,
    MOVES_PER_SECOND_DEFAULT,
    MOVES_RUNNING_MAX,
    PURGE_PAUSE_MS,
    CancelMove,
    MoveTask,
    PurgeQueue,
    Queue,
    StartMove,
)
from dss_queue.core.topic import MoveTimer, Topic
from dss_raft.replication.commands import Command
from dss_raft.replication.machine import Origin

#: A task that asks for more messages per second takes several of them at a time, this often.
STEP_MS = 100
#: Messages that a task moves at a time.
STEP_MESSAGES_MAX = 100
#: Messages that all tasks together move at a time: the others go on in the next step.
EXPIRE_MESSAGES_MAX = 200
#: A task whose target has no room tries again after this time.
RETRY_MS = 1000
#: the prefix of the headers that a dead letter has besides those of its message
_DEAD = "dss-dead-"


class QueueMoves:
    """See the module. `topics` are the topics of a broker by name."""

    def __init__(self, topics: dict[str, Topic], registry: Registry, publisher: Publisher) -> None:
        self._topics = topics
        self._registry = registry
        self._publisher = publisher
        #: messages that may still move in this run of `Broker.expire`
        self._budget = 0
        self.appliers: dict[type[Command], Callable[[Any, int, int, Origin], Result | None]] = {
            PurgeQueue: self._purge,
            StartMove: self._start,
            CancelMove: self._cancel,
        }

    def _purge(self, command: PurgeQueue, at_ms: int, index: int, origin: Origin) -> Result:
        topic = self._topics.get(command.topic)
        if topic is None or topic.queue is None:
            return was_deleted()
        purged_ms = topic.queue.purged_ms
        if purged_ms and at_ms < purged_ms + PURGE_PAUSE_MS:
            return Result({"purged": None})
        topic.set_queue(msgspec.structs.replace(topic.queue, purged_ms=at_ms))
        purged = topic.purge()
        topic.serve(at_ms)
        return Result({"purged": purged})

    def _start(self, command: StartMove, at_ms: int, index: int, origin: Origin) -> Result:
        topic = self._topics.get(command.topic)
        group = self._group_of(topic)
        if topic is None or topic.queue is None or group is None:
            return was_deleted()
        queue = topic.queue
        if topic.engine is not None:
            return not_on_engine("topic", f"queue {topic.name!r} has messages on the engine `redis`, which no task moves")
        if self._is_on_engine(command.target):
            return not_on_engine("target", f"queue {command.target!r} is on the engine `redis`, to which no task moves messages")
        if queue.running is not None:
            return Result({"task": None})
        if len(queue.moves) < MOVE_TASKS_MAX and (refused := self._registry.account.refusal(MOVE_TASK_BYTES)) is not None:
            return refused
        if self._registry.moving >= MOVES_RUNNING_MAX:
            return over_limit("sqs_moves_running_max", MOVES_RUNNING_MAX, f"{self._registry.moving} tasks move messages")
        # Numbers grow, and so does the order of insertion.
        last = next(reversed(topic.messages.by_number), -1)
        found = group.backlog.pending - len(group.in_flight) - group.backlog.delayed
        task = MoveTask(self._registry.next_serial(), command.target, command.rate, at_ms, last, found, due_ms=at_ms + 1)
        topic.set_queue(msgspec.structs.replace(queue, moves=[*queue.moves, task][-MOVE_TASKS_MAX:]))
        return Result({"task": task.serial})

    def _cancel(self, command: CancelMove, at_ms: int, index: int, origin: Origin) -> Result:
        topic = self._topics.get(command.topic)
        queue = topic.queue if topic is not None else None
        task = next((one for one in queue.moves if one.serial == command.task), None) if queue is not None else None
        if topic is None or task is None:
            return was_deleted()
        if task.status != "RUNNING":
            return Result({"moved": None})
        _end(topic, task, "CANCELLED")
        return Result({"moved": task.moved})

    def begin(self) -> None:
        """The deadlines that are due are handled now."""
        self._budget = EXPIRE_MESSAGES_MAX

    def step(self, timer: MoveTimer, at_ms: int, index: int) -> None:
        """Move what a task may have moved by now."""
        topic = timer.topic
        group = self._group_of(topic)
        task = topic.queue.running if topic.queue is not None else None
        if task is None or group is None:
            return
        rate = task.rate or MOVES_PER_SECOND_DEFAULT
        # After a time without a leader, there would be more than a step has.
        allowed = min(1 + (at_ms - task.started_ms) * rate // 1000 - task.moved, STEP_MESSAGES_MAX)
        # A task that the others leave nothing is the first of the next step.
        pause_ms = max(STEP_MS, 1000 // rate) if allowed <= self._budget else 1
        allowed = min(allowed, self._budget)
        moved: list[NewMessage] = []
        while allowed > 0 and task.status == "RUNNING":
            # One at a time: the origin of this handout is never asked for.
            taken = group.hand_out(Origin("", 0, task.serial), "", 1, 1, at_ms)
            number = message_number(taken[0]["msg_id"]) if taken else -1
            if not 0 <= number <= task.last:
                self._give_back(group, number, at_ms)
                _end(topic, task, "COMPLETED")
                break
            new = self._moved_message(topic, task, taken[0])
            if new is None:
                self._give_back(group, number, at_ms)
                reason = "AWS.SimpleQueueService.NonExistentQueue" if task.target else "CouldNotDetermineMessageSource"
                _end(topic, task, "FAILED", reason)
                break
            if self._is_on_engine(new.topic):
                self._give_back(group, number, at_ms)
                _end(topic, task, "FAILED", "AWS.SimpleQueueService.UnsupportedOperation")
                break
            if self._publisher.over_limits([new], at_ms) is not None:
                self._give_back(group, number, at_ms)
                pause_ms = RETRY_MS
                break
            self._publisher.store([new], at_ms, index)
            group.acked(group.in_flight[number], at_ms)
            moved.append(new)
            task.moved += 1
            allowed -= 1
            self._budget -= 1
        if task.status == "RUNNING":
            task.due_ms = at_ms + pause_ms
            topic.await_move()
        self._publisher.serve(moved, at_ms)
        group.serve(at_ms)

    def _moved_message(self, topic: Topic, task: MoveTask, taken: dict[str, Any]) -> NewMessage | None:
        """A message for its new queue. None: there is no such queue."""
        headers = decoded_headers(taken["headers"])
        target = task.target
        if not target:
            target = headers.get("dss-dead-topic", "")
            source = self._topics.get(target)
            # A header can name any topic, but only these queues send their dead letters here.
            if source is None or source.messages.settings.dead_letter_topic != topic.name:
                return None
        if self._queue(target) is None:
            return None
        headers = {name: text for name, text in headers.items() if not name.startswith(_DEAD)}
        encoded = msgspec.json.encode(headers) if headers else b""
        return NewMessage(target, taken["value"], taken["key"], taken["partition"], 0, "", encoded)

    def _queue(self, name: str) -> Queue | None:
        topic = self._topics.get(name)
        return topic.queue if topic is not None else None

    def _is_on_engine(self, name: str) -> bool:
        topic = self._topics.get(name)
        return topic is not None and topic.is_on_engine

    @staticmethod
    def _give_back(group: Group, number: int, at_ms: int) -> None:
        if number >= 0:
            group.gave_back(group.in_flight[number], "silent", at_ms)

    @staticmethod
    def _group_of(topic: Topic | None) -> Group | None:
        return topic.groups.get(GROUP) if topic is not None else None


def _end(topic: Topic, task: MoveTask, status: str, reason: str = "") -> None:
    task.status, task.reason, task.due_ms = status, reason, 0
    topic.await_move()
