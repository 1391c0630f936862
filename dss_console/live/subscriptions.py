"""`cluster.watch`: the state of the whole cluster, as a page shows it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dss_api.answer import Answer
from dss_api.operation import Feed, Subscription
from dss_api.rights import READ
from dss_console.live.answers import ClusterEvent
from dss_console.live.requests import WatchCluster
from dss_console.live.view import live_view_of

if TYPE_CHECKING:
    from dss_raft.node import Node


async def watch(node: Node, request: WatchCluster, feed: Feed) -> Answer:
    """Send the view, then what changes, until cancelled."""
    live = live_view_of(node)
    with live.viewer(request, feed) as viewer:
        await live.gather()
        live.serve(viewer)
        await asyncio.Event().wait()
    raise AssertionError("unreachable")


SUBSCRIPTIONS: tuple[Subscription, ...] = (
    Subscription(
        name="cluster.watch",
        request=WatchCluster,
        handle=watch,
        event=ClusterEvent,
        needs=READ,
        summary="Watch the whole cluster",
        description=(
            "Sends the state of the cluster as this node sees it: the verdict, what was checked, the members, locks, queues, cache "
            "lines and recent events. The first event (`kind: state`) has everything. Then, at most twice a second, a `change` "
            "has the parts that are different, each complete. `lock`, `topic` and `key` add the details of one. While there is a "
            "subscription, this node asks the others for reports; afterwards nothing is sent between them."
        ),
        tag="Cluster",
        example={"head": True},
        problems=("over_limit",),
    ),
)
