"""The cache's WebSocket subscription: `cache.near`, for programs that keep values in their own process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dss_api.answer import Answer
from dss_api.operation import Feed, Message, Subscription
from dss_api.rights import AnyIn
from dss_cache.core.commands import NearConfirm, NearFetch, NearRenew, NearRequest
from dss_cache.near_answers import NearEvent
from dss_cache.service import service_of

if TYPE_CHECKING:
    from dss_raft.node import Node


async def near(node: Node, request: NearRequest, feed: Feed) -> Answer:
    """Serve a near cache until its client cancels, or is dropped."""
    raise await service_of(node).near_server.serve(request, feed)


SUBSCRIPTIONS: tuple[Subscription, ...] = (
    Subscription(
        name="cache.near",
        request=NearRequest,
        handle=near,
        event=NearEvent,
        needs=AnyIn("cache", "read"),
        summary="Keep values in the client, never stale",
        description=(
            "The client reads with `cache.near.fetch` and may keep what is answered with `install: true`. It may answer from that only "
            "while it holds a lease, which it asks for with `cache.near.renew` and counts from then. `drop` and `flush` end the use of "
            "values; the client carries them out, then confirms their `seq`. A put is answered when every client has confirmed, or its "
            "lease is over. A client that does not confirm before its lease ends is dropped, and subscribes again with no values."
        ),
        tag="Cache",
        example={"lease_ms": 300},
        problems=("not_supported_yet", "over_limit", "request_timeout"),
        messages=(
            Message(
                name="cache.near.fetch",
                request=NearFetch,
                summary="Read keys; the answer is an event with the `token`",
                example={"call": 1, "token": 1, "keys": ["user/7"]},
            ),
            Message(
                name="cache.near.renew",
                request=NearRenew,
                summary="Ask for a lease, and confirm everything up to `seq`",
                example={"call": 1, "token": 2, "seq": 0},
            ),
            Message(
                name="cache.near.confirm",
                request=NearConfirm,
                summary="Everything up to `seq` is carried out",
                example={"call": 1, "seq": 1},
            ),
        ),
    ),
)
