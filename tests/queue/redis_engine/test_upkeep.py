"""What the leader does for topics on the engine: sweeps, ends of moves, and keys that nothing refers to any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from itertools import count

import pytest

from dss_api.request_id import RequestId
from dss_queue import engine_upkeep
from dss_queue.core.commands import NewMessage, Publish, PublishRequest, SetTopic
from dss_queue.core.topic_commands import DeleteGroup, DeleteTopic, PutGroup
from dss_queue.engine_service import EngineService
from dss_queue.engine_upkeep import EngineUpkeep
from dss_queue.operations import publish
from dss_queue.redis_engine.errors import Closed, EngineAway
from dss_queue.routing import Routing

_numbers = count()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class World:
    """A node with the engine, on which the topic `t` is."""

    def __init__(self, node, valkey) -> None:
        self.node = node
        self.valkey = valkey
        node.config.cluster_id = f"upkeep{next(_numbers)}"
        node.propose_as_leader = self._propose
        self.proposed: list[str] = []
        self.service = EngineService(node, f"redis://127.0.0.1:{valkey.port}")
        self.upkeep = EngineUpkeep(node, self.service)

    def _propose(self, command) -> bool:
        self.proposed.append(type(command).__name__)
        asyncio.get_running_loop().create_task(self.node.submit(command))
        return True

    @property
    def topic(self):
        return self.node.broker.topics["t"]

    @property
    def name(self) -> str:
        return self.service.name_of(self.topic)

    @property
    def registry(self):
        return self.node.broker.registry

    async def move(self, engine: str, **settings) -> None:
        result = await self.node.submit(SetTopic(topic="t", engine=engine, **settings))
        assert not result.code, result.body

    async def publish(self, *values: object, **fields) -> None:
        new = [NewMessage("", str(value).encode(), "", -1, 0, "", b"") for value in values]
        await self.service.engine().publish(self.name, new, self.topic.messages.settings, **fields)

    async def publish_until_closed(self) -> None:
        with suppress(Closed):
            while True:
                await self.publish("just in time")

    async def consume(self, count: int = 100, group: str = "g", **fields):
        fields = {"visibility_ms": 60_000, **fields}
        engine, settings = self.service.engine(), self.topic.messages.settings
        found = []
        while answer := (await engine.consume(self.name, group, settings, max_messages=count, **fields)).messages:
            found += answer
        return found

    async def ack(self, found, group: str = "g") -> None:
        ids, receipts = [one.msg_id for one in found], [one.receipt for one in found]
        await self.service.engine().ack(self.name, group, ids, receipts, self.topic.messages.settings)

    def keys_left(self) -> list[str]:
        return [key.decode() for key in self.valkey.client().scan_iter(f"dss:{{{self.node.config.cluster_id}/*")]

    def copy(self) -> dict[str, bytes]:
        """What a replica has now."""
        client = self.valkey.client()
        return {key: client.dump(key) for key in self.keys_left()}

    def fail_over(self, copy: dict[str, bytes]) -> None:
        """A replica takes over that lacks what was changed since the copy."""
        client = self.valkey.client()
        if left := self.keys_left():
            client.delete(*left)
        for key, value in copy.items():
            client.restore(key, 0, value)

    async def group_stats(self, group: str = "g"):
        _, groups = await self.service.views().topic_stats(self.name, 0)
        return next((one for one in groups if one.group == group), None)


@pytest.fixture
async def world(node, valkey, monkeypatch) -> AsyncIterator[World]:
    monkeypatch.setattr(engine_upkeep, "ROUND_S", 0.02)
    monkeypatch.setattr(engine_upkeep, "PAUSE_S_MIN", 0.02)
    monkeypatch.setattr(engine_upkeep, "PAUSE_S_MAX", 0.05)
    monkeypatch.setattr(engine_upkeep, "AGAIN_S", 0.05)
    world = World(node, valkey)
    await world.service.start()
    await until(lambda: world.service.state == "ready")
    await node.submit(PutGroup(topic="t", group="g"))
    await world.move("redis")
    yield world
    await world.service.stop()


async def test_what_times_out_comes_back_without_a_call(world):
    await world.publish(1)
    await world.service.engine().consume(world.name, "g", world.topic.messages.settings, visibility_ms=1)
    async with asyncio.timeout(60):
        while (await world.group_stats()).in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (await world.group_stats()).ready == 1


async def test_a_topic_that_leaves_is_back_in_the_log_when_nothing_is_left(world):
    await world.publish(1, 2)
    held = await world.consume(1)
    await world.ack(held[:1])
    await world.move("raft")
    await world.publish_until_closed()
    await world.ack(await world.consume())
    # It needs several rounds to see that it must wait.
    rounds = world.upkeep._next_s
    await until(lambda: world.upkeep._next_s > rounds + 0.2)
    assert world.topic.engine.is_leaving
    await world.ack(held[1:])
    await until(lambda: world.topic.engine is None)
    await until(lambda: not world.registry.abandoned)
    assert world.keys_left() == []


async def test_a_topic_does_not_leave_before_its_requests_are_forgotten(world, monkeypatch):
    """A repeat would be stored again in the log, which does not know the first one."""
    await world.publish("without a number")
    Routing(world.node, world.service)
    request, once = PublishRequest(topic="t", value=b"1", key="k"), RequestId("s", 1, 0, bytes(16))
    first = await publish(world.node, request, once)
    await world.ack(await world.consume())
    await world.move("raft")
    await until(lambda: world.topic.engine is None or world.topic.engine.is_closed)
    rounds = world.upkeep._next_s
    await until(lambda: world.upkeep._next_s > rounds + 0.2)
    again = await publish(world.node, request, once)
    assert (again.msg_id, await world.consume()) == (first.msg_id, [])
    monkeypatch.setattr(engine_upkeep, "REMEMBERED_S", 0.0)
    await until(lambda: world.topic.engine is None)


async def test_dead_letters_and_messages_without_groups_keep_it(world):
    await world.publish(1)
    (got,) = await world.consume()
    settings = world.topic.messages.settings
    await world.service.engine().nack(world.name, "g", got.msg_id, got.receipt, settings, dead=True)
    await world.move("raft")
    rounds = world.upkeep._next_s
    await until(lambda: world.upkeep._next_s > rounds + 0.2)
    assert world.topic.engine is not None
    assert await world.service.administration().purge_dead(world.name, "g") == 1
    await until(lambda: world.topic.engine is None and not world.registry.abandoned)
    assert world.keys_left() == []


async def test_the_log_takes_messages_without_a_call_that_closes_the_engine(world):
    """So dead letters of other topics, and tasks that move messages, do not wait for a publish."""
    await world.publish("keeps it there")
    await world.move("raft")
    new = Publish(messages=[NewMessage("t", b"1", "", -1, 0, "", b"")])
    assert (await world.node.submit(new)).code == "on_engine"
    await until(lambda: world.topic.engine.is_closed)
    assert not (await world.node.submit(new)).code
    with pytest.raises(Closed):
        await world.publish("late")


async def test_a_topic_that_was_never_used_leaves_at_once(world):
    await world.move("raft")
    await until(lambda: world.topic.engine is None and not world.registry.abandoned)
    await world.move("redis")
    await world.publish(1)
    assert len(await world.consume()) == 1


async def test_a_topic_that_comes_back_does_not_meet_its_old_keys(world):
    await world.publish("old")
    first = world.name
    await world.node.submit(DeleteTopic(topic="t"))
    await world.move("redis")
    assert world.name != first
    assert await world.consume() == []
    await until(lambda: not world.registry.abandoned)
    assert [key for key in world.keys_left() if first in key] == []


async def test_a_deleted_topic_leaves_no_key(world):
    await world.publish(*range(50))
    for group in ("g", "h"):
        await world.node.submit(PutGroup(topic="t", group=group))
        await world.consume(3, group=group)
    await world.node.submit(DeleteTopic(topic="t"))
    await until(lambda: not world.registry.abandoned)
    assert world.keys_left() == []


async def test_keys_that_a_failover_brings_back_are_deleted_again(world, monkeypatch):
    monkeypatch.setattr(engine_upkeep, "AGAIN_S", 3600)
    await world.publish(*range(50))
    await world.consume(3)
    copy = world.copy()
    await world.node.submit(DeleteTopic(topic="t"))
    await until(lambda: not world.keys_left())
    world.fail_over(copy)
    assert world.registry.abandoned
    assert world.keys_left()
    # Meanwhile, it is deleted once.
    rounds = world.upkeep._next_s
    await until(lambda: world.upkeep._next_s > rounds + 0.2)
    assert world.keys_left()
    monkeypatch.setattr(engine_upkeep, "AGAIN_S", 0)
    await until(lambda: not world.registry.abandoned)
    assert world.keys_left() == []


async def test_a_group_that_a_failover_brings_back_is_deleted_again(world):
    await world.publish(*range(50))
    await world.consume(3)
    copy = world.copy()
    await world.node.submit(DeleteGroup(topic="t", group="g"))
    async with asyncio.timeout(60):
        while await world.group_stats():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    world.fail_over(copy)
    async with asyncio.timeout(60):
        while await world.group_stats():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_groups_that_only_one_of_them_has_are_put_right(world):
    await world.publish(1)
    await world.consume(group="extra")
    await world.node.submit(PutGroup(topic="t", group="missing"))
    async with asyncio.timeout(60):
        while await world.group_stats("extra") or not await world.group_stats("missing"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await world.node.submit(DeleteGroup(topic="t", group="g"))
    async with asyncio.timeout(60):
        while await world.group_stats():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (await world.group_stats("missing")).ready == 1


async def test_only_the_leader_does_it(world):
    world.node.is_leader = False
    await world.move("raft")
    ticks = len(world.node.commands)
    await until(lambda: world.node.index > ticks + 50)
    assert world.proposed == []
    world.node.is_leader = True
    await until(lambda: world.topic.engine is None)


async def test_it_waits_while_the_engine_is_away(world):
    await world.publish(1)
    world.service._become("away", "a test")
    world.service._wants_check.clear()
    await world.node.submit(DeleteTopic(topic="t"))
    await until(lambda: not world.registry.abandoned)
    assert world.keys_left() == []


async def test_partitions_on_other_servers_are_swept_while_one_is_away(world, monkeypatch):
    for number in range(32):
        await world.publish(number)
    world.service._become("away", "a test", is_usable=True)
    world.service._become = lambda *_, **__: None
    administration = world.service.administration()
    sweep, refusals = administration._sweep_chunk, []

    async def sweep_chunk(topic, partition, *arguments):
        if partition == 0:
            refusals.append(partition)
            raise EngineAway("a test")
        return await sweep(topic, partition, *arguments)

    monkeypatch.setattr(administration, "_sweep_chunk", sweep_chunk)
    await world.consume(visibility_ms=500)
    async with asyncio.timeout(60):
        # Some may be in the partition that is away.
        while (await world.group_stats()).in_flight > 16:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert refusals


@pytest.mark.parametrize("groups", [0, 2])
async def test_an_idle_topic_costs_a_call_for_each_partition_and_look(world, groups):
    for group in range(groups):
        await world.node.submit(PutGroup(topic="t", group=f"h{group}"))
    await world.publish(1)
    await world.ack(await world.consume())
    administration, servers = world.service.administration(), world.service._servers
    world.node.is_leader = False
    calls: list[str] = []
    call = servers.call

    async def counted(step, *args, **fields):
        calls.append(step)
        return await call(step, *args, **fields)

    servers.call = counted
    swept = await administration.sweep(world.name, world.topic.messages.settings, list(world.topic.groups))
    assert calls == ["due"] * 16
    assert swept.next_in_ms > engine_upkeep.PAUSE_S_MAX * 1000


async def test_looks_at_an_idle_topic_become_rare(node, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock[0])
    service = EngineService(node, "redis://127.0.0.1:1")
    upkeep = EngineUpkeep(node, service)
    upkeep._plans[1] = (0.0, 1.0)
    pauses = []
    for _ in range(7):
        upkeep._plan(1, 10**9, did_something=False)
        pauses.append(upkeep._plans[1][0])
    assert pauses == [2, 4, 8, 16, 30, 30, 30]
    upkeep._plan(1, 5000, did_something=False)
    assert upkeep._plans[1] == (5, 30), "something is due"
    upkeep._plan(1, 10**9, did_something=True)
    assert upkeep._plans[1] == (1, 1)


def test_a_node_without_an_engine_does_nothing(local_node):
    node = local_node()
    EngineUpkeep(node, EngineService(node))
    assert node.tick_listeners == []
