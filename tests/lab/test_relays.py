"""Links between nodes go through relays, which can be cut and healed without loss."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dss_dev.lab.relays import NODES_MAX, Relays, links_of
from dss_dev.local_cluster import HOST, LocalNode

WAIT_S = 60.0


def free_base() -> int:
    return random.randrange(11_000, 19_000, 10)


class World:
    """Relays of two nodes, and an echo in place of the second one."""

    def __init__(self, relays: Relays, first_port: int, directory: Path) -> None:
        self.relays = relays
        self.first_port = first_port
        self.connected = 0

    async def echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected += 1
        while data := await reader.read(1024):
            writer.write(data)
        writer.close()

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As node-1 dials node-2."""
        link = next(link for link in links_of(self.first_port, [1, 2]) if (link.dialler, link.target) == (1, 2))
        return await asyncio.open_connection(HOST, link.port)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    for _ in range(20):
        first_port = free_base()
        nodes = [LocalNode(f"node-{number}", first_port + number - 1, {}, tmp_path / "log") for number in (1, 2)]
        try:
            found = World(Relays(first_port, nodes), first_port, tmp_path)
            server = await asyncio.start_server(found.echo, HOST, first_port + 1 + 1000)
            break
        except OSError:
            continue
    await found.relays.start()
    yield found
    await found.relays.stop()
    server.close()


def test_no_two_nodes_dial_at_the_same_port() -> None:
    numbers = range(1, NODES_MAX + 1)
    links = links_of(8101, list(numbers))
    used = [link.port for link in links]
    own = {8100 + number + offset for number in numbers for offset in (0, 1000)}
    assert len(set(used)) == len(used) == NODES_MAX * (NODES_MAX - 1)
    assert not own.intersection(used)
    assert max(used) < 32_768, "below the ports of outgoing connections"


async def test_a_cut_link_is_silent_and_loses_nothing(world: World) -> None:
    reader, writer = await world.dial()
    writer.write(b"before ")
    assert await asyncio.wait_for(reader.readexactly(7), WAIT_S) == b"before "
    world.relays.cut("node-2")
    writer.write(b"during ")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.3)
    world.relays.heal("node-2")
    writer.write(b"after")
    assert await asyncio.wait_for(reader.readexactly(12), WAIT_S) == b"during after"
    writer.close()


async def test_a_connection_that_is_made_during_the_cut_waits_for_its_end(world: World) -> None:
    world.relays.cut("node-1")
    reader, writer = await world.dial()
    writer.write(b"hello")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.3)
    assert world.connected == 0
    world.relays.heal("node-1")
    assert await asyncio.wait_for(reader.readexactly(5), WAIT_S) == b"hello"
    writer.close()


async def test_connections_that_are_given_up_during_a_cut_do_not_pile_up(world: World) -> None:
    world.relays.cut("node-2")
    for _ in range(5):
        _, writer = await world.dial()
        writer.write(b"hello")
        await writer.drain()
        writer.close()
    _, stays = await world.dial()
    for _ in range(int(WAIT_S / 0.05)):
        if len(world.relays.carrying) == 1:
            break
        await asyncio.sleep(0.05)
    assert (len(world.relays.carrying), world.connected) == (1, 0)
    stays.close()


async def test_the_end_of_a_connection_is_passed_on(world: World) -> None:
    reader, writer = await world.dial()
    writer.write(b"x")
    await asyncio.wait_for(reader.readexactly(1), WAIT_S)
    writer.close()
    assert await asyncio.wait_for(reader.read(), WAIT_S) == b""


def test_a_port_in_use_is_said_and_nothing_stays_open(world: World, tmp_path: Path) -> None:
    nodes = [LocalNode("node-1", world.first_port, {}, tmp_path / "log")]
    with pytest.raises(OSError, match="is in use"):
        Relays(world.first_port, nodes)
