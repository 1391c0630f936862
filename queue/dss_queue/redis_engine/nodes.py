"""The servers of the engine: one primary, or those of a Cluster. Which of them has a partition, also after a failover or a move of slots,
and the connections to them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from functools import partial
from typing import Any, TypeVar

from redis.asyncio.connection import Connection, SSLConnection
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, RedisError

from dss_queue.core.commands import Acks
from dss_queue.redis_engine import address as addresses
from dss_queue.redis_engine import library_text, probe
from dss_queue.redis_engine.errors import EngineAway, UnfitServer
from dss_queue.redis_engine.faults import fault
from dss_queue.redis_engine.lane import Lane, NotSent, packed
from dss_queue.redis_engine.probe import Probe
from dss_queue.redis_engine.slots import SlotTable, host_port
from dss_queue.redis_engine.slots import address as named

T = TypeVar("T")

#: How long replicas or disks may take to confirm a change. With `appendfsync everysec` it takes up to a second.
CONFIRM_MS = 2500
#: Nodes of a Cluster that are asked for the table of slots at the same time. The first answer counts.
ASKED_MAX = 16


class Nodes:
    """See the module.

    Attributes:
        slots: None: one server that is no node of a Cluster, or none has answered yet.
        slots_changes: how often the table of slots has changed.

    Args:
        url: see `address.parse`.
        replicas_min: replicas that confirm a change with `acks` other than `primary`.

    Raises:
        ValueError: the URL is none, or names a socket file or Sentinels.
    """

    def __init__(self, url: str, *, replicas_min: int = 1) -> None:
        given = addresses.parse(url)
        self._starts = [f"{host}:{port}" for host, port in given.hosts]
        self._names_cluster = given.kind == "cluster"
        self._is_tls = given.is_tls
        # The engine decides about connections and their timeouts itself.
        own = ("max_connections", "socket_timeout", "socket_connect_timeout")
        self._options: dict[str, Any] = {name: value for name, value in given.options.items() if name not in own}
        self._options |= {"username": given.username or None, "password": given.password or None}
        #: of `redis://…/1`; a Cluster has only database 0
        self._database = given.database
        self.replicas_min = replicas_min
        self.slots: SlotTable | None = None
        self.slots_changes = 0
        self._is_found = False
        self._lanes: dict[tuple[str, Acks], Lane] = {}
        self._probes: dict[str, Probe] = {}
        self._refreshing: asyncio.Task[bool] | None = None
        #: nodes that did not answer, or know no other node: they are asked for the slots after all others
        self.doubted: set[str] = set()

    async def close(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
        for lane in list(self._lanes.values()):
            await lane.close()
        self._lanes.clear()
        for one in self._probes.values():
            await one.close()

    # ------------------------------------------------------------ what there is

    async def find(self) -> None:
        """Learn whether this is a Cluster, and its slots. Nothing to do when that is known.

        Raises:
            UnfitServer: with what to change.
            EngineAway: no server of the URL answers.
        """
        if self._is_found:
            return
        try:
            self.slots = await _first(map(self._look, self._starts))
        except EngineAway as error:
            raise EngineAway(f"no server answers: {error.detail}") from None
        self._is_found = True

    async def _look(self, address: str) -> SlotTable | None:
        info = await self.info(address)
        if info.get("cluster_enabled") == "1":
            return await self._slots_of(address)
        if self._names_cluster:
            raise UnfitServer(f"{address} is no node of a Cluster: its URL must begin with redis:// or rediss://")
        return None

    async def _slots_of(self, address: str) -> SlotTable:
        answer = await self.ask(address, packed(b"CLUSTER", b"SLOTS"))
        try:
            return SlotTable(answer, address)
        except (ValueError, TypeError, IndexError) as error:
            raise EngineAway(f"{address} names no slots that can be used ({error})") from None

    @property
    def is_cluster(self) -> bool:
        """Whether the servers are those of a Cluster, where replicas take over. Known since `find`."""
        return self.slots is not None

    @property
    def primaries(self) -> list[str]:
        """The addresses of all primaries."""
        return self._starts if self.slots is None else self.slots.primaries

    def primary_of(self, slot: int) -> str:
        """
        Raises:
            NotSent: none is known.
        """
        if self.slots is None:
            return self._starts[0]
        address = self.slots.owners[slot]
        if not address:
            raise NotSent(f"slot {slot} of the Cluster has no primary")
        return address

    def address_of(self, key: str) -> str:
        """The address of the primary that has the key.

        Raises:
            NotSent: none is known.
        """
        return self.primary_of(key_slot(key.encode()))

    async def refresh(self, doubted: str = "") -> bool:
        """Ask for the table of slots again; those who need it at the same time share the answer. Returns whether there is one.

        Args:
            doubted: a node that did not answer, or knows no other node. It is asked after all others.
        """
        if self.slots is None:
            return True
        if doubted:
            self.doubted.add(doubted)
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.ensure_future(self._read_slots())
        return await asyncio.shield(self._refreshing)

    async def _read_slots(self) -> bool:
        assert self.slots is not None
        # All nodes may have other addresses than before, so those of the URL are asked, too.
        known = dict.fromkeys((*sorted(self.slots.nodes), *self._starts))
        trusted = [one for one in known if one not in self.doubted]
        for some in (trusted[:ASKED_MAX], [one for one in known if one in self.doubted][:ASKED_MAX]):
            try:
                found = await _first(map(self._slots_of, some))
            except (EngineAway, UnfitServer):
                continue
            self.slots_changes += found.owners != self.slots.owners
            self.slots = found
            await self._drop_lanes()
            return True
        return False

    def move_slot(self, asked: str, error: MovedError) -> None:
        """Note that the slot has another primary, as the server at this address says.

        Raises:
            EngineAway: the server was none of a Cluster before.
        """
        if self.slots is None:
            raise EngineAway(f"{asked} has become a node of a Cluster: restart this node")
        self.slots.owners[error.slot_id] = named_by(asked, error)
        self.slots_changes += 1

    # -------------------------------------------------------------- connections

    def connection(self, address: str, *, timeout_s: float | None = probe.TIMEOUT_S) -> Connection:
        """A connection to a server, which is not open yet."""
        host, port = host_port(address)
        kind = SSLConnection if self._is_tls else Connection
        return kind(
            host=host,
            port=port,
            db=self._database,
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=probe.TIMEOUT_S,
            retry=None,
            **self._options,
        )

    def lane(self, address: str, acks: Acks = "primary") -> Lane:
        """The calls to a server. Calls that wait for replicas or disks do not hold up those that do not."""
        lane = self._lanes.get((address, acks))
        if lane is None:
            timeout_s = probe.TIMEOUT_S + CONFIRM_MS / 1000
            connect = partial(self.connection, address, timeout_s=timeout_s)
            lane = self._lanes[address, acks] = Lane(connect, self.replicas_min, CONFIRM_MS)
        return lane

    async def interrupt(self, address: str) -> None:
        """End the calls to a server that does not answer. Later ones open connections of their own."""
        for place in [one for one in self._lanes if one[0] == address]:
            await self._lanes.pop(place).close()

    async def _drop_lanes(self) -> None:
        """Close the lanes and probes to servers that are not in the table of slots. Those that still have calls go next time."""
        assert self.slots is not None
        known = self.slots.nodes
        for place, lane in list(self._lanes.items()):
            if place[0] not in known and lane.is_idle:
                del self._lanes[place]
                await lane.close()
        for address in self._probes.keys() - known - {*self._starts}:
            await self._probes.pop(address).close()
        self.doubted &= known

    # ---------------------------------------------------------------- questions

    async def ask(self, address: str, command: list[bytes], *, passes: tuple[type[RedisError], ...] = ()) -> Any:
        """The answer to a question about a server.

        Args:
            passes: errors that the caller deals with.

        Raises:
            UnfitServer: it refuses the question.
            EngineAway: it does not answer soon.
        """
        try:
            answer = await self._probe(address).ask(command)
        except passes:
            raise
        except (RedisError, OSError, TimeoutError) as error:
            raise fault(address, error) from None
        except Exception as error:
            # Bytes that are no answer raise others, such as ValueError.
            raise EngineAway(f"{address} gives no answer that can be read: {type(error).__name__}: {error}") from None
        return answer

    async def info(self, address: str) -> dict[str, str]:
        """The answer of `INFO`. As `ask`."""
        answer = await self.ask(address, packed(b"INFO", b"everything"))
        if not isinstance(answer, bytes):
            raise EngineAway(f"{address} gives no answer that can be read: {type(answer).__name__} for INFO")
        return library_text.decoded_info(answer)

    async def renew(self, address: str) -> None:
        """The next question opens a connection, as a call may have to."""
        await self._probe(address).renew()

    def _probe(self, address: str) -> Probe:
        found = self._probes.get(address)
        if found is None:
            found = self._probes[address] = Probe(partial(self.connection, address))
        return found


async def _first(asked: Iterable[Coroutine[Any, Any, T]]) -> T:
    """The first answer. If there is none, what must be changed comes before what is away.

    Raises:
        UnfitServer, EngineAway: see `Nodes.ask`.
    """
    tasks = [asyncio.ensure_future(one) for one in asked]
    failure: EngineAway | UnfitServer = EngineAway("no server is known")
    try:
        for done in asyncio.as_completed(tasks):
            try:
                return await done
            except UnfitServer as error:
                failure = error
            except EngineAway as error:
                if isinstance(failure, EngineAway):
                    failure = error
        raise failure
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def named_by(asked: str, error: AskError) -> str:
    """The address in a redirection by the server at `asked`. Without a host, it means that server's."""
    return named(error.host, error.port, asked)
