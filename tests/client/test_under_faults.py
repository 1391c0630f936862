"""The client while nodes are killed and paused: every call has its effect once, and two holders of a lock never overlap.

`make chaos` runs ten rounds with each transport. A round kills one node and pauses another one, while
callers count, publish and take a lock.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from dss_client import AsyncClient, LockLost, LockTimeout
from dss_dev.local_cluster import LocalCluster

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif("DSS_CHAOS_ROUNDS" not in os.environ, reason="`make chaos` runs it; test_faults.py has each fault once"),
]

ROUNDS = int(os.environ.get("DSS_CHAOS_ROUNDS", "0"))
CALLERS = 4
SEED = 16
#: longer than an election
PAUSE_S = 2.5
#: A call is repeated until this long has passed: longer than any fault.
TIMEOUT_S = 60.0
LEASE_S = 6.0
#: calls that every caller makes between two faults
BETWEEN_FAULTS = 5


@dataclass
class Seen:
    """What the callers saw."""

    counted: list[int] = field(default_factory=list)
    published: list[list[int]] = field(default_factory=list)
    #: (fencing token, from, to), in seconds of the clock that all callers share
    held: list[tuple[int, float, float]] = field(default_factory=list)
    lost: int = 0


class Load:
    """Callers on clients that begin with different nodes."""

    def __init__(self, clients: list[AsyncClient]) -> None:
        self._clients = clients
        self._is_over = False
        self.seen = Seen()
        self.calls: Counter[str] = Counter()

    async def run(self, faults: Callable[[Load], Awaitable[None]]) -> None:
        """Callers and faults, until the faults are over. Any error of a call is raised."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(kind(client, f"{kind.__name__} {number}"))
                for kind in (self._count, self._publish, self._lock)
                for number, client in zip(range(CALLERS), itertools.cycle(self._clients), strict=False)
            ]
            try:
                await faults(self)
            finally:
                self._is_over = True
            await asyncio.wait(tasks)

    async def progress(self) -> None:
        """Wait until every caller has made calls since now."""
        before = dict(self.calls)
        async with asyncio.timeout(TIMEOUT_S):
            while any(  # noqa: ASYNC110
                self.calls[name] < calls + BETWEEN_FAULTS for name, calls in before.items()
            ):
                await asyncio.sleep(0.02)

    async def _count(self, client: AsyncClient, name: str) -> None:
        while not self._is_over:
            self.seen.counted.append(await client.cache.incr("count"))
            self.calls[name] += 1

    async def _publish(self, client: AsyncClient, name: str) -> None:
        topic, caller = client.topic("orders"), int(name.split()[1])
        for number in itertools.count():
            if self._is_over:
                return
            await topic.publish([caller, number], key=f"caller {caller}")
            self.seen.published.append([caller, number])
            self.calls[name] += 1

    async def _lock(self, client: AsyncClient, name: str) -> None:
        while not self._is_over:
            try:
                async with client.lock("resource", ttl=LEASE_S, wait=10) as held:
                    token, began = held.token, time.monotonic()
                    await asyncio.sleep(0.001)
                    if not held.lost.is_set():
                        self.seen.held.append((token, began, time.monotonic()))
            except LockLost:
                self.seen.lost += 1
            except LockTimeout:
                pass
            self.calls[name] += 1


def faults_of(cluster: LocalCluster, random_: random.Random) -> Callable[[Load], Awaitable[None]]:
    """`ROUNDS` rounds: the leader or another node is killed and started again, and a node is paused."""

    async def faults(load: Load) -> None:
        await asyncio.sleep(0.1)
        for number in range(ROUNDS):
            await load.progress()
            victim = await asyncio.to_thread(cluster.leader) if number % 2 == 0 else random_.choice(cluster.nodes)
            victim.kill()
            await asyncio.sleep(random_.uniform(0, 1))
            victim.start()
            await asyncio.to_thread(cluster.wait_ready)
            await load.progress()
            victim = random_.choice(cluster.nodes)
            victim.pause()
            await asyncio.sleep(random_.uniform(0.2, PAUSE_S))
            victim.resume()
        await load.progress()

    return faults


async def everything_in(client: AsyncClient, topic: str, group: str) -> list[Any]:
    values: list[Any] = []
    while messages := await client.topic(topic).consume(group, max_messages=1000, wait=1):
        values += [message.value for message in messages]
        await asyncio.gather(*(message.ack() for message in messages))
    return values


@pytest.mark.parametrize("transport", ["websocket", "http"])
async def test_every_call_has_its_effect_once(three_nodes: LocalCluster, transport: Any) -> None:
    random_ = random.Random(SEED)
    urls = [node.url for node in three_nodes.nodes]
    clients = [AsyncClient([*urls[first:], *urls[:first]], timeout=TIMEOUT_S, transport=transport) for first in range(3)]
    load = Load(clients)
    try:
        await load.run(faults_of(three_nodes, random_))
        seen = load.seen
        assert await clients[0].cache.get("count") == len(seen.counted)
        assert sorted(seen.counted) == list(range(1, len(seen.counted) + 1))
        stored = await everything_in(clients[1], "orders", "audit")
        assert Counter(map(tuple, stored)) == Counter(map(tuple, seen.published))
        for caller in range(CALLERS):  # order per key
            numbers = [number for who, number in stored if who == caller]
            assert numbers == sorted(numbers)
        by_token = sorted(seen.held)
        assert len(by_token) == len({token for token, _, _ in by_token})
        for (_, _, ended), (_, began, _) in itertools.pairwise(by_token):
            assert ended <= began, "two holders at the same time"
        print(
            f"{transport}, {ROUNDS} rounds: {len(seen.counted)} counted, {len(stored)} published, {len(by_token)} locks held, "
            f"{seen.lost} lost; every effect once"
        )
    finally:
        for client in clients:
            await client.aclose()
