"""Keys that are kept back for a while after their holder lost them (`lock_delay_ms`).

A client that lost its lock without knowing may still be at work. A delay is what is left of its hold: the key stays held, in the
mode of the lost hold, by nobody. So after an exclusive lock nobody gets the key, and after a shared one others may still share it.
It counts as a lease does, and begins anew with a new leader: time in which there was none tells nothing about the client.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dss_locks.core.deadlines import NO_TIMER, Deadlines


class Delay(msgspec.Struct):
    """A key that is kept back."""

    key: str
    #: who lost it last
    client: str
    #: the mode of the lost hold. All holds lost during one delay had the same: neither mode lets the other in.
    exclusive: bool
    #: when it was lost, ms
    since_ms: int
    length_ms: int
    timer: int = NO_TIMER


class Delays:
    """The delays of all keys. Most of the time there is none."""

    def __init__(self) -> None:
        self.by_key: dict[str, Delay] = {}
        #: when the present leader took over
        self.rearmed_ms = 0
        self.deadlines: Deadlines[Delay] = Deadlines(self.deadline_ms)

    def deadline_ms(self, delay: Delay) -> int:
        """When the key may be granted again."""
        return max(delay.since_ms, self.rearmed_ms) + delay.length_ms

    def left_ms(self, key: str, at_ms: int) -> int:
        """How long the key is still kept back; 0: it is not."""
        delay = self.by_key.get(key)
        return max(0, self.deadline_ms(delay) - at_ms) if delay is not None else 0

    def blocks(self, key: str, exclusive: bool) -> bool:
        """True while a request of this mode has to wait for the delay of `key`."""
        delay = self.by_key.get(key)
        return delay is not None and (exclusive or delay.exclusive)

    def add(self, key: str, client: str, exclusive: bool, at_ms: int, length_ms: int) -> None:
        """A hold was lost. Of two delays of one key the one that ends later stays."""
        delay = self.by_key.get(key)
        if delay is None:
            delay = self.by_key[key] = Delay(key, client, exclusive, at_ms, length_ms)
            self.deadlines.add(delay, self.deadline_ms(delay))
        elif at_ms + length_ms > self.deadline_ms(delay):
            delay.client, delay.since_ms, delay.length_ms = client, at_ms, length_ms

    def take_over(self, at_ms: int) -> list[Delay]:
        """The delays that are over, in an order that is the same everywhere."""
        over = self.deadlines.pop_due(at_ms)
        over.sort(key=lambda delay: (self.deadline_ms(delay), delay.key))
        for delay in over:
            del self.by_key[delay.key]
        return over

    def snapshot(self) -> dict[str, Any]:
        """Everything."""
        rows = [[d.key, d.client, d.exclusive, d.since_ms, d.length_ms] for d in self.by_key.values()]
        return {"rows": rows, "rearmed_ms": self.rearmed_ms}

    def restore(self, state: Any) -> None:
        """Replace everything."""
        self.rearmed_ms = state["rearmed_ms"]
        self.by_key = {row[0]: Delay(*row) for row in state["rows"]}
        self.deadlines.rebuild(self.by_key.values())
