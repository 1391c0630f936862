"""Operations on whole topics and groups: what both engines say, or do. See routing.py.

The log comes first. By its answer, this node knows whether the topic has a part on the engine. A call that needs the engine while that is
away is refused before anything is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from dss_api.errors import Refused
from dss_api.request_id import RequestId
from dss_api.result import Result
from dss_queue.answers import GroupStats, PeekedMessage
from dss_queue.core.commands import PeekQuery, Purge, Redrive
from dss_queue.core.topic_commands import DeleteDead, DeleteGroup, DeleteTopic, PutGroup
from dss_queue.engine_endings import MARK
from dss_queue.redis_engine.errors import Closed
from dss_queue.routing import Routing, Stay, abandoned_by, routing_of, uses_engine

if TYPE_CHECKING:
    from dss_queue.redis_engine.administration import Administration
    from dss_queue.redis_engine.views import EngineTopicStats
    from dss_raft.node import Node

OfTopic = Redrive | Purge | DeleteDead | PutGroup | DeleteGroup

#: Topics whose statistics are read at the same time.
TOPICS_AT_ONCE = 16
_ADDED = ("messages", "bytes", "published", "dead")
#: Of an answer about one topic.
_ADDED_OF_ONE = ("expired", "publish_per_second")
_ADDED_OF_GROUPS = (
    "ready",
    "delayed",
    "in_flight",
    "dead",
    "waiters",
    "delivered",
    "redelivered",
    "acked",
    "deliver_per_second",
    "ack_per_second",
)


# ------------------------------------------------------------------ queries


async def add_statistics(node: Node, lines: Sequence[dict[str, Any]], group: str) -> None:
    """Add to lines about topics what is on the engine.

    While the engine is away, a line has what the log knows, and says so.

    Args:
        lines: with `groups` if they are about these, too; with `ready` for the messages that are ready for `group`.
    """
    routing = routing_of(node)
    stays = [(line, stay) for line in lines if (stay := routing.stay(routing.topic(line["topic"]))) is not None]
    for first in range(0, len(stays), TOPICS_AT_ONCE):
        await asyncio.gather(*(_add(routing, line, stay, group) for line, stay in stays[first : first + TOPICS_AT_ONCE]))


async def _add(routing: Routing, line: dict[str, Any], stay: Stay, group_name: str) -> None:
    try:
        views, now_ms = routing.service.views(), routing.node.now_ms()
        groups: list[GroupStats] = []
        if "groups" in line:
            topic, groups = await views.topic_stats(stay.name, now_ms)
        else:
            topic = await views.topic_line(stay.name, now_ms)
            if "ready" in line and group_name:
                groups = [await views.group_stats(stay.name, group_name, now_ms)]
    except Refused as refused:
        state = routing.service.state
        line["engine"] = {"state": "away" if state == "ready" else state, "detail": refused.detail}
        return
    line["engine"] = {"state": "ready", "detail": ""}
    add_numbers(line, topic, groups)
    if "ready" in line:
        line["ready"] += sum(group.ready for group in groups)


def add_numbers(line: dict[str, Any], topic: EngineTopicStats, groups: Iterable[GroupStats]) -> None:
    """Add to a line about a topic, and to its `groups` if it has them, what is on the engine."""
    for name in (*_ADDED, *(name for name in _ADDED_OF_ONE if name in line)):
        line[name] += getattr(topic, name)
    line["oldest_age_ms"] = max(line["oldest_age_ms"], topic.oldest_age_ms)
    if "groups" in line:
        line["groups"] = _merged(line["groups"], groups)


def _merged(lines: list[dict[str, Any]], groups: Iterable[GroupStats]) -> list[dict[str, Any]]:
    """Groups of the log with what the engine says about those of the same name. The log has all groups."""
    of_engine = {group.group: group for group in groups}
    for line in lines:
        group = of_engine.get(line["group"])
        if group is None:
            continue
        for name in _ADDED_OF_GROUPS:
            line[name] += getattr(group, name)
        line["oldest_age_ms"] = max(line["oldest_age_ms"], group.oldest_age_ms)
        reasons = {*line["dead_total"], *group.dead_total}
        line["dead_total"] = {why: line["dead_total"].get(why, 0) + group.dead_total.get(why, 0) for why in sorted(reasons)}
    return lines


async def peek(node: Node, query: PeekQuery, logged: list[dict[str, Any]]) -> list[PeekedMessage]:
    """Messages of both, in the order in which they are delivered.

    Args:
        logged: those in the log.

    Raises:
        Refused: `engine_away`.
    """
    routing = routing_of(node)
    stay = routing.stay(routing.topic(query.topic))
    of_log = [msgspec.convert(line, PeekedMessage) for line in logged]
    if stay is None or (query.msg_id is not None and not query.msg_id.startswith(MARK)):
        return of_log
    of_engine = await routing.service.views().peek(
        stay.name, query.group, dead=query.dead, msg_id=query.msg_id, dedup_id=query.dedup_id, limit=query.limit
    )
    both = of_engine + of_log if stay.use.is_leaving else of_log + of_engine
    return both[: query.limit]


# ------------------------------------------------------------------ changes


class Rest(NamedTuple):
    """What is to be done on the engine after the log."""

    routing: Routing
    stay: Stay

    @property
    def administration(self) -> Administration:
        return self.routing.service.administration()


async def _in_log(node: Node, command: OfTopic, once: RequestId | None) -> tuple[Result, Rest | None]:
    """The result of the log, and what the topic has on the engine as of then.

    Raises:
        Refused: `engine_away`: this node knows that there is a rest, so nothing was done.
    """
    if uses_engine(node, command.topic):
        routing_of(node).service.require_ready()
    result = await node.submit(command, once=once)
    if result.code or not uses_engine(node, command.topic):
        return result, None
    routing = routing_of(node)
    stay = routing.stay(routing.topic(command.topic))
    return result, None if stay is None else Rest(routing, stay)


def _counted(result: Result, name: str, count: int) -> Result:
    """The result of the log with the number of messages on the engine added."""
    return Result({**result.body, name: result.body[name] + count}, "", result.index)


async def redrive(node: Node, command: Redrive, once: RequestId | None = None) -> Result:
    """Return dead letters of both to the queue."""
    result, rest = await _in_log(node, command, once)
    if rest is None or (command.msg_id is not None and not command.msg_id.startswith(MARK)):
        return result
    acks = rest.stay.settings.acks
    count = await rest.administration.redrive(rest.stay.name, command.group, command.msg_id, acks=acks)
    rest.routing.has_more(rest.stay, command.group)
    return _counted(result, "redriven", count)


async def purge(node: Node, command: Purge, once: RequestId | None = None) -> Result:
    """Delete the messages of both, or the dead letters."""
    result, rest = await _in_log(node, command, once)
    if rest is None:
        return result
    name, administration, acks = rest.stay.name, rest.administration, rest.stay.settings.acks
    if not command.dead:
        return _counted(result, "purged", await administration.purge(name, acks=acks))
    count = 0
    for group in [command.group] if command.group else await administration.groups(name):
        count += await administration.purge_dead(name, group, acks=acks)
    return _counted(result, "purged", count)


async def delete_dead(node: Node, command: DeleteDead) -> Result:
    """Delete a dead letter where it is."""
    result, rest = await _in_log(node, command, None)
    if rest is None or not command.msg_id.startswith(MARK):
        return result
    acks = rest.stay.settings.acks
    is_deleted = await rest.administration.delete_dead(rest.stay.name, command.group, command.msg_id, acks=acks)
    return Result({"deleted": is_deleted}, "", result.index)


async def put_group(node: Node, command: PutGroup, once: RequestId | None = None) -> Result:
    """Create a group in both.

    Raises:
        Refused: `not_on_engine`: a topic on the engine has no messages that the log knows.
    """
    if command.msg_id is not None and uses_engine(node, command.topic):
        detail = "a group of a topic on the engine `redis` cannot start with a message: give `start`"
        raise Refused("not_on_engine", detail, field="msg_id")
    result, rest = await _in_log(node, command, once)
    if rest is None:
        return result
    pending = 0
    with suppress(Closed):
        pending = await rest.routing.put_group(rest.stay, command.group, command.start)
    return _counted(result, "pending", pending)


async def delete_group(node: Node, command: DeleteGroup, once: RequestId | None = None) -> Result:
    """Delete a group of both."""
    result, rest = await _in_log(node, command, once)
    if rest is not None:
        await rest.administration.delete_group(rest.stay.name, command.group)
    return result


async def delete_topic(node: Node, command: DeleteTopic, once: RequestId | None = None) -> Result:
    """Delete a topic. The leader deletes its keys on the engine a moment later, or when the engine is back."""
    count = 0
    if uses_engine(node, command.topic):
        routing = routing_of(node)
        stay = routing.stay(routing.topic(command.topic))
        # The number is for people: the topic can be deleted without it.
        with suppress(Refused):
            if stay is not None:
                count = await routing.service.views().message_count(stay.name)
    # A repeat of this call does not know whether the last one is closed.
    closed = abandoned_by(node, command.topic)[:-1]
    result = await node.submit(command, once=once)
    if result.code or not result.body["deleted"]:
        return result
    # A node that does not know of the deletion would publish where the leader deletes everything.
    for incarnation in abandoned_by(node, command.topic):
        if incarnation in closed:
            continue
        service = routing_of(node).service
        with suppress(Refused):
            await service.administration().close(service.name_in(incarnation, command.topic))
    return _counted(result, "purged", count)
