"""The commands that a leader gathers for the next log entries, in one term. A new term starts with none.

They get their stamps here, so a new leader also finds out here, once in its term, whether applied time is behind (`catch_up`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from dss_raft import metrics
from dss_raft.core import Busy, NotLeader, RaftCore
from dss_raft.formats import array_version
from dss_raft.replication.admission import Admission
from dss_raft.replication.batch import GROUP_FORMAT, encode_batch
from dss_raft.replication.clocks import AGREE_MS, StampClock
from dss_raft.replication.commands import AdvanceTime, Command, SetClusterVersion
from dss_raft.replication.replica import Replica
from dss_raft.size_limits import ENTRY_FILL_BYTES, GROUP_BYTES_MAX
from dss_raft.versions import Raise, Supported, next_version

#: Limit of the bytes gathered while the core accepts nothing (`Busy`). Nodes repeat unanswered commands every second, so without a
#: limit, a log that makes no progress would fill the leader's memory with repeats.
GATHERED_BYTES_MAX = 64 * 1024 * 1024


class Proposals:
    """The next entries of a leader.

    Args:
        admission: for the leader's own commands.
    """

    def __init__(self, core: RaftCore, replica: Replica, admission: Admission, clock: StampClock) -> None:
        self._core = core
        self._replica = replica
        self._admission = admission
        self._clock = clock
        self._term = 0
        self._groups: list[bytes] = []
        self._own: list[bytes] = []
        self._gathered_bytes = 0
        self._must_stamp = False
        self._time_is_checked = False
        #: the cluster version that was proposed in this term
        self._version = 0
        #: (index, time of the proposal) of entries that are not committed yet
        self._proposed: deque[tuple[int, float]] = deque()

    def add_groups(self, groups: list[bytes]) -> None:
        """Add groups of session commands, of this node or a follower. Their nodes send them again if they are lost here.

        Groups above `GATHERED_BYTES_MAX` are dropped: the calls wait at their nodes, which refuse more with `over_limit`. So is a
        group that is larger than any that `PendingCommands` makes, or of another format.
        """
        self._enter_term()
        for group in groups:
            is_fit = len(group) <= GROUP_BYTES_MAX and array_version(group) == GROUP_FORMAT.version
            if is_fit and self._gathered_bytes < GATHERED_BYTES_MAX:
                self._groups.append(group)
                self._gathered_bytes += len(group)

    def add_own(self, command: Command) -> bool:
        """Add a command of the leader itself, for this term only: it is never sent again. False: too much is gathered.

        Raises:
            Refused: `invalid` or `too_large`: the log does not accept it.
        """
        self._enter_term()
        if self._gathered_bytes >= GATHERED_BYTES_MAX:
            return False
        encoded = self._admission.encode(command)
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

    def catch_up(self) -> None:
        """Once in a term, as soon as a majority's wall clocks agree: advance applied time if it is behind by more than `AGREE_MS`.

        In its term, a leader measures the time itself. Its first batch has given every lease its full length by then. Clocks that
        are behind applied time cannot be right (they start in 1970 on some machines), so the leader looks again later.
        """
        self._enter_term()
        if self._time_is_checked:
            return
        agreement = self._clock.members.agreement
        agreed_ms = self._clock.members.agreed_ms()
        if agreement is None or agreed_ms is None or self._replica.batch_term != self._term:
            return
        voters = self._core.membership.voters
        if sum(voter in agreement.nodes for voter in voters) <= len(voters) // 2:
            return  # these clocks were compared before the last change of members
        behind_ms = agreed_ms - self._now_ms()
        if behind_ms > AGREE_MS:
            self._time_is_checked = self._propose_now(AdvanceTime(to_ms=int(agreed_ms), nodes=agreement.nodes))
        else:
            self._time_is_checked = behind_ms >= -AGREE_MS

    def raise_version(self, supported_by: Callable[[str], Supported | None]) -> Raise:
        """Raise the cluster's version if all members support a newer one. Returns the new version, or what prevents it.

        Args:
            supported_by: what a linked member announces.
        """
        self._enter_term()
        core, replica = self._core, self._replica
        # After the first batch of its term, a leader has applied all earlier versions.
        if replica.batch_term != self._term or replica.cluster_version >= replica.supported.max:
            return Raise()
        announced = {member: supported_by(member) for member in core.membership.ids if member != core.node_id}
        if core.node_id in core.membership.ids:
            announced[core.node_id] = replica.supported
        found = next_version(replica.cluster_version, announced)
        if found.to > self._version and self._propose_now(SetClusterVersion(version=found.to)):
            self._version = found.to
        return found

    def _propose_now(self, command: Command) -> bool:
        """Propose a command that follows from the present members; False: decide again later.

        It is not gathered. While it waited, the members could change, or one could go back to an older release.
        """
        return self._knows_time() and self._append([self._admission.encode(command)], [])

    def propose(self) -> None:
        """Append all gathered commands to the log, in as few entries as the limit allows."""
        self._enter_term()
        if not self._knows_time():
            return
        while self._groups or self._own or self._must_stamp:
            own_count, size = _fill(self._own, 0)
            group_count, size = _fill(self._groups, size)
            if not self._append(self._own[:own_count], self._groups[:group_count]):
                return
            self._gathered_bytes -= size
            del self._own[:own_count]
            del self._groups[:group_count]
            self._must_stamp = False

    def _append(self, own: Sequence[bytes], groups: Sequence[bytes]) -> bool:
        """Append an entry to the log; False if that is not possible now."""
        try:
            index = self._core.propose(encode_batch(self._now_ms(), own, groups))
        except (NotLeader, Busy):
            return False
        self._proposed.append((index, time.perf_counter()))
        return True

    def committed(self, index: int) -> None:
        """Entries up to `index` are committed: record how long that took."""
        while self._proposed and self._proposed[0][0] <= index:
            metrics.COMMIT_SECONDS.observe(time.perf_counter() - self._proposed.popleft()[1])

    def _knows_time(self) -> bool:
        """False while the log may have stamps that are not applied, and before the first stamp of the cluster."""
        if self._replica.at_ms:
            return True
        core = self._core
        is_current = core.log.term(core.commit_index) == core.term and self._replica.applied_index == core.commit_index
        return is_current and self._clock.may_begin()

    def _now_ms(self) -> int:
        return self._clock.now_ms(self._core.term, self._replica.at_ms)

    def _enter_term(self) -> None:
        if self._term != self._core.term:
            self._term = self._core.term
            self._proposed.clear()
            self._groups, self._own, self._must_stamp = [], [], False
            self._time_is_checked = False
            self._version = 0
            self._gathered_bytes = 0


def _fill(parts: Sequence[bytes], size: int) -> tuple[int, int]:
    """How many of `parts` go into an entry that already has `size` bytes, and its size then."""
    count = 0
    while count < len(parts) and size < ENTRY_FILL_BYTES:
        size += len(parts[count])
        count += 1
    return count, size
