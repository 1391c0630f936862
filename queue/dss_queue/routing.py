"""Which engine carries out a call on messages: the replicated log, or Valkey or Redis (the engine `redis`).

Theory of operation. The log says on which engine a topic is (core/engines.py), and a node knows it as of the entry that it has applied
last. A node that lags behind may ask the wrong engine, which then sends it back:

- The log refuses what belongs to the engine (`on_engine`), also a consume of a topic that leaves, unless the node says that it has looked
  on the engine first. The node has applied this refusal, so it knows better by then.
- A partition of the engine that is closed takes no messages, and one that does not exist is created only if the log, read at that moment,
  has the topic there. The node reads the log and chooses again.
- While a topic leaves, the log refuses messages until a node has closed all partitions and said so (`EngineClosed`). So a key never has
  messages that go to the engine after some went to the log, however far the nodes are behind.

A topic that moves is delivered in the order in which it was published. While it comes to the engine, a group gets what it has not finished
in the log first. While it leaves, a group gets what it has not finished on the engine first. A topic cannot leave before the log has
nothing left from before.

Groups are in the log first, and then on the engine, before the call that creates one is answered: the engine deletes a message when all
groups that it knows have finished it.

A topic that was never on the engine does not come here: its calls go to the log as soon as one attribute has been looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

import msgspec

from dss_api.errors import Refused
from dss_api.request_id import RequestId
from dss_api.result import Result
from dss_queue.answers import Published
from dss_queue.core.broker import Broker
from dss_queue.core.commands import Consume, ConsumeRuns, NewMessage, Publish, TopicSettings
from dss_queue.core.engines import ConsumeAfterEngine, EngineClosed, EngineUse
from dss_queue.core.group import Group, was_deleted
from dss_queue.core.records import message_id
from dss_queue.core.topic import Topic
from dss_queue.core.topic_commands import CreateGroup
from dss_queue.engine_service import EngineService
from dss_queue.redis_engine.errors import Closed, EngineAway, GroupDeleted
from dss_queue.redis_engine.messages import CLOSED, OF_REQUEST, OWN_ATTEMPT
from dss_raft.replication.client_requests import ClientRequests
from dss_raft.replication.commands import Command

if TYPE_CHECKING:
    from dss_queue.core.sqs_queues import PublishToQueues
    from dss_queue.redis_engine.engine import Answer
    from dss_raft.node import Node

SERVICE = "queue.routing"
#: The log's refusal of a call that belongs to the engine. Clients never get it.
ON_ENGINE = "on_engine"
#: An engine sends a call back when the topic has just moved. A call that is sent back more often has met a fault.
ROUNDS_MAX = 100
#: A topic that leaves: a consume that waits for the engine looks this often whether its group has anything left there.
LEAVING_LOOK_MS = 500
#: A group that has nothing left on the engine that its topic leaves may get something by a redrive: look again after this time.
FINISHED_S = 1.0
#: Groups that have nothing left on the engine; the latest ones.
REMEMBERED_MAX = 16_384
#: Topics on the engine that this node used last; engine_numbers.py reads them.
USED_MAX = 1_000

K = TypeVar("K")
V = TypeVar("V")


class Stay(NamedTuple):
    """A topic that has messages on the engine, as the log says at one moment."""

    topic: str
    use: EngineUse
    #: what the engine calls it
    name: str
    settings: TopicSettings


class Changed(Exception):
    """A consume has waited on the engine: the topic or the group may have changed meanwhile."""


class Routing:
    """See the module. One for each node.

    Args:
        service: the engine of this node.
    """

    def __init__(self, node: Node, service: EngineService) -> None:
        self.node = node
        self.service = service
        self._broker = cast(Broker, node.machine("queue"))
        #: by incarnation: closings of partitions that run
        self._closing: dict[int, asyncio.Task[None]] = {}
        #: groups that have nothing left on the engine that their topic leaves, until when
        self._finished: dict[tuple[int, str], float] = {}
        #: topics of which this node has asked the engine; the latest ones, in this order
        self.used: dict[str, None] = {}
        #: consumes that wait on the engine, by what the log said of their topic, and by topic and group
        self._waits: dict[tuple[EngineUse, str, str], dict[asyncio.Timeout, None]] = {}
        self._is_stopping = False
        node.on_upkeep(self._look_at_waits)
        node.services[SERVICE] = self

    def topic(self, name: str) -> Topic | None:
        """A topic as this node knows it."""
        return self._broker.topics.get(name)

    def stay(self, topic: Topic | None) -> Stay | None:
        """What a topic has on the engine; None: nothing."""
        if topic is None or topic.engine is None:
            return None
        return Stay(topic.name, topic.engine, self.service.name_of(topic), self.service.settings_of(topic))

    # ------------------------------------------------------------------ publish

    async def publish(self, command: Publish | PublishToQueues, once: RequestId | None = None) -> Result | list[Published]:
        """Store messages of one topic.

        Returns:
            The result of the log, or what the engine has stored.

        Raises:
            Refused: see `RedisEngine.publish`; `engine_away`.
        """
        name = command.messages[0].topic
        logged = 0
        for _ in range(ROUNDS_MAX):
            topic = self.topic(name)
            stay = self.stay(topic)
            if topic is not None and stay is not None and not self._is_logged(_part(once, logged)):
                if stay.use.is_leaving and not stay.use.is_closed:
                    await self._close(stay)
                    continue
                if not stay.use.is_leaving or once is not None:
                    # A repeat of a publish before the topic left gets the answer of the first one.
                    try:
                        return await self._publish_on_engine(topic, stay, command.messages, once)
                    except Closed:
                        if not stay.use.is_leaving:
                            await self.node.read_index()
                            continue
            result = await self.node.submit(command, once=_part(once, logged))
            if result.code != ON_ENGINE:
                return result
            logged += 1
        raise _sent_back(name)

    async def submit(self, command: Command, once: RequestId | None = None) -> Result:
        """Carry out a command of the log that also stores messages, in any topics.

        Returns:
            Its result. The code is `ON_ENGINE` if one of the topics has its messages on the engine: nothing was done.

        Raises:
            Refused: `engine_away`: one of the topics leaves the engine.
        """
        for logged in range(ROUNDS_MAX):
            result = await self.node.submit(command, once=_part(once, logged))
            if result.code != ON_ENGINE:
                return result
            stay = self.stay(self.topic(result.body["topic"]))
            if stay is None or self._is_logged(_part(once, logged + 1)):
                continue
            if not stay.use.is_leaving:
                return result
            await self._close(stay)
        raise _sent_back(result.body["topic"])

    def _is_logged(self, once: RequestId | None) -> bool:
        """Whether the log has the answer to a request: it was made before the topic moved, or by a node that did not know of it."""
        return once is not None and self.node.machine(ClientRequests.name).knows(once.session, once.number, once.part)

    async def _publish_on_engine(
        self, topic: Topic, stay: Stay, messages: Sequence[NewMessage], once: RequestId | None
    ) -> list[Published]:
        engine = self.service.engine()
        _remember(self.used, stay.topic, None, USED_MAX)
        known = self._known(topic, messages) if topic.dedup else {}
        new = [one for place, one in enumerate(messages) if place not in known] if known else messages
        stored: list[Published] = []
        if new:
            token = "" if once is None else _token(once)
            stored = await engine.publish(stay.name, new, stay.settings, acks=stay.settings.acks, token=token)
        if not known:
            return stored
        rest = iter(stored)
        return [known[place] if place in known else next(rest) for place in range(len(messages))]

    def _known(self, topic: Topic, messages: Sequence[NewMessage]) -> dict[int, Published]:
        """Those of these messages that were published in the log before the topic moved, by their place."""
        known: dict[int, Published] = {}
        after_ms = self.node.now_ms() - topic.messages.settings.dedup_window_ms
        for place, one in enumerate(messages):
            found = topic.dedup.get(one.dedup_id)
            if found is not None and found[2] > after_ms:
                known[place] = Published(msg_id=message_id(found[0]), partition=found[1], duplicate=True)
        return known

    # ------------------------------------------------------------------ consume

    async def take(self, command: Consume, once: RequestId | None = None) -> Result | Answer:
        """Carry out a consume.

        Returns:
            The result of the log, or what the engine gave.

        Raises:
            Refused: `engine_away`, `unknown_outcome`.
        """
        until = asyncio.get_running_loop().time() + command.timeout_ms / 1000
        logged = 0
        for _ in range(ROUNDS_MAX):
            topic = self.topic(command.topic)
            stay = self.stay(topic)
            if topic is not None and stay is not None:
                if command.group not in topic.groups:
                    refused = await self._create_group(stay, command)
                    if refused is not None:
                        return refused
                    continue
                if await self._is_next(stay, command.group):
                    try:
                        answer = await self._take_on_engine(stay, command, until, once)
                    except Changed:
                        # A group that is deleted while the call waits is not created again.
                        command = msgspec.structs.replace(command, create=False)
                        continue
                    if answer is not None:
                        return answer
                    continue
            command = msgspec.structs.replace(command, timeout_ms=_left_ms(until))
            of_log = command if stay is None or not stay.use.is_leaving else _after_engine(command, stay.use)
            result = await self.node.submit(of_log, wait_ms=command.timeout_ms, once=_part(once, logged))
            if result.code != ON_ENGINE:
                return result
            logged += 1
            command = msgspec.structs.replace(command, create=False)
        raise _sent_back(command.topic)

    async def _create_group(self, stay: Stay, command: Consume) -> Result | None:
        """Create the group of a consume in the log, and then on the engine. Returns a refusal if that is not possible."""
        if not command.create:
            return was_deleted()
        self.service.require_ready()
        made = await self.node.submit(CreateGroup(topic=command.topic, group=command.group))
        if made.code:
            return made
        with suppress(Closed):
            await self.put_group(stay, command.group)
        return None

    async def put_group(self, stay: Stay, group_name: str, start: str = "first") -> int:
        """Put a group of the log on the engine. Returns how many messages it has to finish there.

        Raises:
            Closed: the topic has left the engine.
        """
        self.has_more(stay, group_name)
        return (await self.service.engine().put_group(stay.name, group_name, start=start, acks=stay.settings.acks))[1]

    async def _is_next(self, stay: Stay, group_name: str) -> bool:
        """Whether the next messages of a group may be on the engine."""
        if not stay.use.is_leaving:
            group = self._group(stay.topic, group_name)
            return group is not None and not group.backlog.pending
        await self._close(stay)
        return self._finished.get((stay.use.incarnation, group_name), 0.0) <= asyncio.get_running_loop().time()

    async def _take_on_engine(self, stay: Stay, command: Consume, until: float, once: RequestId | None) -> Answer | None:
        """What the engine gives; None: the group has nothing left there, or the topic had left before this node knew it.

        Raises:
            Changed: see there.
        """
        engine = self.service.engine()
        _remember(self.used, stay.topic, None, USED_MAX)
        self._require_running()
        timeout_ms = _left_ms(until)
        if stay.use.is_leaving:
            timeout_ms = min(timeout_ms, LEAVING_LOOK_MS)
        look_until = asyncio.get_running_loop().time() + timeout_ms / 1000
        interrupt = asyncio.timeout(None)
        key = (stay.use, command.topic, command.group)
        waits = self._waits.setdefault(key, {})
        waits[interrupt] = None
        try:
            async with interrupt:
                answer = await engine.consume(
                    stay.name,
                    command.group,
                    stay.settings,
                    visibility_ms=command.visibility_ms,
                    max_messages=command.max_messages,
                    max_per_key=command.max_per_key if isinstance(command, ConsumeRuns) else 1,
                    attempt_id=command.attempt_id or ("" if once is None else OWN_ATTEMPT + _token(once)),
                    timeout_ms=timeout_ms,
                    acks=stay.settings.acks,
                )
        except GroupDeleted:
            raise Changed from None
        except EngineAway:
            if stay.use.is_leaving and _left_ms(until) and asyncio.get_running_loop().time() >= look_until:
                # It has waited where it could.
                raise Changed from None
            raise
        except TimeoutError:
            if not interrupt.expired():
                raise
            self._require_running()
            raise Changed from None
        finally:
            waits.pop(interrupt, None)
            if not waits and self._waits.get(key) is waits:
                del self._waits[key]
        if answer.empty_reason == CLOSED:
            if stay.use.is_leaving:
                finished_until = asyncio.get_running_loop().time() + FINISHED_S
                _remember(self._finished, (stay.use.incarnation, command.group), finished_until)
            else:
                await self.node.read_index()
            return None
        if not answer.messages and stay.use.is_leaving and _left_ms(until):
            raise Changed
        return answer

    def _look_at_waits(self) -> None:
        """Interrupt the waits on the engine whose topic or group has changed."""
        for key in list(self._waits):
            use, topic_name, group_name = key
            topic, group = self.topic(topic_name), self._group(topic_name, group_name)
            if topic is not None and topic.engine == use and group is not None and (use.is_leaving or not group.backlog.pending):
                continue
            self._interrupt(key)

    def _interrupt(self, key: tuple[EngineUse, str, str]) -> None:
        now = asyncio.get_running_loop().time()
        for interrupt in self._waits.pop(key):
            interrupt.reschedule(now)

    def withdraw(self) -> None:
        """Before a clean stop: end the waits on the engine, so that nothing is delivered to callers that have gone."""
        self._is_stopping = True
        for key in list(self._waits):
            self._interrupt(key)

    def _require_running(self) -> None:
        if self._is_stopping:
            raise Refused("stopping", "this node is stopping")

    def _group(self, topic_name: str, group_name: str) -> Group | None:
        topic = self.topic(topic_name)
        return None if topic is None else topic.groups.get(group_name)

    def has_more(self, stay: Stay, group_name: str) -> None:
        """The group may have more to finish on the engine."""
        self._finished.pop((stay.use.incarnation, group_name), None)

    async def _close(self, stay: Stay) -> None:
        """No more messages are published on the engine that the topic leaves, and the log knows it.

        Raises:
            Refused: `engine_away`, or a refusal of the log.
        """
        incarnation = stay.use.incarnation
        if stay.use.is_closed:
            return
        closing = self._closing.get(incarnation)
        if closing is None:
            closing = self._closing[incarnation] = asyncio.ensure_future(self._close_now(stay))
            closing.add_done_callback(lambda done: self._has_closed(incarnation, done))
        # Others may wait for it.
        await asyncio.shield(closing)

    async def _close_now(self, stay: Stay) -> None:
        await self.service.administration().close(stay.name)
        await self.node.submit(EngineClosed(topic=stay.topic, incarnation=stay.use.incarnation))

    def _has_closed(self, incarnation: int, done: asyncio.Task[None]) -> None:
        del self._closing[incarnation]
        if not done.cancelled():
            # Its callers may have gone.
            done.exception()


def uses_engine(node: Node, topic_name: str) -> bool:
    """Whether a topic has, or may have, messages on the engine, as this node knows."""
    topic = cast(Broker, node.machine("queue")).topics.get(topic_name)
    return topic is not None and topic.engine is not None


def abandoned_by(node: Node, topic_name: str) -> list[int]:
    """The incarnations of topics that had this name, whose keys on the engine are not deleted yet; the latest one is the last."""
    abandoned = cast(Broker, node.machine("queue")).registry.abandoned
    return sorted(incarnation for incarnation, name in abandoned.items() if name == topic_name)


def routing_of(node: Node) -> Routing:
    """The routing of this node."""
    return cast(Routing, node.services[SERVICE])


def _left_ms(until: float) -> int:
    return max(0, round((until - asyncio.get_running_loop().time()) * 1000))


def _after_engine(command: Consume, use: EngineUse) -> ConsumeAfterEngine:
    """The same consume, with what this node has seen: the group has nothing left on the engine."""
    fields = {name: getattr(command, name) for name in Consume.__struct_fields__}
    per_key = command.max_per_key if isinstance(command, ConsumeRuns) else 1
    return ConsumeAfterEngine(**fields, max_per_key=per_key, incarnation=use.incarnation)


def _part(once: RequestId | None, number: int) -> RequestId | None:
    """The id of a command of a request that has had `number` others: the log answers each one of them once."""
    return once if once is None or not number else msgspec.structs.replace(once, part=once.part + number)


def _token(once: RequestId) -> str:
    """Of a request: the engine carries out a publish with the same token once."""
    return OF_REQUEST.join((once.session, str(once.number), str(once.part)))


def _remember(known: dict[K, V], key: K, value: V, limit: int = REMEMBERED_MAX) -> None:
    known.pop(key, None)
    known[key] = value
    if len(known) > limit:
        del known[next(iter(known))]


def _sent_back(topic: str) -> Refused:
    return Refused("unknown_outcome", f"topic {topic!r} moved between engines during the call: repeat it")
