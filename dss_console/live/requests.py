"""The request of `cluster.watch`."""

from __future__ import annotations

from typing import Literal

from dss_api.fields import Fields, OptionalName


class WatchCluster(Fields):
    """What to show in addition to the cluster itself."""

    #: the details of this lock
    lock: OptionalName = ""
    #: the details of this topic
    topic: OptionalName = ""
    #: the details of this cache key: its line on every node
    key: OptionalName = ""
    #: the panel that gets up to 100 rows
    rows: Literal["", "locks", "queues", "cache"] = ""
    #: only the verdict and the nodes, for the head of a page
    head: bool = False
