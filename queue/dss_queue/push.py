"""Subscriptions: messages are pushed as they arrive.

A subscription uses the same consume command as clients. So a waiting subscription costs as much as a waiting consume: a waiter in the
replicated group, and nothing on this node. `subscribers.py` knows what it holds and whether its client is there.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from dss_api.errors import Refused
from dss_api.fields import WAIT_MS_MAX
from dss_api.operation import Subscription
from dss_api.result import Result
from dss_api.rights import queue
from dss_queue import engine_endings
from dss_queue.answers import Delivered
from dss_queue.config import config_of
from dss_queue.core.commands import Consume, GiveBack, Subscribe
from dss_queue.delivering import count_structs, delivered
from dss_queue.metrics import of_topic
from dss_queue.routing import ON_ENGINE, routing_of, uses_engine
from dss_queue.subscribers import SERVICE, Subscribers

if TYPE_CHECKING:
    from dss_api.operation import Feed
    from dss_queue.redis_engine.engine import Answer
    from dss_raft.node import Node

#: The longest pause after a refused consume, for refusals that do not end the subscription: while the cluster has no leader, or the engine
#: is away. Most refusals come after a deadline, but without a pause a subscription could try again in a tight loop.
PAUSES_S = {"no_leader": 0.1, "no_quorum": 0.1, "unknown_outcome": 0.1, "engine_away": 1.0}
#: While the queue is full, no consume waits. The subscription asks again after this time at most.
FULL_PAUSE_S = 1.0


def settled(node: Node, topic: str, group: str, msg_ids: Iterable[str]) -> None:
    """Tell this node's subscriptions that deliveries may have ended."""
    subscribers = node.services.get(SERVICE)
    if subscribers is not None:
        subscribers.settled(topic, group, msg_ids)


async def subscribe(node: Node, request: Subscribe, feed: Feed) -> Result:
    """Push messages until the client disconnects. Its unfinished messages are then given back immediately."""
    visibility_ms = request.visibility_ms or config_of(node).queue_visibility_timeout_ms
    counters = of_topic(request.topic)
    subscribers = cast(Subscribers, node.services[SERVICE])
    # Only the first pull creates the topic or the group. If they are deleted later, the subscription ends with `not_found`.
    group_exists = False
    loop = asyncio.get_running_loop()
    with subscribers.open(request, visibility_ms, feed.liveness) as subscriber:
        try:
            while True:
                command = Consume(
                    topic=request.topic,
                    group=request.group,
                    timeout_ms=WAIT_MS_MAX,
                    visibility_ms=visibility_ms,
                    max_messages=await subscriber.room(),
                    create=not group_exists,
                )
                began_s = loop.time()
                try:
                    result = await subscriber.pull(_consume(node, command))
                except Refused as refusal:
                    if refusal.code not in PAUSES_S:
                        raise
                    # A consume that has waited where it could is followed by the next one immediately.
                    if loop.time() - began_s < command.timeout_ms / 1000:
                        await _pause(PAUSES_S[refusal.code])
                    continue
                if result is None:
                    continue
                if isinstance(result, Result):
                    if result.code == ON_ENGINE:
                        continue
                    if result.code == "over_limit" and group_exists:
                        await _pause(FULL_PAUSE_S)
                        continue
                    if result.code:
                        return result
                    messages = [delivered(message) for message in result.body["messages"]]
                else:
                    messages = result.messages
                group_exists = True
                if not await subscriber.is_there(messages):
                    await give_back(node, request.topic, request.group, {one.msg_id: one.receipt for one in messages})
                    continue
                subscriber.take(messages)
                if messages:
                    count_structs(counters, messages)
                for message in messages:
                    feed.push(message)
        finally:
            await give_back(
                node, request.topic, request.group, {msg_id: held.receipt for msg_id, held in subscriber.held.items()}
            )


async def _pause(seconds_max: float) -> None:
    """Subscriptions that were refused together do not come back at the same moment."""
    await asyncio.sleep(random.uniform(0.5, 1.0) * seconds_max)


def _consume(node: Node, command: Consume) -> Coroutine[Any, Any, Result | Answer]:
    if uses_engine(node, command.topic):
        return routing_of(node).take(command)
    return node.submit(command, wait_ms=command.timeout_ms)


async def give_back(node: Node, topic: str, group: str, receipts: dict[str, str]) -> None:
    """Return deliveries to the group; they do not count as attempts. Without a majority, or without the engine that has them, they come
    back after their visibility timeout.

    Args:
        receipts: by msg_id.
    """
    of_engine = {msg_id: receipt for msg_id, receipt in receipts.items() if msg_id.startswith(engine_endings.MARK)}
    if of_engine:
        with suppress(Refused):
            await engine_endings.give_back(routing_of(node), topic, group, of_engine)
        receipts = {msg_id: receipt for msg_id, receipt in receipts.items() if msg_id not in of_engine}
    if receipts:
        with suppress(Refused):
            await node.submit(GiveBack(topic=topic, group=group, msg_ids=list(receipts), receipts=list(receipts.values())))


SUBSCRIPTIONS: tuple[Subscription, ...] = (
    Subscription(
        name="queue.subscribe",
        request=Subscribe,
        handle=subscribe,
        event=Delivered,
        needs=queue("consume", "topic"),
        summary="Receive messages as they arrive",
        description=(
            "Each message is an event with the fields of a consumed message. At most `credit` of them are unfinished at a time. An "
            "ack or nack, on this connection or any other, makes room for the next message, and so does a visibility timeout. When "
            "the connection closes or the node stops, unfinished messages go back to the group immediately; this does not count as "
            "an attempt. A client that answers neither pings nor anything else gets no further messages until it is heard again."
        ),
        tag="Queue",
        example={"topic": "example/orders", "group": "billing", "credit": 10},
    ),
)
