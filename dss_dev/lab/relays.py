"""The links between the nodes of `make run`, through relays that can be cut. Needs neither root nor a change of the nodes.

Each node dials its peers at ports of its own (`DSS_PEER_PORT_OFFSET`), where a relay carries the bytes to the peer. Nodes of other
terminals (`make join`) dial and are dialled as always: their links to each other are not cut.

A cut relay carries nothing and closes nothing, like an unplugged network cable: neither side gets an error. What was sent meanwhile
arrives when the cut is healed, as TCP would send it again.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from dss_dev.local_cluster import HOST, PEER_PORT_OFFSET, LocalNode

#: places for nodes above the lab's port
NODES_MAX = 9
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Link:
    """From a node to the place of another one, running or not."""

    dialler: int
    target: int
    #: where the relay listens, and where it carries the bytes to
    port: int
    peer_port: int


def links_of(first_port: int, numbers: Sequence[int]) -> list[Link]:
    """The links that nodes with these numbers (from 1) dial."""
    base = first_port - 1
    return [
        Link(dialler, target, base + target + offset_of(dialler), base + target + PEER_PORT_OFFSET)
        for dialler in numbers
        for target in range(1, NODES_MAX + 1)
        if target != dialler
    ]


def offset_of(number: int) -> int:
    """`DSS_PEER_PORT_OFFSET` of a node: the thousand above the ports where nodes listen, and those of the nodes before it."""
    return PEER_PORT_OFFSET * (number + 1)


def listen(port: int) -> socket.socket:
    """Raises:
    OSError: the port is in use.
    """
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(64)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"port {port} is in use") from None
    return listener


class Relays:
    """The relays of all links that the nodes of this process dial.

    Args:
        first_port: the service port of node-1.

    Raises:
        OSError: a port is in use.
    """

    def __init__(self, first_port: int, nodes: Sequence[LocalNode]) -> None:
        self._base = first_port - 1
        self._numbers = {node.id: node.port - self._base for node in nodes}
        self._listeners: list[tuple[Link, socket.socket]] = []
        #: set while the link carries bytes
        self._open: dict[tuple[int, int], asyncio.Event] = {}
        self._servers: list[asyncio.Server] = []
        #: one for each connection that a node has made
        self.carrying: set[asyncio.Task[None]] = set()
        #: nodes that are cut off from all others
        self.cut_off: set[str] = set()
        try:
            for link in links_of(first_port, list(self._numbers.values())):
                self._listeners.append((link, listen(link.port)))
        except OSError:
            self.close()
            raise
        for node in nodes:
            node.environment["DSS_PEER_PORT"] = str(node.port + PEER_PORT_OFFSET)
            node.environment["DSS_PEER_PORT_OFFSET"] = str(offset_of(self._numbers[node.id]))

    async def start(self) -> None:
        for link, listener in self._listeners:
            self._open[link.dialler, link.target] = asyncio.Event()
            self._servers.append(await asyncio.start_server(self._carrier(link), sock=listener))
        self._apply()

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        for task in self.carrying:
            task.cancel()
        await asyncio.gather(*self.carrying, return_exceptions=True)

    def close(self) -> None:
        for _, listener in self._listeners:
            listener.close()

    def cut(self, node_id: str) -> None:
        """Nothing gets to the node or away from it. Call it in the loop, as `heal`."""
        self.cut_off.add(node_id)
        self._apply()

    def heal(self, node_id: str) -> None:
        self.cut_off.discard(node_id)
        self._apply()

    def _apply(self) -> None:
        cut = {self._numbers[node_id] for node_id in self.cut_off}
        for (dialler, target), is_open in self._open.items():
            if dialler in cut or target in cut:
                is_open.clear()
            else:
                is_open.set()

    def _carrier(self, link: Link):  # type: ignore[no-untyped-def]
        is_open = self._open[link.dialler, link.target]

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self.carrying.add(task)
            try:
                with suppress(OSError):
                    ahead = await _until_open(reader, is_open)
                    if ahead is None:
                        return
                    away, back = await asyncio.open_connection(HOST, link.peer_port)
                    back.write(ahead)
                    try:
                        await _both(_pump(reader, back, is_open), _pump(away, writer, is_open))
                    finally:
                        back.close()
            except asyncio.CancelledError:
                pass  # the lab stops; asyncio would report it as an error of the server
            finally:
                writer.close()
                self.carrying.discard(task)

        return carry


async def _until_open(reader: asyncio.StreamReader, is_open: asyncio.Event) -> bytes | None:
    """What has arrived when the link is open. None: the dialler has gone, as nodes do that get no answer. They dial again every
    few seconds, so connections that wait would pile up during a long cut.
    """
    ahead = b""
    opening = asyncio.create_task(is_open.wait())
    try:
        while not is_open.is_set() and len(ahead) < _CHUNK:
            reading = asyncio.create_task(reader.read(_CHUNK))
            try:
                await asyncio.wait((opening, reading), return_when=asyncio.FIRST_COMPLETED)
            finally:
                reading.cancel()  # has no effect when it is done
            await asyncio.wait((reading,))
            if not reading.cancelled():
                data = reading.result()
                if not data:
                    return None
                ahead += data
        await opening
    finally:
        opening.cancel()
    return ahead


async def _both(*pumps) -> None:  # type: ignore[no-untyped-def]
    """Until one direction has ended: peers do not use half-closed connections."""
    tasks = [asyncio.create_task(pump) for pump in pumps]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_open: asyncio.Event) -> None:
    while data := await reader.read(_CHUNK):
        await is_open.wait()
        writer.write(data)
        await writer.drain()
    # The end of a connection does not get through a cut either.
    await is_open.wait()
