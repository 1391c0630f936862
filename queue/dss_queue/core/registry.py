"""The state that all topics of a broker share: deadlines, events, the serial counter, and the account of bytes."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Protocol

from dss_queue.core.account import Account
from dss_queue.core.engines import incarnation_bytes
from dss_raft.replication.deadlines import NO_TIMER, Deadlines
from dss_raft.replication.limits import StateLimits
from dss_raft.replication.machine import Event

if TYPE_CHECKING:
    from dss_queue.core.records import DeadMove
    from dss_queue.core.sns_topics import SnsTopic


class Timed(Protocol):
    """Something with a deadline in the broker."""

    #: applied time in ms at which it is due; 0: never
    due_ms: int
    #: unique in the broker: orders what is due at the same time
    serial: int
    timer: int


class Registry:
    """See the module. Part of the replicated state."""

    def __init__(self, limits: StateLimits) -> None:
        self.deadlines: Deadlines[Timed] = Deadlines(attrgetter("due_ms"), attrgetter("serial"))
        self.events: list[Event] = []
        #: whether publish and consume create topics
        self.create_topics = True
        self.account = Account(limits)
        #: topics of SNS by name
        self.sns: dict[str, SnsTopic] = {}
        #: incarnations on the engine `redis` whose keys are still to be deleted, with the names of their topics
        self.abandoned: dict[int, str] = {}
        #: the last number that `next_serial` gave out
        self.serial = 0
        #: move tasks of queues that run
        self.moving = 0
        #: index of the entry that is applied now
        self.index = 0
        #: moves a dead letter to another topic; False: there is no room. See `Publisher.move_dead`
        self.move_dead: Callable[[DeadMove, int], bool] = lambda move, at_ms: False

    def add_sns(self, topic: SnsTopic) -> None:
        """Add a topic of SNS, for which there is room."""
        self.sns[topic.name] = topic
        self.account.add_topic(topic.own_bytes + sum(one.bytes for one in topic.subscriptions))

    def is_subscribed(self, queue: str) -> bool:
        """Whether a queue gets what is published to a topic of SNS. Visits all subscriptions."""
        return any(one.queue == queue for topic in self.sns.values() for one in topic.subscriptions)

    def abandon(self, incarnation: int, topic: str) -> None:
        """A topic's stay on the engine `redis` is over: its keys there are to be deleted."""
        self.abandoned[incarnation] = topic
        self.account.add_topic(incarnation_bytes(topic))

    def forget(self, incarnation: int) -> None:
        """The keys of an abandoned incarnation are deleted."""
        self.account.add_topic(-incarnation_bytes(self.abandoned.pop(incarnation)))

    def next_serial(self) -> int:
        """A number that was never used before."""
        self.serial += 1
        return self.serial

    def arm(self, item: Timed, due_ms: int) -> None:
        """Set or move the deadline of an item."""
        before_ms, item.due_ms = item.due_ms, due_ms
        if item.timer == NO_TIMER:
            self.deadlines.add(item, due_ms)
        elif due_ms < before_ms:
            self.deadlines.moved_forward(item, due_ms)

    def disarm(self, item: Timed) -> None:
        """Remove the deadline of an item."""
        item.due_ms = 0
        if item.timer != NO_TIMER:
            self.deadlines.discard(item)
