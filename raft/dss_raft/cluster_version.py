"""The cluster's version as seen by one node: raised by the leader as soon as all members allow it, and reported. See `versions`."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from dss_raft import metrics
from dss_raft.core import RaftCore, Role
from dss_raft.replication.commands import Command, SetClusterVersion
from dss_raft.replication.replica import Replica
from dss_raft.versions import Raise, Supported, next_version

log = structlog.get_logger("raft")

#: Why the version is not raised is logged when it has been so for this many ticks: at a start, members link one by one.
REPORT_AFTER_TICKS = 250


class ClusterVersion:
    """Watches the version of one node. Call `tick` every tick.

    Args:
        supported_by: what a member announces; None while it is not linked.
        propose: appends a command to the leader's log; False if it cannot now.
    """

    def __init__(
        self,
        core: RaftCore,
        replica: Replica,
        supported_by: Callable[[str], Supported | None],
        propose: Callable[[Command], bool],
    ) -> None:
        self._core = core
        self._replica = replica
        self._supported_by = supported_by
        self._propose = propose
        self._seen = 0
        #: (term, version) of the last proposal: it is not lost within its term
        self._proposed = (0, 0)
        self._obstacle = Raise()
        self._obstacle_ticks = 0

    def tick(self) -> None:
        """A tick has passed."""
        core, replica = self._core, self._replica
        if self._seen != replica.cluster_version:
            self._seen = replica.cluster_version
            metrics.CLUSTER_VERSION.set(self._seen)
            log.info("raft.cluster_version", version=self._seen, supported=str(replica.supported))
        # A leader that has applied a batch of its own term has applied all earlier versions.
        if core.role is Role.LEADER and replica.batch_term == core.term and replica.cluster_version < replica.supported.max:
            self._look()
        else:
            self._obstacle = Raise()

    def _look(self) -> None:
        found = next_version(self._replica.cluster_version, self._announced())
        if not found.to:
            self._report(found)
        elif self._proposed != (self._core.term, found.to) and self._propose(SetClusterVersion(version=found.to)):
            self._proposed = (self._core.term, found.to)

    def _announced(self) -> dict[str, Supported | None]:
        """What each member of the latest configuration supports."""
        own_id = self._core.node_id
        return {
            member: self._replica.supported if member == own_id else self._supported_by(member)
            for member in self._core.membership.ids
        }

    def _report(self, found: Raise) -> None:
        if found != self._obstacle:
            self._obstacle, self._obstacle_ticks = found, 0
        self._obstacle_ticks += 1
        if self._obstacle_ticks == REPORT_AFTER_TICKS:
            log.info(
                "raft.cluster_version_waits",
                version=self._replica.cluster_version,
                supported=self._replica.supported.max,
                not_linked=list(found.missing),
                older=found.old,
            )
