"""The worlds of the conformance tests: the same operations with the messages of a topic in the log, or on the engine `redis`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import count

import msgspec
import pytest

from dss_api.errors import Refused
from dss_dev.queue_world import PATIENCE_S, VNODES, World, differences_of
from dss_queue.core.broker import Broker
from dss_queue.core.partitions import PARTITIONS, ring
from dss_queue.engine_service import EngineService
from dss_queue.redis_engine.keys import partition_keys
from dss_queue.routing import Routing

OpenWorld = Callable[..., Awaitable["LogWorld"]]

#: of clusters: each world has keys of its own
_numbers = count()


class LogWorld(World):
    """The messages are in the replicated log."""

    engine = "raft"

    async def pass_ms(self, duration_ms: int) -> None:
        self.at_ms += duration_ms
        self._node.tick()

    async def restart(self) -> None:
        state = msgspec.msgpack.decode(msgspec.msgpack.encode(self._node.broker.snapshot()))
        self._node.broker = Broker()
        self._node.broker.restore(state)

    @contextmanager
    def unreachable(self, key: str) -> Iterator[None]:
        self._node.refusal = Refused("unknown_outcome", "the leader does not answer")
        yield
        self._node.refusal = None

    async def stop(self) -> None: ...


class EngineWorld(LogWorld):
    """The messages are on a Valkey, whose steps have the time of the world."""

    engine = "redis"

    async def start(self, url: str, partitions: int) -> None:
        self._url = url
        self._partitions = partitions
        self._node.config.cluster_id = f"world-{next(_numbers)}"
        await self._connect()

    async def _connect(self) -> None:
        self._service = EngineService(self._node, self._url)
        Routing(self._node, self._service)
        await self._service.start()
        self._service._servers.at_us = lambda: self.at_ms * 1000
        engine = self._service._engine
        engine.partitions = engine.lifecycle._partitions = self._partitions
        async with asyncio.timeout(PATIENCE_S):
            while self._service.state != "ready":  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def stop(self) -> None:
        await self._service.stop()

    async def restart(self) -> None:
        await self.stop()
        await super().restart()
        await self._connect()

    async def pass_ms(self, duration_ms: int) -> None:
        await super().pass_ms(duration_ms)
        for topic in self._node.broker.topics.values():
            if topic.engine is not None:
                await self._service.administration().sweep(self._service.name_of(topic), topic.messages.settings)

    @contextmanager
    def unreachable(self, key: str) -> Iterator[None]:
        servers = self._service._servers
        name = self._service.name_of(self._node.broker.topics["t"])
        gone = partition_keys(name, ring(VNODES).partition_of(key))[0]
        call = servers.call_and_repeats

        async def broken(step, keys, *args, **fields):
            if keys[0] == gone:
                raise Refused("unknown_outcome", "the engine did not answer")
            return await call(step, keys, *args, **fields)

        servers.call_and_repeats = broken
        yield
        servers.call_and_repeats = call


@pytest.fixture
def open_world(request: pytest.FixtureRequest, local_node) -> OpenWorld:
    """`await open_world("redis")` opens a world with the topic `t`. The caller stops it."""

    async def open_(engine: str, differences: frozenset[str] = frozenset(), partitions: int = PARTITIONS) -> LogWorld:
        node = local_node()
        assert node.config.queue_num_vnodes == VNODES
        world = LogWorld(node, differences)
        if engine == "redis":
            world = EngineWorld(node, differences)
            await world.start(f"redis://127.0.0.1:{request.getfixturevalue('valkey').port}", partitions)
        await world.settings()
        return world

    return open_


@pytest.fixture(params=["raft", "redis"])
async def world(request: pytest.FixtureRequest, open_world: OpenWorld) -> AsyncIterator[World]:
    """The test names each difference between the engines that it meets, see `dss_dev.queue_world`."""
    world = await open_world(request.param, differences_of(request.function))
    yield world
    await world.stop()
    world.check_differences()
