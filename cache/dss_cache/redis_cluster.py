"""A Cluster of Redis or Valkey: each command goes to the primary of its key's slot, in one pipeline for each primary.

redis-py knows the Cluster (which node has which slot), keeps the connections and reads the answers. This module decides about each answer
by itself, so that a primary that is away affects only its own keys:

- `MOVED`: the slot has another primary. redis-py notes it, and the command is sent there.
- `ASK`: the slot is being moved, and the key is at its target already. The command is sent there once, behind an `ASKING` on the same
  connection. (redis-py sends the two on connections of its pool that need not be the same, and then both nodes refuse the command.)
- no connection, or no answer: a replica may have taken over. The slots are read again, and the command is sent once more. Without a
  new primary, its answer is the error. For a moment, the node is not asked again, so that other commands do not wait for it.

Every command may be carried out twice, see `Servers`.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio.cluster import ClusterNode, PipelineCommand, RedisCluster
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MaxConnectionsError,
    MovedError,
    RedisClusterException,
    RedisError,
    SlotNotCoveredError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import TimeoutError as NoAnswer

from dss_api.redis_url import RedisUrl
from dss_cache.redis_servers import FAILURES, AllInUse, Command, Permits, connection_options

SLOTS = 16_384
#: Times that a command is sent: more than a slot that moves can require, and few enough to end when nodes contradict each other.
ROUNDS_MAX = 8
#: The slots are not read again sooner than this: it makes all connections reconnect, those to healthy primaries as well.
REFRESH_PAUSE_S = 1.0
#: A node that did not answer is not asked again sooner than this.
AWAY_PAUSE_S = 2.0
#: If no node of `REDIS_URL` can be reached, they are not tried again sooner than this.
OPEN_PAUSE_S = 0.5
_REDIRECTIONS = (AskError, TryAgainError)
#: What a node that has been cut off from the others says (CLUSTERDOWN) counts as well: another one may have its slots.
_AWAY = (NotConnected, NoAnswer, ClusterDownError, SlotNotCoveredError, OSError)


class ClusterServers:
    """See the module's docstring. It connects on first use and reconnects when connections are lost.

    Args:
        timeout_s: of a connection attempt and of an answer.
        connections_max: at a time, to each node; further calls wait, for `timeout_s` at most.
    """

    def __init__(self, url: RedisUrl, timeout_s: float, connections_max: int) -> None:
        self._hosts = url.hosts
        self._options = connection_options(url, timeout_s)
        # Of the whole client, which decides nothing here: each node's connections try once.
        self._options.pop("retry")
        self._connections_max = connections_max
        self._permits: defaultdict[str, Permits] = defaultdict(lambda: Permits(connections_max, timeout_s))
        self._client: RedisCluster | None = None
        self._opening = asyncio.Lock()
        self._not_opened: _Pause | None = None
        self._refreshing = asyncio.Lock()
        self._refreshed_at = float("-inf")
        #: nodes that did not answer, by name
        self._away: dict[str, _Pause] = {}

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        answers: list[Any] = [None] * len(commands)
        left = list(range(len(commands)))
        may_retry = True
        for _ in range(ROUNDS_MAX):
            try:
                client = await self._opened()
            except FAILURES as error:
                for index in left:
                    answers[index] = error
                break
            silent = await self._send_round(client, commands, left, answers)
            redirected = [index for index in left if isinstance(answers[index], _REDIRECTIONS)]
            away = [index for index in left if _is_away(answers[index])]
            if away and may_retry:
                may_retry = False
                await self._refresh(silent)
                left = sorted((*redirected, *away))
            else:
                self._away.update((name, _Pause(AWAY_PAUSE_S, error)) for name, error in silent.items())
                left = redirected
            if not left:
                break
        return answers

    def parts(self, keys: Sequence[str]) -> list[list[int]]:
        if self._client is None:
            return [list(range(len(keys)))]
        places: defaultdict[str, list[int]] = defaultdict(list)
        for place, key in enumerate(keys):
            try:
                places[_primary(self._client, key).name].append(place)
            except SlotNotCoveredError:
                places[""].append(place)
        return list(places.values())

    async def check(self) -> None:
        trouble, silent = await self._trouble(await self._opened())
        if trouble is not None:
            await self._refresh(silent)
            trouble, _ = await self._trouble(await self._opened())
        if trouble is not None:
            raise trouble

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await _close(client)

    async def _trouble(self, client: RedisCluster) -> tuple[Exception | None, dict[str, Exception]]:
        """What keeps some keys from being read and written, and the nodes that are the reason."""
        slots = client.nodes_manager.slots_cache
        if len(slots) < SLOTS:
            return RedisClusterException(f"{SLOTS - len(slots)} slots of the Cluster have no primary"), {}
        primaries = {nodes[0].name: nodes[0] for nodes in slots.values()}
        pings = {name: PipelineCommand(0, "PING") for name in primaries}
        await asyncio.gather(*(self._execute(node, [pings[name]]) for name, node in primaries.items()))
        silent = {name: ping.result for name, ping in pings.items() if isinstance(ping.result, Exception)}
        return next(iter(silent.values()), None), silent

    async def _send_round(
        self, client: RedisCluster, commands: Sequence[Command], left: list[int], answers: list[Any]
    ) -> dict[str, Exception]:
        """Send each command that is left once: where the last answer says, or to the primary of its slot.

        Returns:
            The nodes that did not answer, by name, with the errors. Those that are known to be away were not asked.
        """
        pipelines: dict[str, tuple[ClusterNode, list[PipelineCommand]]] = {}
        sent: dict[int, PipelineCommand] = {}
        for index in left:
            redirection = answers[index]
            try:
                if isinstance(redirection, AskError) and not isinstance(redirection, MovedError):
                    node = _node(client, redirection)
                    before = [PipelineCommand(index, "ASKING")]
                else:
                    node = _primary(client, commands[index].key)
                    before = []
            except SlotNotCoveredError as error:
                answers[index] = error
                continue
            pause = self._away.get(node.name)
            if pause is not None and not pause.is_over:
                answers[index] = pause.error
                continue
            sent[index] = PipelineCommand(index, *commands[index].arguments)
            pipelines.setdefault(node.name, (node, []))[1].extend((*before, sent[index]))
        await asyncio.gather(*(self._execute(node, pipeline) for node, pipeline in pipelines.values()))
        moved: dict[int, MovedError] = {}
        for index, command in sent.items():
            answers[index] = command.result
            if isinstance(command.result, MovedError):
                moved[command.result.slot_id] = command.result
        for slot, redirection in moved.items():
            if slot in client.nodes_manager.slots_cache:
                await client.nodes_manager.move_slot(redirection)
        last = {name: pipeline[-1].result for name, (_, pipeline) in pipelines.items()}
        return {name: result for name, result in last.items() if _is_away(result)}

    async def _execute(self, node: ClusterNode, pipeline: list[PipelineCommand]) -> None:
        """Send commands to a node. Each then has its result, or the error."""
        try:
            async with self._permits[node.name]:
                await node.execute_pipeline(pipeline)
        except FAILURES as error:
            for command in pipeline:
                command.result = error
        for command in pipeline:
            result = command.result
            if _is_away(result):
                if node.name not in str(result):
                    result.args = (
                        f"{node.name}: {result}",
                    )  # Which of the nodes it is. The error may be that of several commands.
            elif isinstance(result, MovedError) and not result.host:
                # The node does not know its own address, and the other one has the same.
                result.host = node.host
        if not isinstance(pipeline[-1].result, _AWAY):  # Nor does it end a pause that no connection was free.
            self._away.pop(node.name, None)

    async def _opened(self) -> RedisCluster:
        """The client, with the slots known.

        Raises:
            one of FAILURES: none of the nodes that `REDIS_URL` names can be reached, or they are not of a Cluster.
        """
        if self._client is not None:
            return self._client
        async with self._opening:
            # Those that have waited get the result, instead of trying one after the other.
            if self._client is not None:
                return self._client
            if self._not_opened is not None and not self._not_opened.is_over:
                raise self._not_opened.error
            client = RedisCluster(
                startup_nodes=[ClusterNode(host, port) for host, port in self._hosts],
                # Some slots without a primary: their keys are away, the others are not.
                require_full_coverage=False,
                # One more, to read the slots.
                max_connections=self._connections_max + 1,
                **self._options,
            )
            try:
                await _read_slots(client)
            except BaseException as error:
                await _close(client)
                if isinstance(error, FAILURES):
                    self._not_opened = _Pause(OPEN_PAUSE_S, error)
                raise
            self._client = client
            self._not_opened = None
            return client

    async def _refresh(self, silent: Mapping[str, Exception]) -> None:
        """Read the slots again, unless that was done a moment ago. If no known node answers, begin again with those of `REDIS_URL`.

        Args:
            silent: nodes that did not answer. They are asked last.
        """
        async with self._refreshing:
            now = asyncio.get_running_loop().time()
            client = self._client
            if now < self._refreshed_at + REFRESH_PAUSE_S or client is None:
                return
            try:
                await _read_slots(client, next(iter(silent), None))
            except FAILURES:
                if self._client is client:
                    await self.close()
            self._refreshed_at = asyncio.get_running_loop().time()
            for name in self._permits.keys() - client.nodes_manager.nodes_cache.keys():
                del self._permits[name]
                self._away.pop(name, None)


class _Pause:
    """For a time, an error is the answer without another attempt."""

    def __init__(self, length_s: float, error: Exception) -> None:
        self.error = error
        self._end = time.monotonic() + length_s

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._end


def _is_away(answer: object) -> bool:
    return isinstance(answer, _AWAY) and not isinstance(answer, (AllInUse, MaxConnectionsError))


def _node(client: RedisCluster, redirection: AskError) -> ClusterNode:
    """The node that an answer names, which may be new."""
    manager = client.nodes_manager
    node = manager.get_node(host=redirection.host, port=redirection.port)
    if node is None:
        node = ClusterNode(redirection.host, redirection.port, "primary", **manager.connection_kwargs)
        manager.set_nodes(manager.nodes_cache, {node.name: node})
    return node


def _primary(client: RedisCluster, key: str) -> ClusterNode:
    slot = client.keyslot(key)
    try:
        return client.nodes_manager.slots_cache[slot][0]
    except (LookupError, TypeError):
        raise SlotNotCoveredError(f"slot {slot} of the Cluster has no primary") from None


async def _read_slots(client: RedisCluster, last: str | None = None) -> None:
    """Ask one node after the other for the slots, the one named `last` after all others."""
    try:
        await client.nodes_manager.initialize(last_failed_node_name=last)
    except RedisClusterException as error:
        if "Cluster mode is not enabled" in str(error):
            raise RedisError("the server is not part of a Cluster: REDIS_URL must begin with redis:// or rediss://") from None
        raise


async def _close(client: RedisCluster) -> None:
    """Its own `aclose` closes only what its own commands have opened."""
    await client.nodes_manager.aclose()
    await client.nodes_manager.aclose("startup_nodes")
