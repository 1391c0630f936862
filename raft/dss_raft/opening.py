"""When a started node may open its session.

The first command of a process, `OpenSession`, tells the cluster that the earlier process of this node has ended. Subsystems may have
given something to their clients that outlives that process, such as a lease. Then the command must wait until that is over.

What was given is in the log. So a node that has something to wait for makes a linearizable read first: after that, it has applied
everything that the earlier process had applied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from dss_api.errors import Refused
from dss_raft.replication.clocks import boot_time
from dss_raft.replication.reads import ReadRounds


class SessionOpening:
    """Asked before every command until it says yes once.

    Args:
        delays: each returns how many seconds after `began` the session may be opened, according to the applied log.
        began: a moment at which no earlier process of this node was running, by `clock`: it had opened the node's store.
        clock: in seconds; it keeps running while the machine sleeps.
    """

    def __init__(
        self,
        reads: ReadRounds,
        delays: Sequence[Callable[[], float]] = (),
        began: float = 0.0,
        clock: Callable[[], float] = boot_time,
    ) -> None:
        self._reads = reads
        self._delays = delays
        self._began = began
        self._clock = clock
        self._read: asyncio.Future[int] | None = None
        self._is_allowed = not delays

    def is_allowed(self) -> bool:
        """True when the session may be opened. Ask again at every tick."""
        if self._is_allowed:
            return True
        if self._read is None or (self._read.done() and self._read.exception() is not None):
            # A read that was refused is repeated.
            try:
                self._read = self._reads.read()
            except Refused:
                return False  # too many others wait now
        if self._read.done():
            self._is_allowed = self._clock() >= self._began + max(delay() for delay in self._delays)
        return self._is_allowed
