"""Elections, semaphores, barriers and rate limits while processes and nodes are killed and paused, on three real nodes."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from dss_client import AsyncClient, BarrierTimeout, Client, Leader
from dss_dev.local_cluster import LocalCluster

pytestmark = pytest.mark.cluster

HOLDER = """
import sys, threading, time
from dss_client import Client, LockLost

dss = Client(sys.argv[1])
try:
    with dss.election("crash", ttl=4, value="holder") as term, dss.semaphore("crash", 1, ttl=4) as permit:
        if sys.argv[2] == "barrier":
            threading.Thread(target=dss.barrier("crash", 2, ttl=4).wait, daemon=True).start()
            time.sleep(0.5)
        print(term.token, permit.token, flush=True)
        sys.stdin.readline()
        print("lost" if term.lost.is_set() and permit.lost.is_set() else "held", flush=True)
except LockLost as error:
    print("LockLost", flush=True)
"""


class Holder:
    """A process that is elected, holds a permit and waits at a barrier."""

    def __init__(self, urls: str, *arguments: str) -> None:
        command = [sys.executable, "-c", HOLDER, urls, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.tokens = [int(word) for word in self.read().split()]

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def wake_up(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def meet_and_give_up(urls: list[str]) -> None:
    """Parties at three nodes, whose watches do not see the same at the same time. Each meeting must be complete."""
    numbers: Counter[int] = Counter()
    given_up = 0
    wait_s = 0.1
    clients = [AsyncClient(urls[first:] + urls[:first]) for first in range(len(urls))]

    async def party(client: AsyncClient, name: int) -> None:
        nonlocal given_up
        barrier = client.barrier(f"storm {name}", 3)
        for _ in range(10):
            try:
                numbers[await barrier.wait(random.uniform(wait_s / 10, wait_s))] += 1
            except BarrierTimeout:
                given_up += 1

    storms = 0
    while not numbers:
        await asyncio.gather(*(party(client, name) for client in clients for name in range(4)))
        assert numbers[0] == numbers[1] == numbers[2]
        storms += 1
        assert numbers.total() + given_up == storms * 3 * 4 * 10
        # Where the machine is too slow for three to meet in this time
        wait_s *= 2
    # What is stored does not grow.
    await clients[0].barrier("storm 0", 1).wait()
    value = await clients[0].cache.get("barrier/storm 0")
    assert len(value["met"]) + len(value["left"]) <= 4
    for client in clients:
        await client.aclose()


def test_holders_and_nodes_fail(three_nodes: LocalCluster) -> None:
    addresses = [node.url for node in three_nodes.nodes]
    urls = ",".join(addresses)
    asyncio.run(meet_and_give_up(addresses))
    with Client(urls, timeout=60) as dss, ThreadPoolExecutor(8) as threads:
        # A paused process loses its term before another one is elected, and sees it when it runs again.
        paused = Holder(urls, "")
        paused.process.send_signal(signal.SIGSTOP)
        with dss.election("crash", ttl=30, wait=60) as term, dss.semaphore("crash", 1, wait=60) as permit:
            assert term.token > paused.tokens[0]
            assert permit.token > paused.tokens[1]
            paused.wake_up()
            paused.process.send_signal(signal.SIGCONT)
            assert (paused.read(), paused.read()) == ("lost", "LockLost")
        paused.process.wait(60)

        # A process is killed.
        killed = Holder(urls, "barrier")
        killed.process.kill()
        killed.process.wait()
        with dss.election("crash", wait=60) as term, dss.semaphore("crash", 1, wait=60) as permit:
            assert term.token > killed.tokens[0]
            assert permit.token > killed.tokens[1]
        with pytest.raises(BarrierTimeout) as caught:
            dss.barrier("crash", 2).wait(wait=0.5)
        assert caught.value.present == 1

        # The leading node is killed while a client leads, others wait, and one observes.
        seen: list[Leader | None] = []
        is_over = threading.Event()

        def observe() -> None:
            with Client(urls) as other:
                for leader in other.election("failover").observe():
                    seen.append(leader)
                    if is_over.is_set():
                        return

        observing = threads.submit(observe)
        limit = dss.rate_limit("failover", 1, per=600, burst=5)
        assert all(limit.try_acquire() for _ in range(3))
        first = dss.election("failover", ttl=30, value="first")
        assert first.campaign()
        assert first.term is not None
        permit = dss.semaphore("failover", 1, ttl=30).acquire()
        second = dss.election("failover", ttl=30, value="second")
        elected = threads.submit(second.campaign)
        permits = [threads.submit(dss.semaphore("failover", 1, ttl=30, wait=60).acquire) for _ in range(2)]
        meeting = threads.submit(dss.barrier("failover", 2, ttl=30).wait)
        until(lambda: seen and seen[-1] and seen[-1].value == "first")
        until(lambda: len(first.candidates()) == 1)
        until(lambda: dss.call("locks.status", key="semaphore/failover/queue")["waiter_count"] == 1)
        until(lambda: dss.cache.get("barrier/failover") is None and not meeting.done())

        leader = three_nodes.leader()
        leader.kill()
        assert sorted([dss.barrier("failover", 2).wait(), meeting.result(60)]) == [0, 1]
        assert not first.term.lost.is_set()
        assert not permit.lost.is_set()
        assert not elected.done()
        permit.release()
        # Each of those that wait is given the permit, one after the other.
        done = [permits[0], permits[1]]
        until(lambda: any(one.done() for one in done))
        given = next(one for one in done if one.done())
        assert not all(one.done() for one in done)
        given.result().release()
        next(one for one in done if one is not given).result(60).release()
        assert [limit.try_acquire() for _ in range(3)] == [True, True, False]
        first.resign()
        assert elected.result(60)
        until(lambda: seen[-1] and seen[-1].value == "second")
        is_over.set()
        second.resign()
        observing.result(60)
        tokens = [leader.token for leader in seen if leader]
        assert tokens == sorted(set(tokens))
