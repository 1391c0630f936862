"""A queue while nodes are killed, paused and cut off, and while consumers die: no answered message is lost, no acked one repeated.

Messages are named `key:seq`. A producer sends its next batch, one message for each of its routing keys, when the last one is answered.
If an answer is lost, it repeats the batch with the same dedup ids. Consumers ack, nack, or die with unfinished messages. Some messages
are poison: they are never acked and become dead letters. `make chaos` uses 100,000 messages.
"""

from __future__ import annotations

import http.client
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from dss_dev.local_cluster import POLL_S, LocalCluster, LocalNode

pytestmark = pytest.mark.cluster

MESSAGES = int(os.environ.get("DSS_CHAOS_MESSAGES", "3000"))
PRODUCERS, CONSUMERS, BATCH = 4, 6, 10
TOPIC, GROUP = "chaos", "workers"
VISIBILITY_MS = 3000
MAX_ATTEMPTS = 6
#: maximum for each producer; all of them fit into one answer of peek
POISONS = 16
PAUSE_S = 1.5
SEED = 11


@dataclass
class Delivery:
    """A delivery of one message to a consumer, in seconds of the clients' clock."""

    name: str
    consumer: int
    #: the queue's count of attempts
    attempt: int
    asked_s: float
    answered_s: float
    #: "acked" (answered so), "ack lost" (no answer), "nacked", "dropped" (the consumer died), "late" (it had gone to another)
    end: str = ""
    ended_s: float = 0.0


@dataclass
class History:
    """The events that clients saw."""

    attempted: set[str] = field(default_factory=set)
    answered: set[str] = field(default_factory=set)
    deliveries: list[Delivery] = field(default_factory=list)
    dead: set[str] = field(default_factory=set)


def lost(history: History) -> set[str]:
    """Messages whose publish was answered, but which were neither delivered and acked nor are dead letters."""
    settled = {one.name for one in history.deliveries if one.end in ("acked", "ack lost")}
    return history.answered - settled - history.dead


def invented(history: History) -> set[str]:
    """Messages that were delivered but never sent."""
    return {one.name for one in history.deliveries} - history.attempted


def acked_and_delivered_again(history: History) -> list[Delivery]:
    """Deliveries by a consume that began after the message's ack was answered."""
    acked: dict[str, float] = {}
    for one in history.deliveries:
        if one.end == "acked":
            acked[one.name] = min(one.ended_s, acked.get(one.name, one.ended_s))
    return [one for one in history.deliveries if one.asked_s > acked.get(one.name, float("inf"))]


def out_of_order(history: History) -> list[tuple[str, int, int]]:
    """First deliveries that came after the first delivery of a later message of the key: (key, seq, seq before)."""
    first: dict[str, float] = {}
    for one in history.deliveries:
        if not one.name.startswith("poison"):  # it has no key, so its order is undefined
            first[one.name] = min(one.answered_s, first.get(one.name, one.answered_s))
    found, highest = [], dict[str, int]()
    for name in sorted(first, key=first.__getitem__):
        key, seq = name.rsplit(":", 1)
        before = highest.get(key, -1)
        if int(seq) < before:
            found.append((key, int(seq), before))
        highest[key] = max(before, int(seq))
    return found


def unexplained(history: History) -> list[Delivery]:
    """Repeated deliveries without a cause: every earlier delivery of the message ended with an answered ack."""
    by_name: dict[str, list[Delivery]] = {}
    for one in history.deliveries:
        by_name.setdefault(one.name, []).append(one)
    found = []
    for several in by_name.values():
        several.sort(key=lambda one: one.answered_s)
        for position, again in enumerate(several):
            # The answer of the first delivery may come after a later delivery was acked.
            earlier = [before for before in several[:position] if before.attempt <= again.attempt]
            # A consume whose answer was lost is visible only in the queue's count of attempts.
            if earlier and again.attempt == 1 and all(before.end == "acked" for before in earlier):
                found.append(again)
    return found


CHECKS: tuple[Callable[[History], Any], ...] = (lost, invented, acked_and_delivered_again, out_of_order, unexplained)


class Run:
    """Producers and consumers on a cluster, until the queue is drained."""

    def __init__(self, cluster: LocalCluster, messages: int) -> None:
        self.cluster = cluster
        self.messages = messages
        self.history = History()
        self.mutex = threading.Lock()
        self.is_drained = threading.Event()
        self.failure: BaseException | None = None
        self.threads = [threading.Thread(target=self._guarded, args=(self.produce, n), daemon=True) for n in range(PRODUCERS)]
        self.producers = self.threads[:]
        self.threads += [threading.Thread(target=self._guarded, args=(self.consume, n), daemon=True) for n in range(CONSUMERS)]

    def __enter__(self) -> Run:
        settings = {"topic": TOPIC, "max_attempts": MAX_ATTEMPTS, "backoff_ms": 0}
        assert self.cluster.nodes[0].call("PUT", "/queue/topic", settings).status == 200
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_drained.set()
        for thread in self.threads:
            thread.join()

    def _guarded(self, work: Callable[[int], None], number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            self.failure = error

    @property
    def is_over(self) -> bool:
        return self.is_drained.is_set() or self.failure is not None

    def call(self, node: LocalNode, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Status and answer; (0, None) when there is none. A node that is away gets a moment to come back."""
        try:
            reply = node.call("GET" if body is None else "POST", path, body, timeout_s=10)
            if reply.status >= 500:
                self.is_drained.wait(POLL_S)
            return reply.status, reply.json
        except (OSError, http.client.HTTPException, ValueError):
            self.is_drained.wait(POLL_S)
            return 0, None

    def produce(self, number: int) -> None:
        chance, nodes = random.Random(SEED * 100 + number), self.cluster.nodes
        batches = self.messages // PRODUCERS // BATCH
        for seq in range(batches):
            names = [f"{number}.{key}:{seq}" for key in range(BATCH)]
            body = {"topic": TOPIC, "messages": [{"value": n, "key": n.partition(":")[0], "dedup_id": n} for n in names]}
            if seq % -(-batches // POISONS) == 0:
                poison = f"poison-{number}:{seq}"
                names.append(poison)
                body["messages"].append({"value": poison, "dedup_id": poison})
            with self.mutex:
                self.history.attempted.update(names)
            while self.call(chance.choice(nodes), "/queue/publish", body)[0] != 200:
                if self.is_over:
                    return
            with self.mutex:
                self.history.answered.update(names)

    def consume(self, number: int) -> None:
        chance, turn = random.Random(SEED * 1000 + number), 0
        while not self.is_over:
            turn += 1
            node = chance.choice(self.cluster.nodes)
            asked_s = time.monotonic()
            body = {
                "topic": TOPIC, "group": GROUP, "timeout_ms": 500, "visibility_ms": VISIBILITY_MS, "max_messages": BATCH,
                "attempt_id": f"{number}.{turn}",
            }  # fmt: skip
            status, answer = self.call(node, "/queue/consume", body)
            if status == 0:
                status, answer = self.call(chance.choice(self.cluster.nodes), "/queue/consume", body)
            if status != 200:
                continue
            now = time.monotonic()
            messages = answer["messages"]
            deliveries = [Delivery(one["value"], number, one["attempt"], asked_s, now) for one in messages]
            dies = chance.random() < 0.02
            for delivery, message in zip(deliveries, messages, strict=True):
                delivery.end = "dropped" if dies else self.finish(chance, message)
                delivery.ended_s = time.monotonic()
            with self.mutex:
                self.history.deliveries += deliveries

    def finish(self, chance: random.Random, message: dict[str, Any]) -> str:
        node = chance.choice(self.cluster.nodes)
        body = {"topic": TOPIC, "group": GROUP, "msg_id": message["msg_id"], "receipt": message["receipt"]}
        if message["value"].startswith("poison") or chance.random() < 0.01:
            self.call(node, "/queue/nack", body)
            return "nacked"
        status, answer = self.call(node, "/queue/ack", body)
        if status == 200:
            return "acked" if answer["acked"] else "late"
        return "late" if status == 409 else "ack lost"

    def drain(self) -> None:
        """Wait until all producers have their answers and the group has no messages left, then collect the dead letters."""
        for thread in self.producers:
            thread.join()
        while self.failure is None:
            status, answer = self.call(self.cluster.nodes[0], f"/queue/stats?topic={TOPIC}")
            of_group = [group for group in answer["groups"] if group["group"] == GROUP] if status == 200 else []
            if [group for group in of_group if group["ready"] == group["in_flight"] == group["delayed"] == 0]:
                break
            time.sleep(0.2)
        self.is_drained.set()
        for thread in self.threads:
            thread.join()
        if self.failure is not None:
            raise self.failure
        self.history.dead = self.dead_letters()

    def dead_letters(self) -> set[str]:
        """On a busy machine, there may be more than one answer has: messages that were held for too long several times."""
        found = self.peek("limit=100")
        for name in sorted(lost(replace(self.history, dead=found))):
            found |= self.peek(f"dedup_id={name}")
        return found

    def peek(self, which: str) -> set[str]:
        """The names of dead letters."""
        while True:
            status, answer = self.call(self.cluster.nodes[0], f"/queue/peek?topic={TOPIC}&group={GROUP}&dead=true&{which}")
            if status == 200:
                return {one["value"] for one in answer["messages"]}

    def verify(self) -> None:
        history = self.history
        ends = Counter(one.end for one in history.deliveries)
        again = len(history.deliveries) - len({one.name for one in history.deliveries})
        counts = f"{len(history.answered)} answered, {len(history.deliveries)} deliveries, {again} of them repeated"
        print(f"{counts}; {dict(ends)}; {len(history.dead)} dead letters")
        for check in CHECKS:
            assert not check(history), check.__doc__
        assert {name for name in history.answered if name.startswith("poison")} <= history.dead
        assert again > 0, "nothing was delivered twice: the run proves nothing"


def let_work(run: Run, share: float) -> None:
    """Wait until this share of all messages has been delivered."""
    while len(run.history.deliveries) < share * run.messages and not run.is_over and any(t.is_alive() for t in run.producers):
        time.sleep(0.02)


def test_kill_and_pause(cluster):
    with Run(cluster, MESSAGES) as run:
        let_work(run, 0.1)
        leader = cluster.leader()
        leader.kill()
        let_work(run, 0.3)
        leader.start()
        cluster.wait_ready()
        leader = cluster.leader()
        leader.pause()
        time.sleep(PAUSE_S)
        leader.resume()
        let_work(run, 0.5)
        for node in cluster.nodes:
            node.kill()
        cluster.start()
        cluster.wait_ready()
        let_work(run, 0.7)
        cluster.followers()[0].kill()
        let_work(run, 0.8)
        for node in cluster.nodes:
            if not node.is_running:
                node.start()
        cluster.wait_ready()
        run.drain()
    run.verify()


def test_partition(partitioned_cluster):
    cluster = partitioned_cluster
    with Run(cluster, MESSAGES) as run:
        for share, isolated in ((0.1, cluster.leader), (0.4, lambda: cluster.followers()[0]), (0.7, cluster.leader)):
            let_work(run, share)
            cluster.isolate(isolated())
            time.sleep(2 * PAUSE_S)
            cluster.heal()
            cluster.wait_ready()
        run.drain()
    run.verify()


def delivery(name: str, at_s: float, end: str, attempt: int = 1) -> Delivery:
    return Delivery(name, 0, attempt, at_s, at_s + 0.1, end, at_s + 0.2)


GOOD = History({"p:0", "p:1", "x:0"}, {"p:0", "p:1", "x:0"}, [delivery("p:0", 1, "acked"), delivery("p:1", 2, "acked")], {"x:0"})


def bad(change: Callable[[History], object]) -> History:
    history = History(set(GOOD.attempted), set(GOOD.answered), list(GOOD.deliveries), set(GOOD.dead))
    change(history)
    return history


@pytest.mark.parametrize(
    ("check", "change"),
    [
        (lost, lambda history: history.dead.clear()),
        (lost, lambda history: history.deliveries.pop()),
        (invented, lambda history: history.attempted.remove("p:1")),
        (acked_and_delivered_again, lambda history: history.deliveries.append(delivery("p:0", 3, "acked", 2))),
        (out_of_order, lambda history: history.deliveries.append(delivery("p:2", 0.5, "acked"))),
        (unexplained, lambda history: history.deliveries.append(delivery("p:0", 1.05, "acked"))),
    ],
)
def test_each_check_finds_its_violation(check: Callable[[History], Any], change: Callable[[History], object]) -> None:
    assert not any(one(GOOD) for one in CHECKS)
    assert check(bad(change))


def test_an_answer_that_comes_late_is_no_violation() -> None:
    """A consume was carried out, and a partition held up its answer until the message had gone to another consumer, who acked it."""
    late = replace(GOOD.deliveries[0], asked_s=0.5, answered_s=4.0, end="late", ended_s=4.1)
    acked = replace(GOOD.deliveries[0], attempt=2)
    history = bad(lambda history: history.deliveries.append(late))
    assert unexplained(history) == [late]
    history.deliveries[0] = acked
    assert not any(check(history) for check in CHECKS)
