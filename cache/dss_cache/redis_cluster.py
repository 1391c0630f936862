"""A Cluster of Redis or Valkey: each command goes to the primary of its key's slot, in one pipeline for each primary.

redis-py knows the Cluster (which node has which slot), keeps the connections and reads the answers. What is done here is to decide about
each answer alone, so that a primary that is away takes away its own keys only:

- `MOVED`: the slot has another primary. redis-py notes it, and the command is sent there.
- `ASK`: the slot is being moved, and the key is at its target already. The command is sent there once, behind an `ASKING` on the same
  connection. (redis-py sends the two on connections of its pool that need not be the same, and then both nodes refuse the command.)
- no connection, or no answer: a replica may have taken over. The slots are read again, and the command is sent once more. Without a
  new primary, its answer is the error.

Every command may be carried out twice, see `Servers`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.asyncio.cluster import ClusterNode, PipelineCommand, RedisCluster
from redis.exceptions import AskError, MovedError, RedisClusterException, RedisError, SlotNotCoveredError, TryAgainError
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import TimeoutError as NoAnswer

from dss_api.redis_url import RedisUrl
from dss_cache.redis_servers import FAILURES, Command, connection_options

SLOTS = 16_384
#: Times that a command is sent: more than a slot that moves can require, and few enough to end when nodes contradict each other.
ROUNDS_MAX = 8
#: The slots are not read again sooner than this: it makes all connections reconnect, those to healthy primaries as well.
REFRESH_PAUSE_S = 0.5
_REDIRECTIONS = (AskError, TryAgainError)
_AWAY = (NotConnected, NoAnswer, SlotNotCoveredError, OSError)


class ClusterServers:
    """See the module's docstring. It connects on first use and reconnects when connections are lost.

    Args:
        timeout_s: of a connection attempt and of an answer.
        connections_max: at a time, to each node; further calls wait.
    """

    def __init__(self, url: RedisUrl, timeout_s: float, connections_max: int) -> None:
        self._hosts = url.hosts
        self._options = connection_options(url, timeout_s)
        # Of the whole client, which decides nothing here: each node's connections try once.
        self._options.pop("retry")
        self._connections_max = connections_max
        self._free = asyncio.Semaphore(connections_max)
        self._client: RedisCluster | None = None
        self._opening = asyncio.Lock()
        self._refreshed_at = float("-inf")

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        answers: list[Any] = [None] * len(commands)
        left = list(range(len(commands)))
        may_retry = True
        async with self._free:
            for _ in range(ROUNDS_MAX):
                try:
                    client = await self._opened()
                except FAILURES as error:
                    for index in left:
                        answers[index] = error
                    break
                await self._send_round(client, commands, left, answers)
                redirected = [index for index in left if isinstance(answers[index], _REDIRECTIONS)]
                away = [index for index in left if isinstance(answers[index], _AWAY)] if may_retry else []
                if away:
                    may_retry = False
                    await self._refresh()
                left = sorted((*redirected, *away))
                if not left:
                    break
        return answers

    async def check(self) -> None:
        async with self._free:
            trouble = await self._trouble(await self._opened())
            if trouble is not None:
                await self._refresh()
                trouble = await self._trouble(await self._opened())
            if trouble is not None:
                raise trouble

    async def _trouble(self, client: RedisCluster) -> Exception | None:
        """What keeps some keys from being read and written."""
        slots = client.nodes_manager.slots_cache
        if len(slots) < SLOTS:
            return RedisClusterException(f"{SLOTS - len(slots)} slots of the Cluster have no primary")
        primaries = {nodes[0].name: nodes[0] for nodes in slots.values()}
        pings = [PipelineCommand(0, "PING") for _ in primaries]
        await asyncio.gather(*(_execute(node, [ping]) for node, ping in zip(primaries.values(), pings, strict=True)))
        return next((ping.result for ping in pings if isinstance(ping.result, Exception)), None)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await _close(client)

    async def _send_round(self, client: RedisCluster, commands: Sequence[Command], left: list[int], answers: list[Any]) -> None:
        """Send each command that is left once: where the last answer says, or to the primary of its slot."""
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
            sent[index] = PipelineCommand(index, *commands[index].arguments)
            pipelines.setdefault(node.name, (node, []))[1].extend((*before, sent[index]))
        await asyncio.gather(*(_execute(node, pipeline) for node, pipeline in pipelines.values()))
        moved: dict[int, MovedError] = {}
        for index, command in sent.items():
            answers[index] = command.result
            if isinstance(command.result, MovedError):
                moved[command.result.slot_id] = command.result
        for slot, redirection in moved.items():
            if slot in client.nodes_manager.slots_cache:
                await client.nodes_manager.move_slot(redirection)

    async def _opened(self) -> RedisCluster:
        """The client, with the slots known.

        Raises:
            one of FAILURES: none of the nodes that `REDIS_URL` names can be reached, or they are not of a Cluster.
        """
        async with self._opening:
            if self._client is None:
                client = RedisCluster(
                    startup_nodes=[ClusterNode(host, port) for host, port in self._hosts],
                    # Some slots without a primary: their keys are away, the others are not.
                    require_full_coverage=False,
                    max_connections=self._connections_max,
                    **self._options,
                )
                try:
                    await _read_slots(client)
                except BaseException:
                    await _close(client)
                    raise
                self._client = client
            return self._client

    async def _refresh(self) -> None:
        """Read the slots again, unless that was done a moment ago. If no known node answers, begin again with those of `REDIS_URL`."""
        now = asyncio.get_running_loop().time()
        if now < self._refreshed_at + REFRESH_PAUSE_S or self._client is None:
            return
        self._refreshed_at = now
        client = self._client
        try:
            await _read_slots(client)
        except FAILURES:
            if self._client is client:
                await self.close()


async def _execute(node: ClusterNode, pipeline: list[PipelineCommand]) -> None:
    """Send commands to a node. Each then has its result, or the error."""
    try:
        await node.execute_pipeline(pipeline)
    except FAILURES as error:
        for command in pipeline:
            command.result = error
    for command in pipeline:
        result = command.result
        if isinstance(result, _AWAY) and result.args:
            # Which of the nodes it is. A result of several commands gets it once.
            if node.name not in str(result):
                result.args = (f"{node.name}: {result}",)
        elif isinstance(result, MovedError) and not result.host:
            # The node does not know its own address, and the other one has the same.
            result.host = node.host


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


async def _read_slots(client: RedisCluster) -> None:
    try:
        await client.nodes_manager.initialize()
    except RedisClusterException as error:
        if "Cluster mode is not enabled" in str(error):
            raise RedisError("the server belongs to no Cluster: REDIS_URL must begin with redis:// or rediss://") from None
        raise


async def _close(client: RedisCluster) -> None:
    """Its own `aclose` closes only what its own commands have opened."""
    await client.nodes_manager.aclose()
    await client.nodes_manager.aclose("startup_nodes")
