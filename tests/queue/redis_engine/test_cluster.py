"""The engine on a Cluster: partitions on all primaries, slots that move in the middle of traffic, and primaries that are killed.

What a failover loses is counted, not forbidden: the README has the figures for each setting of `acks`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest
from redis.crc import key_slot

from dss_api.errors import Refused
from dss_dev.valkey_cluster import ValkeyCluster
from dss_dev.valkey_server import CHANGE_S, wait_until
from dss_queue.core.commands import NewMessage, TopicSettings
from dss_queue.redis_engine.engine import RedisEngine
from dss_queue.redis_engine.keys import partition_keys
from dss_queue.redis_engine.lane import Acks
from dss_queue.redis_engine.servers import Servers

TOPIC = "orders"
GROUP = "billing"
SETTINGS = TopicSettings(max_attempts=0)
PARTITIONS = 6
KEYS = 48


@pytest.fixture
def cluster(tmp_path):
    with ValkeyCluster(tmp_path, settings={"appendfsync": "always"}) as cluster:
        yield cluster


@pytest.fixture
async def engine(cluster):
    servers = Servers(cluster.url, deadline_s=20)
    await servers.open()
    engine = RedisEngine(servers, node="n1", partitions=PARTITIONS)
    await engine.put_group(TOPIC, GROUP)
    yield engine
    await engine.close()
    await servers.close()


def only_away(refused: Refused) -> None:
    if refused.code not in ("unknown_outcome", "engine_away"):
        raise refused


class Traffic:
    """Publishes numbered messages and consumes them, and keeps account of both."""

    def __init__(self, engine: RedisEngine, acks: Acks) -> None:
        self.engine = engine
        self.acks = acks
        self.answered: list[int] = []
        #: publishes without an answer: the message may be there
        self.unknown: list[int] = []
        self.delivered: Counter[int] = Counter()
        self.last_of_key: dict[str, int] = {}
        self.disorder: list[tuple[str, int, int]] = []
        self.next = 0
        self.is_published = asyncio.Event()
        self.is_over = False

    async def publish(self, count: int, size: int = 5) -> None:
        """Messages with keys, one batch after another."""
        while self.next < count:
            numbers = range(self.next, self.next + size)
            self.next += size
            of_key = numbers[0] // size % KEYS
            new = [NewMessage("", b"%d" % number, f"k{of_key}", of_key % PARTITIONS, 0, "", b"") for number in numbers]
            try:
                await self.engine.publish(TOPIC, new, SETTINGS, acks=self.acks)
                self.answered += numbers
            except Refused as refused:
                only_away(refused)
                self.unknown += numbers
            self.is_published.set()

    async def run(self, count: int, meanwhile: Callable[[], None]) -> None:
        """Publish and consume so many messages; `meanwhile` runs in the middle of it."""
        publishing = asyncio.gather(*(self.publish(count) for _ in range(4)))
        consuming = asyncio.create_task(self.consume())
        await self.is_published.wait()
        await asyncio.to_thread(meanwhile)
        await publishing
        self.is_over = True
        await consuming

    async def consume(self) -> None:
        """Take and ack messages until there are none and no more will come."""
        while True:
            try:
                got = await self.engine.consume(
                    TOPIC, GROUP, SETTINGS, visibility_ms=2000, max_messages=20, max_per_key=5, timeout_ms=500
                )
            except Refused as refused:
                only_away(refused)
                continue
            if not got.messages and self.is_over and got.empty_reason == "no_messages":
                return
            for one in got.messages:
                number = int(bytes(one.value))
                self.delivered[number] += 1
                if self.delivered[number] == 1:
                    if self.last_of_key.get(one.key, -1) > number:
                        self.disorder.append((one.key, self.last_of_key[one.key], number))
                    self.last_of_key[one.key] = number
            try:
                await self.engine.ack(
                    TOPIC,
                    GROUP,
                    [one.msg_id for one in got.messages],
                    [one.receipt for one in got.messages],
                    SETTINGS,
                    acks=self.acks,
                )
            except Refused as refused:
                only_away(refused)

    @property
    def lost(self) -> list[int]:
        return [number for number in self.answered if not self.delivered[number]]

    @property
    def doubled(self) -> list[int]:
        return [number for number, times in self.delivered.items() if times > 1]


async def test_partitions_are_spread_and_work_on_all_primaries(cluster, engine):
    traffic = Traffic(engine, "primary")
    await traffic.run(500, lambda: None)
    assert (traffic.lost, traffic.doubled, traffic.disorder) == ([], [], [])
    slots = {key_slot(partition_keys(TOPIC, partition)[0].encode()) for partition in range(PARTITIONS)}
    assert len({cluster.owner(slot) for slot in slots}) > 1


async def test_slots_move_in_the_middle_of_traffic(cluster, engine):
    traffic = Traffic(engine, "replica")
    slots = {key_slot(partition_keys(TOPIC, partition)[0].encode()) for partition in range(PARTITIONS)}

    def move_all() -> None:
        for slot in slots:
            source = cluster.owner(slot)
            target = next(port for port in cluster.primaries if port != source)
            cluster.open_slots(source, target, [slot])
            cluster.move_keys(source, target, [slot])
            cluster.close_slots(source, target, [slot])
        cluster.wait_ok()

    await traffic.run(5000, move_all)
    assert (traffic.unknown, traffic.lost, traffic.doubled, traffic.disorder) == ([], [], [], [])


@pytest.mark.parametrize("acks", ["primary", "replica", "fsync"])
async def test_a_primary_is_killed(cluster, engine, acks):
    traffic = Traffic(engine, acks)
    slot = key_slot(partition_keys(TOPIC, 0)[0].encode())

    def kill() -> None:
        port = cluster.owner(slot)
        # Its replica does not get the last writes: it is paused, and the link is cut before it has read them.
        (replica,) = cluster.replicas_of(port)
        begun = traffic.next
        cluster.server(replica).pause()
        cluster.server(port).client.execute_command("CLIENT", "KILL", "TYPE", "replica")
        wait_until(lambda: traffic.next > begun + 100, CHANGE_S, lambda: "nothing is published")
        cluster.kill(port)
        cluster.server(replica).resume()
        cluster.wait_ok()
        cluster.start(port)
        cluster.wait_ok()

    await traffic.run(6000, kill)
    print(f"{acks}: {len(traffic.answered)} answered, {len(traffic.lost)} of them lost, {len(traffic.doubled)} delivered twice")
    assert len(traffic.answered) > 1000
    if acks != "primary":
        # The replica that took over had everything that was answered.
        assert traffic.lost == []


async def test_the_disks_confirm_a_lone_change_before_a_replica_reports_by_itself(cluster, engine, monkeypatch):
    # A replica reports once a second what is on its disk, so one report comes too late for some of these changes.
    monkeypatch.setattr("dss_queue.redis_engine.nodes.CONFIRM_MS", 600)
    new = NewMessage(TOPIC, b"1", "", -1, 0, "", b"")
    for _ in range(12):
        (published,) = await engine.publish(TOPIC, [new], SETTINGS, acks="fsync")
        assert not published.duplicate
