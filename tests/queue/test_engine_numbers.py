"""Numbers of topics on the engine `redis` for metrics and pages: current or absent, and read only while there is a reader."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from prometheus_client import REGISTRY

from dss_queue import engine_numbers, metrics
from dss_queue.core.commands import NewMessage, Publish, SetTopic
from dss_queue.core.topic_commands import PutGroup
from dss_queue.engine_numbers import CURRENT_S, WANTED_S, EngineNumbers
from dss_queue.engine_service import EngineService
from dss_queue.routing import Routing

LONG_S = 60.0


async def until(holds) -> None:
    async with asyncio.timeout(LONG_S):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class World:
    """A node with the engine, whose reads are counted, and whose clock only the test moves."""

    def __init__(self, node, url: str) -> None:
        self.node = node
        self.at_s = 1000.0
        self.service = EngineService(node, url)
        self.routing = Routing(node, self.service)
        self.numbers = EngineNumbers(node, self.routing, lambda: self.at_s)
        metrics.show_engine(self.numbers)
        metrics._collector.broker, metrics._collector.now_ms = node.broker, node.now_ms
        #: topics in the order in which they were read
        self.reads: list[str] = []
        self.at_once = self.at_once_max = 0

    def count_reads(self) -> None:
        views = self.service.views()
        read = views.topic_stats

        async def counted(name: str, now_ms: int):
            self.reads.append(name.rpartition("/")[2])
            self.at_once += 1
            self.at_once_max = max(self.at_once_max, self.at_once)
            try:
                return await read(name, now_ms)
            finally:
                self.at_once -= 1

        views.topic_stats = counted

    async def put(self, name: str) -> None:
        await self.node.submit(PutGroup(topic=name, group="g"))
        await self.node.submit(SetTopic(topic=name, engine="redis", max_attempts=1))

    async def publish(self, name: str, count: int) -> None:
        new = [NewMessage(name, b"1", "", -1, 0, "", b"") for _ in range(count)]
        await self.routing.publish(Publish(messages=new))

    async def take(self, name: str, count: int):
        topic = self.node.broker.topics[name]
        engine, found = self.service.engine(), []
        while len(found) < count:
            answer = await engine.consume(
                self.service.name_of(topic), "g", topic.messages.settings, visibility_ms=60_000, max_messages=count - len(found)
            )
            found += answer.messages
        return found

    async def reject(self, name: str, one) -> None:
        topic = self.node.broker.topics[name]
        await self.service.engine().nack(
            self.service.name_of(topic), "g", one.msg_id, one.receipt, topic.messages.settings, dead=True
        )

    async def read_again(self) -> None:
        """Until all topics have been read after now."""
        self.at_s += engine_numbers.PAUSE_S + 1
        before = len(self.reads)
        self.numbers._wake.set()
        self.numbers.want()
        await until(lambda: len(self.reads) > before and not self.at_once)
        await until(lambda: not self.numbers._wake.is_set())


def gauges(topic: str) -> list[float | None]:
    names = ("queue_depth", "queue_inflight", "queue_oldest_age_seconds")
    return [REGISTRY.get_sample_value(name, {"topic": topic}) for name in names]


def dead(reason: str = "rejected") -> float:
    return REGISTRY.get_sample_value("queue_dead_total", {"reason": reason}) or 0


@asynccontextmanager
async def opened(node, valkey):
    world = World(node, f"redis://127.0.0.1:{valkey.port}")
    await world.service.start()
    await until(lambda: world.service.state == "ready")
    world.count_reads()
    try:
        yield world
    finally:
        await world.service.stop()
        metrics._collector.on_engine = lambda topic: None


@pytest.fixture
async def world(node, valkey):
    async with opened(node, valkey) as world:
        yield world


async def test_gauges_have_the_sum_of_the_log_and_the_engine(world):
    await world.node.submit(PutGroup(topic="t", group="g"))
    await world.publish("t", 1)
    await world.put("t")
    await world.publish("t", 3)
    await world.take("t", 2)
    await world.numbers.look(wait_s=LONG_S)
    depth, in_flight, age_s = gauges("t")
    assert (depth, in_flight) == (4, 2)
    assert age_s is not None


async def test_what_is_not_known_is_not_shown(world):
    await world.put("t")
    await world.publish("t", 1)
    await world.publish("logged", 1)
    assert gauges("t") == [None] * 3, "nothing was read yet"
    assert gauges("logged")[0] == 1, "topics in the log always have theirs"
    await world.numbers.look(wait_s=LONG_S)
    assert gauges("t")[0] == 1
    world.service._become("away", "no server answers")
    assert gauges("t") == [None] * 3, "the engine is away"
    world.service._become("ready")
    world.service.since_ms += 1
    assert gauges("t") == [None] * 3, "it may have come back with other data"
    await world.numbers.look(wait_s=LONG_S)
    assert gauges("t")[0] == 1
    world.at_s += CURRENT_S + 1
    assert gauges("t") == [None] * 3, "too old"


async def test_a_read_that_fails_leaves_no_numbers(world, monkeypatch):
    await world.put("t")
    await world.put("u")
    await world.numbers.look(wait_s=LONG_S)
    assert gauges("t")[0] == gauges("u")[0] == 0
    views = world.service.views()
    read = views.topic_stats

    async def failing(name: str, now_ms: int):
        if name.endswith("/t"):
            await read(name, now_ms)
            raise TimeoutError
        return await read(name, now_ms)

    monkeypatch.setattr(views, "topic_stats", failing)
    await world.read_again()
    await until(lambda: gauges("t")[0] is None)
    assert gauges("u")[0] == 0, "the others have theirs"


async def test_nothing_is_read_without_a_reader(world, monkeypatch):
    monkeypatch.setattr(engine_numbers, "PAUSE_S", 0.01)
    # The test moves the clock during a round, too, which must not count as a long one.
    monkeypatch.setattr(engine_numbers, "PAUSE_PER_ROUND", 0)
    await world.put("t")
    await world.publish("t", 1)
    assert (world.reads, world.numbers._reading) == ([], None)
    await world.numbers.look(wait_s=LONG_S)
    assert world.reads == ["t"]
    await world.read_again()
    assert world.reads == ["t", "t"], "goes on while there is a reader"
    world.at_s += WANTED_S + 1
    await until(lambda: world.numbers._reading is None)
    assert len(world.reads) <= 3


async def test_readers_do_not_make_more_reads(world):
    await world.put("t")
    for _ in range(20):
        await world.numbers.look(["t"], wait_s=LONG_S)
    assert world.reads == ["t"]


async def test_the_topics_that_were_used_last_are_read_and_few_at_a_time(world, monkeypatch):
    monkeypatch.setattr(engine_numbers, "TOPICS_MAX", 4)
    monkeypatch.setattr(engine_numbers, "AT_ONCE_MAX", 2)
    for number in range(10):
        await world.put(f"t{number}")
    for name in ("t5", "t7", "t9"):
        await world.publish(name, 1)
    await world.numbers.look(["t8", "missing"], wait_s=LONG_S)
    assert world.reads == ["t8", "t9", "t7", "t5"]
    assert world.at_once_max == 2
    assert gauges("t9")[0] == 1
    assert gauges("t0")[0] is None


async def test_dead_letters_before_the_first_read_of_a_new_topic_count(world):
    await world.numbers.look(wait_s=LONG_S)
    before = dead()
    await world.put("t")
    await world.publish("t", 1)
    await world.reject("t", *await world.take("t", 1))
    await world.numbers.look(wait_s=LONG_S)
    assert dead() == before + 1


async def test_the_leader_counts_dead_letters_once(world):
    await world.put("old")
    await world.publish("old", 3)
    first, second, third = await world.take("old", 3)
    await world.reject("old", first)
    before = dead()
    await world.numbers.look(wait_s=LONG_S)
    assert dead() == before, "it may have been counted by the leader before"
    await world.reject("old", second)
    await world.put("new")
    await world.publish("new", 1)
    await world.reject("new", *await world.take("new", 1))
    await world.read_again()
    await until(lambda: dead() == before + 2)
    await world.read_again()
    assert dead() == before + 2
    world.node.is_leader = False
    for listener in world.node.leader_listeners:
        listener("n2", 2)
    await world.reject("old", third)
    await world.read_again()
    world.node.is_leader = True
    await world.read_again()
    assert dead() == before + 2, "the other leader counted it"
