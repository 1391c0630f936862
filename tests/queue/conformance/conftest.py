"""The worlds of the conformance tests: the same operations with the messages of a topic in the log, or on the engine `redis`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest

from dss_api.errors import Refused
from dss_dev.queue_world import VNODES, World, differences_of
from dss_queue.core.broker import Broker


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


@pytest.fixture(params=["raft"])
async def world(request, local_node):
    node = local_node()
    assert node.config.queue_num_vnodes == VNODES
    world = LogWorld(node, differences_of(request.function))
    await world.settings()
    yield world
    world.check_differences()
