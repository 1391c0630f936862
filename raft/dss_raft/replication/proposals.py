"""The commands that a leader gathers for the next log entries, in one term. A new term starts with none."""

from __future__ import annotations

import time
from collections import deque

from dss_raft import metrics
from dss_raft.core import Busy, NotLeader, RaftCore
from dss_raft.replication.batch import encode_batch, encode_command
from dss_raft.replication.clocks import StampClock
from dss_raft.replication.commands import Command
from dss_raft.replication.replica import Replica

#: Limit of the groups in one entry; the others go into the next entry.
BATCH_BYTES_MAX = 1024 * 1024
#: Limit of the bytes gathered while the core accepts nothing (`Busy`). Nodes repeat unanswered commands every second, so without a
#: limit, a log that makes no progress would fill the leader's memory with repeats.
GATHERED_BYTES_MAX = 64 * 1024 * 1024


class Proposals:
    """The next entries of a leader."""

    def __init__(self, core: RaftCore, replica: Replica, clock: StampClock | None = None) -> None:
        self._core = core
        self._replica = replica
        self._clock = clock or StampClock()
        self._term = 0
        self._groups: list[bytes] = []
        self._own: list[bytes] = []
        self._gathered_bytes = 0
        self._must_stamp = False
        #: (index, time of the proposal) of entries that are not committed yet
        self._proposed: deque[tuple[int, float]] = deque()

    def add_groups(self, groups: list[bytes]) -> None:
        """Add groups of session commands, of this node or a follower. Their nodes send them again if they are lost here.

        Groups above `GATHERED_BYTES_MAX` are dropped: the calls wait at their nodes, which refuse more with `over_limit`.
        """
        self._enter_term()
        for group in groups:
            if self._gathered_bytes < GATHERED_BYTES_MAX:
                self._groups.append(group)
                self._gathered_bytes += len(group)

    def add_own(self, command: Command) -> bool:
        """Add a command of the leader itself, for this term only: it is never sent again. False: too much is gathered."""
        self._enter_term()
        if self._gathered_bytes >= GATHERED_BYTES_MAX:
            return False
        encoded = encode_command(command)
        self._own.append(encoded)
        self._gathered_bytes += len(encoded)
        return True

    def stamp(self) -> None:
        """Propose an entry even without commands: its stamp advances applied time."""
        self._enter_term()
        self._must_stamp = True

    def stamp_if_due(self) -> bool:
        """Request a stamp when something is due to expire and no other entry is on its way."""
        if self._core.last_index != self._replica.applied_index:
            return False
        deadline = self._replica.next_deadline_ms()
        if deadline is None or deadline > self._now_ms():
            return False
        self.stamp()
        return True

    def propose(self) -> None:
        """Append all gathered commands to the log, in as few entries as the limit allows."""
        self._enter_term()
        while self._groups or self._own or self._must_stamp:
            count = size = 0
            while count < len(self._groups) and size < BATCH_BYTES_MAX:
                size += len(self._groups[count])
                count += 1
            try:
                index = self._core.propose(encode_batch(self._now_ms(), self._own, self._groups[:count]))
            except (NotLeader, Busy):
                return
            self._proposed.append((index, time.perf_counter()))
            self._gathered_bytes -= size + sum(map(len, self._own))
            del self._groups[:count]
            self._own = []
            self._must_stamp = False

    def committed(self, index: int) -> None:
        """Entries up to `index` are committed: record how long that took."""
        while self._proposed and self._proposed[0][0] <= index:
            metrics.COMMIT_SECONDS.observe(time.perf_counter() - self._proposed.popleft()[1])

    def _now_ms(self) -> int:
        return self._clock.now_ms(self._core.term, self._replica.at_ms)

    def _enter_term(self) -> None:
        if self._term != self._core.term:
            self._term = self._core.term
            self._proposed.clear()
            self._groups, self._own, self._must_stamp = [], [], False
            self._gathered_bytes = 0
