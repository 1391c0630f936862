"""The leader's upkeep of topics on the engine `redis`: what no call waits for.

- A topic with something due is swept: timeouts, delays, retention. A look at a topic without calls costs one call for each partition, and
  the next look comes when something is due, after `PAUSE_S_MAX` at the latest. Consumers do not wait for it: their calls see what is due.
- It closes the partitions of a topic that leaves, and proposes `EngineClosed`. When nothing of the topic is left, not even dead letters, it
  proposes `EngineLeft`. If the topic had publishes with a `request_id`, it waits until the engine may have forgotten them: the log does not
  know them, and would store the messages of a repeat again.
- It deletes the keys of abandoned incarnations. A failover soon after may bring some of them back, so it deletes them once more after
  `AGAIN_S`, and then proposes `EngineForgotten`.
- Groups that only the log or only the engine has, because a node stopped in between, are put right.

Everything may be repeated, by this leader or the next one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from dss_api.errors import Refused
from dss_api.supervised import report_failure
from dss_queue.core.broker import Broker
from dss_queue.core.engines import FORGOTTEN_PER_COMMAND_MAX, EngineClosed, EngineForgotten, EngineLeft
from dss_queue.core.topic import Topic
from dss_queue.engine_service import EngineService
from dss_queue.redis_engine.errors import Closed

if TYPE_CHECKING:
    from dss_raft.node import Node

#: Between two rounds. A round visits the topics whose turn has come, and all that leave.
ROUND_S = 1.0
#: Between two looks at a topic.
PAUSE_S_MIN, PAUSE_S_MAX = 1.0, 30.0
#: For how long the engine remembers a publish with a `request_id`.
REMEMBERED_S = 60.0
#: Topics that are looked at at the same time. Each look is a call for each partition.
AT_ONCE_MAX = 8
#: Between the deletion of keys and another look at them. A replica that takes over within this time may lack the deletion.
AGAIN_S = 60.0
#: Incarnations that one round deletes.
DELETED_PER_ROUND_MAX = min(100, FORGOTTEN_PER_COMMAND_MAX)


class EngineUpkeep:
    """See the module. Created before the node starts."""

    def __init__(self, node: Node, service: EngineService) -> None:
        self._node = node
        self._service = service
        self._broker = cast(Broker, node.machine("queue"))
        #: when the next round may begin, in loop time
        self._next_s = 0.0
        self._round: asyncio.Task[None] | None = None
        #: incarnation -> when the topic is looked at next, and the pause before
        self._plans: dict[int, tuple[float, float]] = {}
        #: incarnation of a topic that leaves -> when this leader first saw that the engine takes no more messages, in loop time
        self._closed_s: dict[int, float] = {}
        #: abandoned incarnation -> when its keys were deleted, in loop time
        self._deleted_s: dict[int, float] = {}
        if service.state != "none":
            node.on_upkeep(self._tick)

    def _tick(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s < self._next_s or (self._round is not None and not self._round.done()):
            return
        self._next_s = now_s + ROUND_S
        if not self._node.is_leader:
            self._plans.clear()
            self._closed_s.clear()
            self._deleted_s.clear()
        elif self._service.is_usable:
            self._round = self._service.tasks.spawn("engine", self._run_round(now_s))

    async def _run_round(self, now_s: float) -> None:
        topics = [topic for topic in self._broker.topics.values() if topic.engine is not None and self._is_due(topic, now_s)]
        abandoned = self._broker.registry.abandoned
        self._deleted_s = {one: at_s for one, at_s in self._deleted_s.items() if one in abandoned}
        due = [one for one in abandoned.items() if self._deleted_s.get(one[0], now_s - AGAIN_S) <= now_s - AGAIN_S]
        if self._service.state != "ready":
            # Keys are deleted on all servers, or again later.
            due = []
        turns = asyncio.Semaphore(AT_ONCE_MAX)
        deleted: list[int] = []

        async def one(work: Coroutine[Any, Any, None]) -> None:
            async with turns:
                try:
                    await work
                except Refused:
                    # A server is away: a later round tries again.
                    return
                except Exception as error:
                    # Others do not wait for this one.
                    report_failure("engine", error)

        works = [self._look_at(topic) for topic in topics]
        works += [self._delete(incarnation, topic, deleted) for incarnation, topic in due[:DELETED_PER_ROUND_MAX]]
        await asyncio.gather(*map(one, works))
        if deleted:
            self._node.propose_as_leader(EngineForgotten(incarnations=deleted))

    def _is_due(self, topic: Topic, now_s: float) -> bool:
        assert topic.engine is not None
        if topic.engine.is_leaving:
            return True
        plan = self._plans.get(topic.engine.incarnation)
        if plan is None:
            # A new leader does not look at all topics at once.
            pause_s = random.uniform(PAUSE_S_MIN, PAUSE_S_MAX)
            self._plans[topic.engine.incarnation] = (now_s + pause_s, pause_s)
            return False
        return plan[0] <= now_s

    async def _look_at(self, topic: Topic) -> None:
        use = topic.engine
        if use is None:
            return
        administration, name = self._service.administration(), self._service.name_of(topic)
        if use.is_leaving:
            await administration.close(name)
            closed_s = self._closed_s.setdefault(use.incarnation, asyncio.get_running_loop().time())
            if not use.is_closed:
                self._node.propose_as_leader(EngineClosed(topic=topic.name, incarnation=use.incarnation))
        try:
            swept = await administration.sweep(name, self._service.settings_of(topic), list(topic.groups))
        except Refused:
            # A server is away. The partitions on the others were swept, and are again.
            if not use.is_leaving:
                self._plan(use.incarnation, round(PAUSE_S_MAX * 1000), did_something=False)
            raise
        if swept.has_other_groups:
            await self._align_groups(topic, name)
        if not use.is_leaving:
            self._plan(use.incarnation, swept.next_in_ms, did_something=swept.did_something)
        elif await administration.is_drained(name) and await self._has_no_repeats(name, closed_s):
            self._plans.pop(use.incarnation, None)
            self._node.propose_as_leader(EngineLeft(topic=topic.name, incarnation=use.incarnation))

    async def _has_no_repeats(self, name: str, closed_s: float) -> bool:
        """Whether the engine has forgotten all publishes with a `request_id`, so that it recognizes no repeat."""
        is_forgotten = asyncio.get_running_loop().time() - closed_s >= REMEMBERED_S
        return is_forgotten or not await self._service.administration().knows_requests(name)

    def _plan(self, incarnation: int, next_in_ms: int, *, did_something: bool) -> None:
        pause_s = PAUSE_S_MIN if did_something else min(2 * self._plans[incarnation][1], PAUSE_S_MAX)
        soon_s = max(PAUSE_S_MIN, min(next_in_ms / 1000, pause_s))
        self._plans[incarnation] = (asyncio.get_running_loop().time() + soon_s, pause_s)

    async def _align_groups(self, topic: Topic, name: str) -> None:
        """Delete the groups that the log does not have, and create those that only the log has."""
        administration = self._service.administration()
        found = await administration.groups(name)
        use = topic.engine
        # What was created on the engine was in the log before.
        await self._node.read_index()
        if use is None or self._broker.topics.get(topic.name) is not topic or topic.engine != use:
            return
        for group in found:
            if group not in topic.groups:
                await administration.delete_group(name, group)
        if not use.is_leaving:
            with suppress(Closed):
                for group in list(topic.groups):
                    await self._service.engine().put_group(name, group)

    async def _delete(self, incarnation: int, topic: str, deleted: list[int]) -> None:
        await self._service.administration().delete_topic(self._service.name_in(incarnation, topic))
        self._plans.pop(incarnation, None)
        self._closed_s.pop(incarnation, None)
        if incarnation in self._deleted_s:
            deleted.append(incarnation)
        else:
            self._deleted_s[incarnation] = asyncio.get_running_loop().time()
