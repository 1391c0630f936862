"""The cluster's version as seen by one node: raised while this node leads, and reported. See `versions`."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from dss_raft import metrics
from dss_raft.replication.replica import Replica
from dss_raft.versions import MIN, Raise

log = structlog.get_logger("raft")

#: After this many calls of `tick`, the log says why the version is not raised. Not earlier: at a start, members are linked one by one.
REPORT_AFTER_TICKS = 50


class ClusterVersion:
    """Watches the version of one node. Call `tick` about every heartbeat.

    Args:
        raise_version: proposes a newer version if all members support one; returns what prevents it.
    """

    def __init__(self, replica: Replica, raise_version: Callable[[], Raise]) -> None:
        self._replica = replica
        self._raise_version = raise_version
        self._seen = 0
        self.obstacle = Raise()
        self._obstacle_ticks = 0

    def tick(self) -> None:
        """Some time has passed."""
        replica = self._replica
        if self._seen != replica.cluster_version:
            self._seen = replica.cluster_version
            metrics.CLUSTER_VERSION.set(self._seen)
            if self._seen > MIN:  # a node that starts without a snapshot begins with the first version
                log.info("raft.cluster_version", version=self._seen, supported=str(replica.supported))
        found = self._raise_version()
        if found != self.obstacle:
            self.obstacle, self._obstacle_ticks = found, 0
        self._obstacle_ticks += 1
        if self._obstacle_ticks == REPORT_AFTER_TICKS and (found.missing or found.old):
            log.info(
                "raft.cluster_version_waits",
                version=replica.cluster_version,
                supported=replica.supported.max,
                not_linked=list(found.missing),
                older=found.old,
            )
