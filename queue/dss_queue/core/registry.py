"""What all topics of a broker share: the timers, the callers that can be cancelled, the counter that orders everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from dss_api.result import Result
from dss_queue.core.records import Delivery, Handout, Returned, Waiter
from dss_queue.core.timers import Timers
from dss_raft.replication.machine import Event, Origin, Resolved

if TYPE_CHECKING:
    from dss_queue.core.topic import Topic


class TopicTimer(msgspec.Struct):
    """Something a topic does by itself: "delay", "retention" or "dedup"."""

    topic: Topic
    kind: str
    serial: int
    due_ms: int = 0


class Registry:
    """Broker-wide indexes; part of the replicated state."""

    def __init__(self) -> None:
        self.timers: Timers[Delivery | Returned | Waiter | TopicTimer] = Timers()
        #: consumes that wait
        self.waiters: dict[Origin, Waiter] = {}
        #: consumes that were answered with messages which are still in flight
        self.handouts: dict[Origin, Handout] = {}
        self.events: list[Event] = []
        #: bytes of all topics
        self.bytes = 0
        #: the last number that `next_serial` gave out
        self.serial = 0

    def next_serial(self) -> int:
        """A number that was never used before."""
        self.serial += 1
        return self.serial

    def add_waiter(self, waiter: Waiter, due_ms: int) -> None:
        """A consume waits until `due_ms`, behind those that wait already."""
        self.waiters[waiter.origin] = waiter
        self.timers.arm(waiter, due_ms)
        waiter.group.waiters.append(waiter)
        if waiter.attempt_id:
            waiter.group.waiting_attempts[waiter.attempt_id] = waiter

    def forget_waiter(self, waiter: Waiter) -> None:
        """It is answered, or its caller has gone."""
        waiter.live = False
        self.timers.disarm(waiter)
        del self.waiters[waiter.origin]
        if waiter.attempt_id:
            del waiter.group.waiting_attempts[waiter.attempt_id]
        waiters = waiter.group.waiters
        while waiters and not waiters[0].live:
            waiters.popleft()

    def answer(self, waiter: Waiter, result: Result) -> None:
        """Answer a consume that waited."""
        self.forget_waiter(waiter)
        self.events.append(Resolved(waiter.origin, result))
