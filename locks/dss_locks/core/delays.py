"""Lock delays: after a lock is lost, its key is not granted for `lock_delay_ms`.

A client that lost its lock without noticing may still be working. During the delay the key behaves as if it were still held in the
mode of the lost hold, but by no client: after an exclusive lock it is granted to no one, after a shared lock it can still be
shared. A delay works as a lease and starts again with a new leader, because clients could not call while there was no leader.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import msgspec

from dss_locks.core.account import DELAY_BYTES, Account
from dss_raft.replication.deadlines import NO_TIMER, Deadlines
from dss_raft.replication.limits import text_bytes


class LockDelay(msgspec.Struct):
    """The lock delay of one key."""

    key: str
    #: the client that lost it last
    client: str
    #: the mode of the lost hold. It is the same for all holds lost during one delay, because the modes exclude each other.
    exclusive: bool
    #: when it was lost, ms
    since_ms: int
    length_ms: int
    timer: int = NO_TIMER


class LockDelays:
    """The lock delays of all keys. Most of the time there are none."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self.by_key: dict[str, LockDelay] = {}
        #: when the present leader took over
        self.rearmed_ms = 0
        self.deadlines: Deadlines[LockDelay] = Deadlines(self.deadline_ms, attrgetter("key"))

    def deadline_ms(self, delay: LockDelay) -> int:
        """When the key may be granted again."""
        return max(delay.since_ms, self.rearmed_ms) + delay.length_ms

    def left_ms(self, key: str, at_ms: int) -> int:
        """The remaining delay of `key`; 0 if it has none."""
        delay = self.by_key.get(key)
        return max(0, self.deadline_ms(delay) - at_ms) if delay is not None else 0

    def blocks(self, key: str, exclusive: bool) -> bool:
        """Whether a request of this mode has to wait for the delay of `key`."""
        delay = self.by_key.get(key)
        return delay is not None and (exclusive or delay.exclusive)

    def add(self, key: str, client: str, exclusive: bool, at_ms: int, length_ms: int) -> None:
        """Start a delay after a hold was lost. If the key already has one, the one that ends later is kept."""
        delay = self.by_key.get(key)
        if delay is None:
            delay = self.by_key[key] = LockDelay(key, client, exclusive, at_ms, length_ms)
            self.deadlines.add(delay, self.deadline_ms(delay))
            self._account.delays += delay_bytes(delay)
        elif at_ms + length_ms > self.deadline_ms(delay):
            self._account.delays += text_bytes(client) - text_bytes(delay.client)
            delay.client, delay.since_ms, delay.length_ms = client, at_ms, length_ms

    def pop_expired(self, at_ms: int) -> list[LockDelay]:
        """Remove the delays that have ended. Returns them in an order that is the same on every node."""
        ended = self.deadlines.pop_due(at_ms)
        for delay in ended:
            del self.by_key[delay.key]
            self._account.delays -= delay_bytes(delay)
        return ended

    def snapshot(self) -> dict[str, Any]:
        """Everything."""
        rows = [[d.key, d.client, d.exclusive, d.since_ms, d.length_ms] for d in self.by_key.values()]
        return {"rows": rows, "rearmed_ms": self.rearmed_ms}

    def restore(self, state: Any) -> None:
        """Replace everything. The account must have been cleared."""
        self.rearmed_ms = state["rearmed_ms"]
        self.by_key = {row[0]: LockDelay(*row) for row in state["rows"]}
        self.deadlines.rebuild(self.by_key.values())
        self._account.delays = sum(map(delay_bytes, self.by_key.values()))


def delay_bytes(delay: LockDelay) -> int:
    """What a delay takes."""
    return DELAY_BYTES + text_bytes(delay.key) + text_bytes(delay.client)
