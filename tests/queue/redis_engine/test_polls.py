"""Which partitions consumes wait for while servers are away, and which looks they make, against servers that are told how they are."""

from __future__ import annotations

import asyncio

import pytest

from dss_queue.redis_engine import polls as polls_module
from dss_queue.redis_engine.errors import EngineAway
from dss_queue.redis_engine.keys import channel
from dss_queue.redis_engine.messages import CLOSED, Consumed
from dss_queue.redis_engine.polls import Polls

PARTITIONS = 4
LONG_S = 600.0


class World:
    """Two servers with two partitions each; and what they have for a group."""

    def __init__(self) -> None:
        #: servers that refuse
        self.away: set[str] = set()
        #: those of them that are known to
        self.known: set[str] = set()
        self.health = self
        self.looks: list[int] = []
        self.ready: set[int] = set()
        self.empty_reason = "no_messages"
        self.polls = Polls("t", "g", PARTITIONS, self)  # type: ignore[arg-type]

    @property
    def has_troubles(self) -> bool:
        return bool(self.known)

    def can_use(self, key: str) -> bool:
        return self.address_of(key) not in self.known

    def address_of(self, key: str) -> str:
        return "ab"[[channel("t", one) for one in range(PARTITIONS)].index(key) // 2]

    async def look(self, partition: int) -> Consumed:
        self.looks.append(partition)
        if "ab"[partition // 2] in self.away:
            raise EngineAway("it does not answer")
        if partition in self.ready:
            self.ready.remove(partition)
            return Consumed([partition], "", None, False)  # type: ignore[list-item]
        return Consumed([], self.empty_reason, None, False)

    async def consume(self, wait_s: float = LONG_S) -> Consumed:
        until = asyncio.get_running_loop().time() + wait_s
        found = await self.polls.look_at_all(self.look, 0, waits=True)
        return found if found.messages else await self.polls.wait(self.look, until, found.empty_reason)

    async def waiting(self) -> asyncio.Task[Consumed]:
        count = self.polls.waiting
        consume = asyncio.create_task(self.consume())
        while self.polls.waiting == count and not consume.done():  # noqa: ASYNC110  (nothing else tells)
            await asyncio.sleep(0)
        return consume

    def publish(self, partition: int) -> None:
        self.ready.add(partition)
        self.polls._sign(partition)

    def know(self, *known: str) -> None:
        self.known = {*known}
        self.polls.servers_were_asked()


@pytest.fixture
def world() -> World:
    return World()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_wait_does_not_ask_a_server_that_is_away_again(world):
    world.away = world.known = {"a"}
    consume = await world.waiting()
    await settle()
    assert world.looks == [0, 1, 2, 3]
    # Still away.
    world.know("a")
    await settle()
    assert world.looks == [0, 1, 2, 3]
    world.publish(2)
    assert (await consume).messages == [2]


async def test_a_wait_that_could_not_look_everywhere_does_not_say_that_there_is_nothing(world):
    world.away = world.known = {"a"}
    with pytest.raises(EngineAway, match="does not answer"):
        await world.consume(0.01)
    with pytest.raises(EngineAway):
        await world.polls.look_at_all(world.look)
    world.away = world.known = set()
    assert (await world.consume(0.01)).empty_reason == "no_messages"


async def test_a_server_that_comes_back_is_looked_at(world):
    world.away = world.known = {"a"}
    world.ready = {1}
    consume = await world.waiting()
    world.away = set()
    world.know()
    assert (await consume).messages == [1]


async def test_a_wait_notices_that_a_server_is_away(world):
    """A server that hangs says nothing by itself."""
    consume = await world.waiting()
    world.away = {"b"}
    world.know("b")
    await settle()
    assert world.looks == [0, 1, 2, 3, 2, 3]
    world.away = {"a", "b"}
    world.know("a", "b")
    with pytest.raises(EngineAway):
        await consume


async def test_all_that_wait_are_refused_when_all_servers_are_away(world):
    consumes = [await world.waiting() for _ in range(3)]
    world.away = {"a", "b"}
    world.know("a", "b")
    assert [type(one) for one in await asyncio.gather(*consumes, return_exceptions=True)] == [EngineAway] * 3


async def test_one_partition_of_a_server_that_hangs_is_waited_for(world, monkeypatch):
    """It is not known yet: each look takes until its deadline."""
    monkeypatch.setattr(polls_module, "QUICK_S", -1.0)
    world.away = {"a"}
    consume = await world.waiting()
    assert world.looks == [0, 2, 3]
    world.publish(3)
    assert (await consume).messages == [3]
    # A consume that does not wait ends there.
    world.looks.clear()
    with pytest.raises(EngineAway):
        await world.polls.look_at_all(world.look, 0)
    assert world.looks == [0]


async def test_a_partition_that_cannot_be_looked_at_is_not_closed(world):
    """A topic has left the engine when all partitions say so."""
    world.empty_reason = CLOSED
    assert (await world.polls.look_at_all(world.look)).empty_reason == CLOSED
    world.away = world.known = {"a"}
    consume = await world.waiting()
    assert not consume.done()
    world.away = set()
    world.know()
    assert (await consume).empty_reason == CLOSED
