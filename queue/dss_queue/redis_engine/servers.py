"""The servers of the engine: one primary, or those of a Cluster. It knows which of them has a partition, also after a failover or a move
of slots, and repeats calls that can be repeated until their time is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import Connection, SSLConnection
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    ClusterError,
    MovedError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as Disconnected

from dss_api.errors import Refused
from dss_queue.core.commands import Acks
from dss_queue.redis_engine import address as addresses
from dss_queue.redis_engine import errors, library_text, step_metrics
from dss_queue.redis_engine.errors import EngineAway, UnfitServer
from dss_queue.redis_engine.lane import Lane, NotConfirmed, NotSent, packed

TIMEOUT_S = 2.0
#: For how long a call is repeated while its partition has no primary, or moves.
DEADLINE_S = 5.0
#: Between two attempts.
PAUSE_S_MIN, PAUSE_S_MAX = 0.01, 0.2
#: How long replicas or disks may take to confirm a change. With `appendfsync everysec` it takes up to a second.
CONFIRM_MS = 2500
CALL_VERSION = 1
#: Steps that change nothing.
READING = frozenset(("due", "stats", "dead_count", "group_stats", "in_flight", "peek", "group_peek", "revision"))

#: Cached beginnings of calls: those that were used last.
BEGINNINGS_MAX = 4096
#: Keys of a call with a cached beginning: those of a partition and of one group.
KEYS_CACHED_MAX = 19

_encode = msgspec.msgpack.Encoder().encode


@lru_cache(BEGINNINGS_MAX)
def _beginning(step: str, keys: tuple[str, ...]) -> bytes:
    """A call of a step up to its argument."""
    words = (b"FCALL", f"{library_text.NAME}_{step}".encode(), b"%d" % len(keys), *(key.encode() for key in keys))
    return b"*%d\r\n" % (len(words) + 1) + b"".join(packed(*words)[1:])


def beginning(step: str, keys: tuple[str, ...]) -> bytes:
    """A call of a step up to its argument. Calls about many groups are rare, and too long to be kept."""
    return (_beginning if len(keys) <= KEYS_CACHED_MAX else _beginning.__wrapped__)(step, keys)


class Servers:
    """See the module.

    Args:
        url: see `address.parse`.
        replicas_min: replicas that confirm a change with `acks` other than `primary`.

    Raises:
        ValueError: the URL is none, or names a socket file or Sentinels.
    """

    def __init__(self, url: str, *, replicas_min: int = 1, deadline_s: float = DEADLINE_S) -> None:
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
        self._replicas_min = replicas_min
        self._deadline_s = deadline_s
        self._cluster: RedisCluster | None = None
        self._lanes: dict[tuple[str, Acks], Lane] = {}
        self._refreshing: asyncio.Task[bool] | None = None
        #: called when a server did not answer a call
        self.on_trouble: Callable[[], None] = lambda: None
        #: why calls are not repeated now; empty: they are
        self.refusal = ""

    @staticmethod
    def at_us() -> int:
        """The time of a step in microseconds; 0: that of the primary. Tests replace it."""
        return 0

    async def open(self) -> None:
        """Connect, check all primaries, and load the library where it is missing. A later call looks at everything again.

        Raises:
            UnfitServer: with what to change.
            EngineAway: a server does not answer.
        """
        if self._cluster is None:
            await self._find()
        elif not await self.refresh():
            # All its nodes may have other addresses: begin again with those of the URL.
            await self._open_cluster()
        await asyncio.gather(*(self._check(primary) for primary in self.primaries))

    async def _find(self) -> None:
        trouble = ""
        for address in self._starts:
            try:
                info = await self._info(address)
            except EngineAway as error:
                trouble = error.detail
                continue
            if info.get("cluster_enabled") == "1":
                await self._open_cluster()
            elif self._names_cluster:
                raise UnfitServer(f"{address} is no node of a Cluster: its URL must begin with redis:// or rediss://")
            return
        raise EngineAway(f"no server answers: {trouble}")

    async def _open_cluster(self) -> None:
        nodes = [ClusterNode(*_host_port(address)) for address in self._starts]
        # Lanes have the connections for calls: this client only keeps the table of slots.
        cluster = RedisCluster(startup_nodes=nodes, protocol=2, ssl=self._is_tls, **self._options)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await cluster.initialize()
        except Exception as error:
            await cluster.aclose()
            raise EngineAway(f"the Cluster does not answer ({str(error) or 'in time'})") from None
        if self._cluster is not None:
            await self._cluster.aclose()
        self._cluster = cluster

    @property
    def is_cluster(self) -> bool:
        """Whether the servers are those of a Cluster, where replicas take over. Known since `open`."""
        return self._cluster is not None

    @property
    def primaries(self) -> list[str]:
        """The addresses of all primaries."""
        if self._cluster is None:
            return self._starts
        return [f"{node.host}:{node.port}" for node in self._cluster.get_primaries()]

    async def _info(self, address: str) -> dict[str, str]:
        return library_text.decoded_info(await self._ask(address, b"INFO", b"everything"))

    async def _ask(self, address: str, *words: bytes) -> Any:
        """
        Raises:
            EngineAway: the server does not answer soon.
        """
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await self.lane(address).call(packed(*words))
        except (RedisError, OSError, TimeoutError) as error:
            raise EngineAway(f"{address} does not answer ({str(error) or 'in time'})") from None

    async def _check(self, address: str) -> None:
        library_text.check_server(address, await self._info(address))
        await self._load_library(address)

    async def check(self) -> None:
        """Whether all primaries answer. It costs little, and does not look at anything else.

        Raises:
            EngineAway: one does not.
        """
        await asyncio.gather(*(self._check_alive(primary) for primary in self.primaries))

    async def _check_alive(self, address: str) -> None:
        if self._cluster is None:
            await self._ask(address, b"PING")
        elif b"cluster_state:ok" not in await self._ask(address, b"CLUSTER", b"INFO"):
            raise EngineAway(f"some slots of the Cluster have no primary, says {address}")

    async def check_confirmations(self, *, needs_disk: bool) -> None:
        """Whether the primaries have what `acks` other than `primary` need.

        Args:
            needs_disk: for `fsync`.

        Raises:
            UnfitServer: with what to change.
            EngineAway: a server does not answer.
        """
        for address in self.primaries:
            info = await self._info(address)
            library_text.check_server(address, info, needs_disk=needs_disk)
            replicas = int(info.get("connected_slaves", 0))
            if replicas < self._replicas_min:
                raise UnfitServer(f"{address} has {replicas} replicas, and DSS_ENGINE_REPLICAS_MIN is {self._replicas_min}")

    async def _load_library(self, address: str) -> None:
        """Load the library unless this release or a newer one has loaded it."""
        lane, source = self.lane(address), library_text.text()
        try:
            found = await lane.call(packed(b"FUNCTION", b"LIST", b"LIBRARYNAME", library_text.NAME.encode(), b"WITHCODE"))
            loaded = _code_of(found[0]) if found else ""
            if loaded == source or library_text.revision_of(loaded) > library_text.revision_of(source):
                return
            await lane.call(packed(b"FUNCTION", b"LOAD", b"REPLACE", source.encode()))
        except ResponseError as error:
            raise UnfitServer(f"{address} cannot load the functions: {error}") from None
        except (RedisError, OSError) as error:
            raise EngineAway(f"{address} does not answer ({error})") from None

    async def close(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
        for lane in list(self._lanes.values()):
            await lane.close()
        self._lanes.clear()
        if self._cluster is not None:
            await self._cluster.aclose()

    # ------------------------------------------------------------------ calls

    async def call(self, step: str, keys: tuple[str, ...], *args: Any, acks: Acks = "primary", repeatable: bool = True) -> bytes:
        """The answer of one step of the library.

        Args:
            keys: all of one partition.
            repeatable: a second call would do no harm, so it is repeated when the outcome of the first is not known.

        Raises:
            NoGroup: the step is one of a group that the partition does not have.
            Refused: `engine_away`; `unknown_outcome`: it may have taken effect; or the library's.
        """
        return (await self.call_and_repeats(step, keys, *args, acks=acks, repeatable=repeatable))[0]

    async def call_and_repeats(
        self, step: str, keys: tuple[str, ...], *args: Any, acks: Acks = "primary", repeatable: bool = True
    ) -> tuple[bytes, bool]:
        """As `call`; also whether the step may have taken effect before the call that is answered."""
        argument = _encode((CALL_VERSION, self.at_us(), *args))
        command = [beginning(step, keys), b"$%d\r\n" % len(argument), argument, b"\r\n"]
        began_s = asyncio.get_running_loop().time()
        try:
            answer, is_repeat = await self._repeated(keys[0], command, acks, repeatable=repeatable, changes=step not in READING)
        except Refused as refusal:
            step_metrics.count_failure(refusal.code)
            raise
        step_metrics.observe(step, asyncio.get_running_loop().time() - began_s)
        if not isinstance(answer, bytes):
            raise Refused(
                "engine_away" if step in READING else "unknown_outcome", f"a server answers `{step}` as the library does not"
            )
        return answer, is_repeat

    async def _repeated(self, key: str, command: list[bytes], acks: Acks, *, repeatable: bool, changes: bool) -> tuple[Any, bool]:
        """The answer, and whether the command may have taken effect before."""
        loop = asyncio.get_running_loop()
        until, pause_s = loop.time() + self._deadline_s, PAUSE_S_MIN
        slot = key_slot(key.encode())
        # The server that the last answer named for this one call.
        named = ""
        # Answers in a row that named another server.
        redirections = 0
        is_repeat = False
        while True:
            asked, named = named, ""
            try:
                address = asked or self._primary_of(slot)
                return await self.lane(address, acks).call(command, acks, asking=bool(asked)), is_repeat
            except NotConfirmed as error:
                raise Refused("unknown_outcome", f"it took effect on the primary, but {error}") from None
            except MovedError as error:
                trouble: Exception = error
                redirections += 1
                await self._move_slot(address, error)
            except AskError as error:
                trouble = error
                redirections += 1
                named = _named_by(address, error)
            except (TryAgainError, BusyLoadingError, ClusterDownError, ReadOnlyError) as error:
                trouble = error
                await self.refresh()
            except ResponseError as error:
                trouble = error
                await self._answer_error(address, error)
            except NotSent as error:
                trouble = error
                self.on_trouble()
                await self.refresh()
            except (Disconnected, RedisError, OSError, ClusterError) as error:
                trouble = error
                if not repeatable:
                    raise Refused("unknown_outcome", f"the engine did not answer ({error})") from None
                is_repeat = True
                self.on_trouble()
                await self.refresh()
            if not isinstance(trouble, AskError):
                redirections = 0
            reason = self.refusal
            if not reason and loop.time() + pause_s > until:
                self.on_trouble()
                reason = f"the engine does not answer ({trouble})"
            if reason and is_repeat and changes:
                raise Refused("unknown_outcome", f"the answer was lost, and then: {reason}") from None
            if reason:
                raise EngineAway(reason) from None
            if redirections == 1:
                continue
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S_MAX)

    async def _move_slot(self, address: str, error: MovedError) -> None:
        """Note that the slot has another primary, as the server at this address says."""
        if self._cluster is None:
            raise EngineAway(f"{address} has become a node of a Cluster: restart this node") from None
        error.host, _ = _host_port(_named_by(address, error))
        try:
            await self._cluster.nodes_manager.move_slot(error)
        except KeyError:
            # The table of slots was read again meanwhile, and lacks this one.
            await self.refresh()

    async def read(self, key: str, *words: bytes) -> Any:
        """The answer of a command that changes nothing, from the primary that has the key."""
        return (await self._repeated(key, packed(*words), "primary", repeatable=True, changes=False))[0]

    async def _answer_error(self, address: str, error: ResponseError) -> None:
        """Return if the call may be repeated.

        Raises:
            Exception: what the error means for the caller.
        """
        text = str(error)
        if text.startswith(errors.PREFIX):
            raise errors.refusal(text) from None
        if "Function not found" in text:
            await self._load_library(address)
        elif text.startswith("OOM") or "maxmemory" in text:
            raise Refused("over_limit", "the engine's memory is full (`maxmemory`)", limit="maxmemory") from None
        elif text.startswith(("MASTERDOWN", "BUSY", "LOADING", "NOREPLICAS")):
            await self.refresh()
        else:
            raise EngineAway(f"{address}: {text}") from None

    def _primary_of(self, slot: int) -> str:
        if self._cluster is None:
            return self._starts[0]
        try:
            node = self._cluster.nodes_manager.get_node_from_slot(slot)
        except RedisClusterException as error:
            raise NotSent(str(error)) from None
        return f"{node.host}:{node.port}"

    async def refresh(self) -> bool:
        """Ask for the table of slots again; those who need it at the same time share the answer. Returns whether there is one."""
        if self._cluster is None:
            return True
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.ensure_future(self._read_slots())
        return await asyncio.shield(self._refreshing)

    async def _read_slots(self) -> bool:
        assert self._cluster is not None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._cluster.nodes_manager.initialize()
        except Exception:
            # Also for an answer that cannot be read. The next attempt asks again.
            return False
        await self._drop_lanes()
        return True

    async def _drop_lanes(self) -> None:
        """Close the lanes to servers that are not in the table of slots. Those that still have calls go next time."""
        assert self._cluster is not None
        known = {f"{node.host}:{node.port}" for node in self._cluster.get_nodes()}
        for place, lane in list(self._lanes.items()):
            if place[0] not in known and lane.is_idle:
                del self._lanes[place]
                await lane.close()

    def address_of(self, key: str) -> str:
        """The address of the primary that has the key."""
        return self._primary_of(key_slot(key.encode()))

    def connection(self, address: str, *, timeout_s: float | None = TIMEOUT_S) -> Connection:
        """A connection to a server, which is not open yet."""
        host, port = _host_port(address)
        kind = SSLConnection if self._is_tls else Connection
        return kind(
            host=host,
            port=port,
            db=self._database,
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=TIMEOUT_S,
            retry=None,
            **self._options,
        )

    def lane(self, address: str, acks: Acks = "primary") -> Lane:
        """The calls to a server. Calls that wait for replicas or disks do not hold up those that do not."""
        lane = self._lanes.get((address, acks))
        if lane is None:
            lane = self._lanes[address, acks] = Lane(
                lambda: self.connection(address, timeout_s=TIMEOUT_S + CONFIRM_MS / 1000), self._replicas_min, CONFIRM_MS
            )
        return lane


def _host_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def _named_by(address: str, error: AskError) -> str:
    """The address in a redirection by the server at `address`. Without a host, it means that server's."""
    return f"{error.host or _host_port(address)[0]}:{error.port}"


def _code_of(library: list[Any]) -> str:
    fields = dict(zip(library[::2], library[1::2], strict=True))
    return bytes(fields.get(b"library_code", b"")).decode()
