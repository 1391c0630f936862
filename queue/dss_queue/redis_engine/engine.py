"""Topics in Valkey or Redis: the operations of the queue as calls of the library's steps.

Theory of operation. A topic has partitions, each in one slot of a Cluster. A message with a routing key is in the partition of its key,
one with a dedup_id in that of the dedup_id, another one in any. Every step works on one partition and takes effect as a whole (see
`library/`); an operation on several partitions is several steps. A consume asks the partitions in turns, and waits without polling
(`polls.py`).

A step whose answer is lost is repeated where that does no harm: publish and consume carry a token, by which a repeat is recognized;
an ack, nack or extend with a receipt means one delivery. When a repeated ack or nack finds nothing, the first one may have taken
effect: it is refused with `unknown_outcome`, as are all other steps whose answer is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from itertools import count
from typing import NamedTuple
from uuid import uuid4

from dss_api.errors import Refused
from dss_api.supervised import Tasks
from dss_queue.answers import Delivered, Published
from dss_queue.core.commands import BYTES_PER_CONSUME_MAX, Acks, NewMessage, TopicSettings
from dss_queue.core.partitions import PARTITIONS, stable_hash
from dss_queue.redis_engine import messages
from dss_queue.redis_engine.endings import Endings, for_deliveries
from dss_queue.redis_engine.errors import Closed, GroupDeleted, NoGroup, NotOpen
from dss_queue.redis_engine.keys import HANDOUTS, group_keys, partition_keys
from dss_queue.redis_engine.lifecycle import GroupsInLog, Lifecycle
from dss_queue.redis_engine.messages import CLOSED, OWN_ATTEMPT, Consumed, consumed
from dss_queue.redis_engine.polls import Polls
from dss_queue.redis_engine.servers import Servers
from dss_queue.redis_engine.wakeups import Wakeups

#: Messages of one partition.
PARTITION_MESSAGES_MAX = 50_000_000
#: Groups whose waits are remembered; those that were used last.
POLLS_MAX = 1024


#: How long a consume waits until its subscription to new messages is confirmed. A server may hang.
LISTEN_S = 2.0


class Answer(NamedTuple):
    """The answer of a consume."""

    messages: list[Delivered]
    #: why there are none
    empty_reason: str


class RedisEngine(Endings):
    """See the module.

    Args:
        servers: open.
        node: the name of this node, for the history of deliveries.
        partitions: of each topic.
        groups_in_log: see `GroupsInLog`; without it, every topic is on the engine.
    """

    def __init__(
        self, servers: Servers, *, node: str = "", partitions: int = PARTITIONS, groups_in_log: GroupsInLog | None = None
    ) -> None:
        super().__init__(servers, partitions)
        self.lifecycle = Lifecycle(servers, partitions, groups_in_log)
        self._node = node
        self._wakeups = Wakeups(servers)
        self._polls: dict[tuple[str, str], Polls] = {}
        self._next = count()
        self._tokens = uuid4().hex
        self._token_numbers = count()
        self._tasks = Tasks()
        #: tasks that give back what consumes got whose callers had gone
        self._giving_back: set[asyncio.Task[None]] = set()
        servers.health.on_look = self._servers_were_asked

    async def close(self) -> None:
        """End the waits, and give back what was got for callers that have gone. The servers belong to the caller."""
        if self._giving_back:
            await asyncio.wait(self._giving_back)
        await self._wakeups.close()

    # ------------------------------------------------------------------ publish

    async def publish(
        self, topic: str, new: Sequence[NewMessage], settings: TopicSettings, *, acks: Acks = "primary", token: str = ""
    ) -> list[Published]:
        """Store messages, all of them or none.

        Args:
            new: their `topic` is not used.
            token: a repeat of the call with the same one, within a minute, stores nothing.

        Raises:
            Refused: `over_limit`; `crosses_slots`: they belong to several partitions.
            Closed: nothing is stored, the topic has left the engine.
        """
        partition = self._partition_of(topic, new, token)
        arguments = (
            token or self._token(),
            -(-settings.max_bytes // self.partitions),
            PARTITION_MESSAGES_MAX,
            settings.dedup_window_ms,
            settings.retention_ms,
            [_fields(one) for one in new],
        )
        keys = partition_keys(topic, partition)
        try:
            step = await self._servers.call("publish", keys, *arguments, acks=acks)
        except NotOpen:
            await self.lifecycle.open(topic)
            step = await self._servers.call("publish", keys, *arguments, acks=acks)
        _, first, known = messages.published_answer.decode(step)
        with messages.reading(changes=True):
            duplicates = dict(zip(known[::2], known[1::2], strict=True))
        return [
            Published(
                msg_id=messages.message_id(partition, f"{duplicates.get(place, first + place - 1):016d}"),
                partition=partition,
                duplicate=place in duplicates,
            )
            for place in range(1, len(new) + 1)
        ]

    def _partition_of(self, topic: str, new: Sequence[NewMessage], token: str) -> int:
        """The one partition of all these messages. A repeat with the same token finds the first call in the same one."""
        bound = {
            one.partition % self.partitions if one.key else stable_hash(one.dedup_id) % self.partitions
            for one in new
            if one.key or one.dedup_id
        }
        if len(bound) > 1:
            raise Refused(
                "crosses_slots",
                "the messages of one call must be in one partition of the topic: publish those with other keys in separate calls",
            )
        if bound:
            return bound.pop()
        if token:
            return stable_hash(token) % self.partitions
        first = next(self._next)
        turns = ((first + turn) % self.partitions for turn in range(self.partitions))
        can_use = self._servers.health.can_use
        return next((one for one in turns if can_use(partition_keys(topic, one)[0])), first % self.partitions)

    def _token(self) -> str:
        return f"{self._tokens}{next(self._token_numbers):x}"

    # ------------------------------------------------------------------ consume

    async def consume(
        self,
        topic: str,
        group: str,
        settings: TopicSettings,
        *,
        visibility_ms: int,
        max_messages: int = 1,
        max_per_key: int = 1,
        attempt_id: str = "",
        timeout_ms: int = 0,
        acks: Acks = "primary",
    ) -> Answer:
        """Take messages of one partition; wait up to `timeout_ms` for the first one. The group is created if it is missing.

        The answer is empty with `closed`, at once, when the topic has left the engine, and nothing of the group is left here; or when the
        log has no such group.

        Raises:
            GroupDeleted: while the call waited.
            EngineAway: some partitions could not be used until the end, and the others had nothing; or none can be used.
        """
        polls = self._polls_of(topic, group)
        attempt = attempt_id or OWN_ATTEMPT + self._token()
        until = asyncio.get_running_loop().time() + timeout_ms / 1000
        has_looked = False

        async def take(partition: int) -> Consumed:
            keys = partition_keys(topic, partition) + group_keys(topic, partition, group)
            arguments = (
                for_deliveries(settings),
                attempt,
                visibility_ms,
                max_messages,
                max_per_key,
                BYTES_PER_CONSUME_MAX,
                self._node,
            )
            try:
                try:
                    step = await self._servers.call("consume", keys, *arguments, acks=acks)
                except NoGroup:
                    if await self.lifecycle.is_deleted(topic, group):
                        if has_looked:
                            raise GroupDeleted from None
                        return Consumed([], CLOSED, None, False)
                    await self.put_group(topic, group)
                    step = await self._servers.call("consume", keys, *arguments, acks=acks)
            except (NoGroup, Closed):
                return Consumed([], CLOSED, None, False)
            return consumed(partition, step)

        async def look(partition: int) -> Consumed:
            # The step may take messages although its caller has gone.
            taking = asyncio.ensure_future(take(partition))
            try:
                return await asyncio.shield(taking)
            except asyncio.CancelledError:
                giving_back = self._tasks.spawn("engine", self._give_back_taken(topic, group, taking, settings))
                self._giving_back.add(giving_back)
                giving_back.add_done_callback(self._giving_back.discard)
                raise

        polls.users += 1
        try:
            if timeout_ms:
                # Without a confirmation in time, it looks once.
                heard_by = min(until, asyncio.get_running_loop().time() + LISTEN_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(heard_by):
                        await polls.listen(self._wakeups)
            first = await self._partition_of_attempt(topic, group, attempt_id) if attempt_id else None
            found = await polls.look_at_all(look, first, shares=not attempt_id, waits=timeout_ms > 0)
            has_looked = True
            if not found.messages and found.empty_reason != CLOSED and timeout_ms:
                found = await polls.wait(look, until, found.empty_reason)
        finally:
            polls.users -= 1
        return Answer(found.messages, found.empty_reason)

    async def _give_back_taken(self, topic: str, group: str, taking: asyncio.Future[Consumed], settings: TopicSettings) -> None:
        # If the engine is away, they come back when their visibility ends.
        with contextlib.suppress(Refused, GroupDeleted):
            found = await taking
            await self.give_back(topic, group, {one.msg_id: one.receipt for one in found.messages}, settings)

    async def _partition_of_attempt(self, topic: str, group: str, attempt_id: str) -> int | None:
        """The partition that an earlier call with this attempt_id got messages of; None: there is none, or its server is away. Then what
        that call got comes back when its visibility ends, and the partitions on other servers go on."""

        async def has(partition: int) -> bool:
            handouts = group_keys(topic, partition, group)[HANDOUTS]
            if not self._servers.health.can_use(handouts):
                return False
            return await self._servers.read(handouts, b"HGET", handouts.encode(), b"a" + attempt_id.encode()) is not None

        found = await asyncio.gather(*map(has, range(self.partitions)))
        return found.index(True) if True in found else None

    def waiting(self, topic: str, group: str) -> int:
        """Consumes of this process that wait for the group."""
        polls = self._polls.get((topic, group))
        return 0 if polls is None else polls.waiting

    def _servers_were_asked(self) -> None:
        for polls in self._polls.values():
            polls.servers_were_asked()

    def _polls_of(self, topic: str, group: str) -> Polls:
        name = (topic, group)
        polls = self._polls.pop(name, None) or Polls(topic, group, self.partitions, self._servers)
        self._polls[name] = polls
        if len(self._polls) > POLLS_MAX:
            idle = next((one for one, polls in self._polls.items() if not polls.users and one != name), None)
            if idle is not None:
                self._forget(*idle)
        return polls

    def _forget(self, topic: str, group: str) -> None:
        polls = self._polls.pop((topic, group), None)
        if polls is not None:
            polls.is_listening = False
            self._wakeups.forget(polls.channels, polls)

    async def put_group(self, topic: str, group: str, *, start: str = "first", acks: Acks = "primary") -> tuple[bool, int]:
        """See `Lifecycle.put_group`."""
        return await self.lifecycle.put_group(topic, group, start, acks)


def _fields(new: NewMessage) -> str | tuple[str, str, str, int, str]:
    try:
        value = new.value.decode()
    except UnicodeDecodeError:
        raise Refused("invalid", "`value` is not UTF-8", field="value") from None
    if not (new.key or new.headers or new.delay_ms or new.dedup_id):
        return value
    return value, new.key, new.headers.decode(), new.delay_ms, new.dedup_id
