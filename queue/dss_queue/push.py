"""Subscriptions: messages are pushed as they arrive. One holds up to `credit` unfinished messages and requests more when it has room.

It uses the same consume command as clients. So a waiting subscription costs as much as a waiting consume: a waiter in the replicated
group, and nothing on this node. An ack or nack at this node makes room immediately. One at another node, or a visibility timeout, is
noticed at this node's next tick, and only by subscriptions that are full.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

from dss_api.errors import Refused
from dss_api.fields import WAIT_MS_MAX
from dss_api.operation import Subscription
from dss_api.result import Result
from dss_queue.answers import Delivered
from dss_queue.config import config_of
from dss_queue.core.broker import Broker
from dss_queue.core.commands import Consume, Nack, Subscribe
from dss_queue.core.records import message_number, receipt_of
from dss_queue.delivering import count_delivered, delivered
from dss_queue.metrics import of_topic

if TYPE_CHECKING:
    from dss_api.operation import Feed
    from dss_raft.node import Node

SERVICE = "queue-subscribers"
#: Refusals of a consume while the cluster has no leader. The subscription continues.
TEMPORARY = frozenset(("no_leader", "no_quorum", "unknown_outcome"))
#: After such a refusal. Most come after a deadline, but a subscription must not try again without end and without a pause.
PAUSE_S = 0.1


class Subscribers:
    """The subscriptions of one node. Created before the node starts."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._broker = cast(Broker, node.machine("queue"))
        self._by_group: dict[tuple[str, str], dict[Subscriber, None]] = {}
        self._full: dict[Subscriber, None] = {}
        node.on_tick(self._check_full)
        node.services[SERVICE] = self

    @contextmanager
    def open(self, request: Subscribe) -> Iterator[Subscriber]:
        """A subscriber for the duration of the context."""
        name = (request.topic, request.group)
        subscriber = Subscriber(self, request)
        self._by_group.setdefault(name, {})[subscriber] = None
        try:
            yield subscriber
        finally:
            self._full.pop(subscriber, None)
            of_group = self._by_group[name]
            del of_group[subscriber]
            if not of_group:
                del self._by_group[name]

    def settled(self, topic: str, group: str, msg_ids: Iterable[str]) -> None:
        """Deliveries may have ended through a call at this node."""
        for subscriber in self._by_group.get((topic, group), ()):
            subscriber.drop_settled(msg_ids)

    def is_held(self, topic: str, group: str, msg_id: str, receipt: str) -> bool:
        """True while the delivery of this receipt is in flight."""
        of_topic = self._broker.topics.get(topic)
        of_group = of_topic.groups.get(group) if of_topic is not None else None
        delivery = of_group.in_flight.get(message_number(msg_id)) if of_group is not None else None
        return delivery is not None and receipt == receipt_of(msg_id, delivery.serial)

    def became_full(self, subscriber: Subscriber, is_full: bool) -> None:
        if is_full:
            self._full[subscriber] = None
        else:
            self._full.pop(subscriber, None)

    def _check_full(self) -> None:
        for subscriber in list(self._full):
            subscriber.drop_settled(list(subscriber.held))


class Subscriber:
    """The unfinished messages of one subscription."""

    def __init__(self, subscribers: Subscribers, request: Subscribe) -> None:
        self._subscribers = subscribers
        self._request = request
        #: msg_id -> receipt
        self.held: dict[str, str] = {}
        self._has_room = asyncio.Event()
        self._has_room.set()

    async def room(self) -> int:
        """Wait for room. Returns how many more messages it may hold, at least one."""
        await self._has_room.wait()
        return self._request.credit - len(self.held)

    def take(self, messages: list[dict[str, Any]]) -> None:
        self.held.update((message["msg_id"], message["receipt"]) for message in messages)
        if len(self.held) >= self._request.credit:
            self._has_room.clear()
            self._subscribers.became_full(self, True)

    def drop_settled(self, msg_ids: Iterable[str]) -> None:
        """Forget those of these messages that it no longer holds."""
        held, request = self.held, self._request
        for msg_id in msg_ids:
            receipt = held.get(msg_id)
            if receipt is not None and not self._subscribers.is_held(request.topic, request.group, msg_id, receipt):
                del held[msg_id]
        if len(held) < request.credit and not self._has_room.is_set():
            self._has_room.set()
            self._subscribers.became_full(self, False)


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
    with subscribers.open(request) as subscriber:
        try:
            while True:
                command = Consume(
                    topic=request.topic,
                    group=request.group,
                    timeout_ms=WAIT_MS_MAX,
                    visibility_ms=visibility_ms,
                    max_messages=await subscriber.room(),
                )
                try:
                    result = await node.submit(command, wait_ms=WAIT_MS_MAX)
                except Refused as refusal:
                    if refusal.code not in TEMPORARY:
                        raise
                    await asyncio.sleep(PAUSE_S)
                    continue
                if result.code:
                    return result
                messages = result.body["messages"]
                subscriber.take(messages)
                if messages:
                    count_delivered(counters, messages)
                for message in messages:
                    feed.push(delivered(message))
        finally:
            await give_back(node, request.topic, request.group, subscriber.held)


async def give_back(node: Node, topic: str, group: str, held: dict[str, str]) -> None:
    """Return deliveries to the group; they do not count as attempts. Without a majority, they come back after their visibility timeout."""
    if held:
        calls = (
            node.submit(Nack(topic=topic, group=group, msg_id=msg_id, receipt=receipt, delay_ms=0, silent=True))
            for msg_id, receipt in held.items()
        )
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            with suppress(Refused):
                if isinstance(outcome, BaseException):
                    raise outcome


SUBSCRIPTIONS: tuple[Subscription, ...] = (
    Subscription(
        name="queue.subscribe",
        request=Subscribe,
        handle=subscribe,
        event=Delivered,
        summary="Receive messages as they arrive",
        description=(
            "Each message is an event with the fields of a consumed message. At most `credit` of them are unfinished at a time. An "
            "ack or nack, on this connection or any other, makes room for the next message, and so does a visibility timeout. When "
            "the connection closes or the node stops, unfinished messages go back to the group immediately; this does not count as "
            "an attempt."
        ),
        tag="Queue",
        example={"topic": "orders", "group": "billing", "credit": 10},
    ),
)
