"""How much the memory of nodes grows by a topic with many messages on the engine `redis`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any, NamedTuple

import psutil

from dss_dev.local_cluster import LocalNode, NotReady

TOPIC, GROUP = "memory", "workers"
VALUE = "v" * 198
#: calls to each node before the measurement: code and buffers that the first ones need
WARM_UP = 20


class Growth(NamedTuple):
    """The memory of a node (resident set size), bytes."""

    node: str
    #: before the first call
    fresh: int
    #: after some calls, with an empty topic
    before: int
    #: with all messages in the topic
    full: int
    #: after some of them were consumed
    consumed: int

    @property
    def most_bytes(self) -> int:
        """How much it has grown by the messages."""
        return max(self.full, self.consumed) - self.before


def grown(nodes: Sequence[LocalNode], messages: int, batch: int, consumed: int, engine: str = "redis") -> list[Growth]:
    """Publish messages of 200 bytes and consume some of them, by calls to the nodes in turn.

    Args:
        batch: messages of a call.
        consumed: how many are consumed and acked in the end.

    Raises:
        NotReady: a call failed.
    """
    connections = [node.connection(timeout_s=120.0) for node in nodes]

    def call(place: int, method: str, path: str, body: object) -> Any:
        connection = connections[place]
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json", **nodes[place].credentials})
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise NotReady(f"{path}: {response.status} {answer[:500].decode()}")
        return json.loads(answer)

    def publish(place: int) -> None:
        call(place, "POST", "/queue/publish", {"topic": TOPIC, "messages": [{"value": VALUE}] * batch})

    def consume(place: int) -> int:
        delivery = {"topic": TOPIC, "group": GROUP}
        taken = call(place, "POST", "/queue/consume", {**delivery, "max_messages": batch, "timeout_ms": 0})["messages"]
        if taken:
            ids = {name: [one[of_one] for one in taken] for name, of_one in (("msg_ids", "msg_id"), ("receipts", "receipt"))}
            if not call(place, "POST", "/queue/ack", {**delivery, **ids})["acked"]:
                raise NotReady("messages were not acked")
        return len(taken)

    def sizes() -> list[int]:
        return [psutil.Process(node.pid).memory_info().rss for node in nodes]

    turns = cycle(range(len(nodes)))
    fresh = sizes()
    call(0, "PUT", "/queue/topic", {"topic": TOPIC, "engine": engine, "max_bytes": 2**32})
    for place in islice(turns, WARM_UP * len(nodes)):
        publish(place)
        consume(place)
    while consume(next(turns)):
        pass
    before = sizes()
    for place in islice(turns, messages // batch):
        publish(place)
    full = sizes()
    stored = call(0, "GET", f"/queue/stats?topic={TOPIC}", None)["messages"]
    if stored != messages:
        raise NotReady(f"the topic has {stored} messages, not {messages}")
    left = consumed
    while left > 0:
        got = consume(next(turns))
        if not got:
            raise NotReady(f"{left} messages are missing")
        left -= got
    for connection in connections:
        connection.close()
    return [Growth(node.id, *found) for node, *found in zip(nodes, fresh, before, full, sizes(), strict=True)]


def print_growth(growth: Sequence[Growth]) -> None:
    """A line for each node."""
    print(f"{'RSS, MB':10} {'fresh':>8} {'empty topic':>12} {'full topic':>11} {'consumed':>9} {'growth':>7}")
    for one in growth:
        cells = [f"{size / 1e6:.1f}" for size in (one.fresh, one.before, one.full, one.consumed, one.most_bytes)]
        print(f"{one.node:10} {cells[0]:>8} {cells[1]:>12} {cells[2]:>11} {cells[3]:>9} {cells[4]:>7}")
