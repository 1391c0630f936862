"""How partitions and groups of a topic begin and end.

A partition must be opened before it takes messages or groups, and only what the log says now opens it: the caller gets a token, asks the
log, and confirms the token. A partition that was closed or deleted in between does not know the token any more. So a node that lags
behind cannot put a message where it would be lost: what is deleted stays deleted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import NamedTuple, TypeVar
from uuid import uuid4

from dss_api.errors import Refused
from dss_queue.core.commands import GROUPS_PER_TOPIC_MAX, Acks
from dss_queue.redis_engine import messages
from dss_queue.redis_engine.errors import Closed, NoGroup, NotOpen
from dss_queue.redis_engine.keys import group_keys, partition_keys
from dss_queue.redis_engine.servers import Servers

T = TypeVar("T")


class InLog(NamedTuple):
    """What the log says now of a topic that is on the engine."""

    groups: Collection[str]
    #: its messages no longer go to the engine
    is_leaving: bool = False


#: What the log says of a topic, by the engine's name; None: it has nothing on the engine under this name.
GroupsInLog = Callable[[str], Awaitable[InLog | None]]


class Lifecycle:
    """See the module.

    Args:
        partitions: of each topic.
    """

    def __init__(self, servers: Servers, partitions: int, groups_in_log: GroupsInLog | None) -> None:
        self._servers = servers
        self._partitions = partitions
        self._groups_in_log = groups_in_log
        #: openings that run, by topic
        self._opening: dict[str, asyncio.Task[None]] = {}

    async def of_all(self, step: Callable[[int], Awaitable[T]]) -> list[T]:
        """The answers of a step for each partition.

        Raises:
            Exception: what one of them has raised, after all have ended.
        """
        answers = await asyncio.gather(*map(step, range(self._partitions)), return_exceptions=True)
        found: list[T] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            found.append(answer)
        return found

    async def is_deleted(self, topic: str, group: str) -> bool:
        """Whether the log says that a topic has no such group, or that it has left the engine."""
        if self._groups_in_log is None:
            return False
        in_log = await self._groups_in_log(topic)
        return in_log is None or group not in in_log.groups

    async def open(self, topic: str) -> None:
        """Open the partitions that do not exist, with the groups that the topic has in the log.

        Raises:
            Closed: the log says that its messages do not go to the engine.
        """
        task = self._opening.get(topic)
        if task is None:
            task = self._opening[topic] = asyncio.ensure_future(self._open(topic))
            task.add_done_callback(lambda _: self._opening.pop(topic))
        # Others may wait for it.
        await asyncio.shield(task)

    async def _open(self, topic: str) -> None:
        token = uuid4().hex

        async def begin(partition: int) -> str:
            return messages.open_answer.decode(await self._servers.call("open", partition_keys(topic, partition), token))[1]

        tokens = await self.of_all(begin)
        in_log = await self._groups_in_log(topic) if self._groups_in_log is not None else InLog(())
        if in_log is None or in_log.is_leaving:
            raise Closed("the topic has left the engine")
        groups = in_log.groups

        async def confirm(partition: int) -> None:
            if tokens[partition]:
                keys = (*partition_keys(topic, partition), *(group_keys(topic, partition, group)[0] for group in groups))
                await self._servers.call("confirm", keys, tokens[partition], list(groups))

        await self.of_all(confirm)

    async def close(self, topic: str) -> None:
        """Let no partition take further messages. What is there is delivered as before."""

        async def step(partition: int) -> None:
            await self._servers.call("close", partition_keys(topic, partition))

        await self.of_all(step)

    async def delete(self, topic: str) -> None:
        """Delete a topic with its groups: none of its keys is left."""

        async def step(partition: int) -> None:
            names: Sequence[str] = ()
            is_deleted = False
            while not is_deleted:
                keys = partition_keys(topic, partition)
                for name in names:
                    keys += group_keys(topic, partition, name)
                data = await self._servers.call("delete", keys, names)
                _, names, is_deleted = messages.delete_answer.decode(data)

        await self.of_all(step)

    # ------------------------------------------------------------------- groups

    async def put_group(self, topic: str, group: str, start: str = "first", acks: Acks = "primary") -> tuple[bool, int]:
        """Create a group in all partitions, unless it exists. Returns whether it is new, and how many messages it has to finish.

        Args:
            start: "first", the oldest message that the topic retains, or "now", the next one.

        Raises:
            Closed: see `open`.
            Refused: `not_on_engine`.
        """
        if start not in ("first", "now"):
            raise Refused("not_on_engine", "`start` must be `first` or `now` for a topic on the engine `redis`", field="start")

        async def put(partition: int) -> tuple[int, bool, int]:
            keys = partition_keys(topic, partition) + group_keys(topic, partition, group)
            step = await self._servers.call("put_group", keys, start, group, GROUPS_PER_TOPIC_MAX, acks=acks)
            return messages.group_answer.decode(step)

        async def put_now(partition: int) -> tuple[int, bool, int] | None:
            """None: a topic that has left the engine does not have this partition."""
            try:
                return await put(partition)
            except NoGroup:
                # Its deletion has begun.
                await self._delete_group_of(topic, partition, group)
            except NotOpen:
                try:
                    await self.open(topic)
                except NotOpen:
                    raise
                except Closed:
                    return None
            return await put(partition)

        found = [one for one in await self.of_all(put_now) if one is not None]
        if not found:
            raise Closed("the topic has left the engine")
        return any(is_new for _, is_new, _ in found), sum(pending for _, _, pending in found)

    async def delete_group(self, topic: str, group: str) -> None:
        """Delete a group with its dead letters. It may be repeated."""

        async def step(partition: int) -> None:
            await self._delete_group_of(topic, partition, group)

        await self.of_all(step)

    async def _delete_group_of(self, topic: str, partition: int, group: str) -> None:
        names = [group]
        while names:
            keys = partition_keys(topic, partition) + group_keys(topic, partition, names[-1])
            try:
                data = await self._servers.call("delete_group", keys, names[-1])
            except NoGroup:
                names.pop()
                continue
            _, other, is_left = messages.delete_group_answer.decode(data)
            if other:
                # Its deletion was interrupted.
                names.append(other)
            elif not is_left:
                names.pop()
