"""What all topics of a broker share: deadlines, events, the counter that orders everything, and the bytes in use."""

from __future__ import annotations

from dss_queue.core.timers import Timed, Timers
from dss_raft.replication.machine import Event


class Registry:
    """Broker-wide state; part of the replicated state."""

    def __init__(self) -> None:
        self.timers: Timers[Timed] = Timers()
        self.events: list[Event] = []
        #: bytes of all topics
        self.bytes = 0
        #: the last number that `next_serial` gave out
        self.serial = 0

    def next_serial(self) -> int:
        """A number that was never used before."""
        self.serial += 1
        return self.serial
