"""Ends of deliveries whose messages are on the engine `redis`: ack, nack, extend, and what is given back. See routing.py.

The id of a message says which engine has it, so a topic that moves has deliveries of both. It does not say in which stay the message came
there: a node that lags behind may ask an earlier one, which does not know the message. So the node reads the log before it says that a
delivery is over, and asks again if the topic has another stay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from dss_api.errors import Refused
from dss_api.request_id import RequestId
from dss_api.result import Result
from dss_queue.answers import AckAnswer, AckResult, ExtendAnswer, NackAnswer
from dss_queue.core.commands import Ack, Extend, Nack
from dss_queue.routing import ON_ENGINE, Routing, Stay, routing_of, uses_engine

if TYPE_CHECKING:
    from dss_queue.redis_engine.endings import Nacked
    from dss_raft.node import Node

R = TypeVar("R")
C = TypeVar("C", Nack, Extend)
A = TypeVar("A", NackAnswer, ExtendAnswer)

#: The ids of the engine begin with it, those of the log with a digit.
MARK = "r"
_STALE = "stale_receipt"


def are_of_engine(msg_ids: Iterable[str]) -> bool:
    """Whether some of these messages are on the engine."""
    return any(msg_id.startswith(MARK) for msg_id in msg_ids)


async def ack(routing: Routing, command: Ack, once: RequestId | None = None, logged: Result | None = None) -> Result | AckAnswer:
    """Finish messages of a topic that is, or was, on the engine.

    Args:
        logged: what the log has answered to this command, if it was asked before.
    """
    msg_ids = command.msg_ids if command.msg_ids is not None else [command.msg_id or ""]
    stay = routing.stay(routing.topic(command.topic))
    if stay is None or not are_of_engine(msg_ids):
        logged = await routing.submit(command, once)
        if logged.code == ON_ENGINE:
            return needs_log("publish", str(logged.body["topic"]))
        stay = routing.stay(routing.topic(command.topic))
        if logged.code or stay is None or not are_of_engine(msg_ids) or logged.body["acked"]:
            return logged
        # This node did not know yet that the topic is there.
    for field in ("publish", "release"):
        if getattr(command, field):
            return needs_log(field, command.topic)
    receipts = command.receipts
    if all(msg_id.startswith(MARK) for msg_id in msg_ids):
        if command.receipt is not None:
            receipts = [command.receipt]
        results = await _ack_on_engine(routing, stay, command.group, msg_ids, receipts)
        if command.msg_ids is None:
            if results[0].code == _STALE:
                return _stale(results[0].msg_id)
            return AckAnswer(acked=results[0].acked, durability="redis", index=None)
        return AckAnswer(acked=all(one.acked for one in results), results=results, durability="redis", index=None)
    given: dict[str, str | None] = dict.fromkeys(msg_ids)
    given.update(zip(msg_ids, receipts or (), strict=False))
    of_engine = {msg_id: receipt for msg_id, receipt in given.items() if msg_id.startswith(MARK)}
    of_log = {msg_id: receipt for msg_id, receipt in given.items() if msg_id not in of_engine}
    engine_receipts = None if receipts is None else [receipt or "" for receipt in of_engine.values()]
    finishing = _ack_on_engine(routing, stay, command.group, list(of_engine), engine_receipts)
    logging = _ack_in_log(routing, command, of_log, once, logged)
    results, (others, index) = await asyncio.gather(finishing, logging)
    by_id = {one.msg_id: one for one in (*results, *others)}
    ordered = [by_id[msg_id] for msg_id in given]
    return AckAnswer(acked=all(one.acked for one in ordered), results=ordered, durability="redis", index=index)


async def _ack_on_engine(
    routing: Routing, stay: Stay, group: str, msg_ids: list[str], receipts: list[str] | None
) -> list[AckResult]:
    async def step(stay: Stay) -> list[AckResult]:
        settings = stay.settings
        return await routing.service.engine().ack(stay.name, group, msg_ids, receipts, settings, acks=settings.acks)

    return await _in_its_stay(routing, stay, step, lambda results: all(one.acked for one in results))


async def _in_its_stay(routing: Routing, stay: Stay, step: Callable[[Stay], Awaitable[R]], is_found: Callable[[R], bool]) -> R:
    """The answer of a step for the stay in which the messages are.

    Args:
        stay: as this node knows.
    """
    while True:
        answer, refusal = None, None
        try:
            answer = await step(stay)
        except Refused as refused:
            if refused.code != _STALE:
                raise
            refusal = refused
        if answer is not None and is_found(answer):
            return answer
        now = await _other_stay(routing, stay)
        if now is not None:
            stay = now
        elif answer is None:
            assert refusal is not None
            raise refusal
        else:
            return answer


async def _other_stay(routing: Routing, stay: Stay) -> Stay | None:
    """The stay of its topic that the log says now, if that is another one."""
    await routing.node.read_index()
    now = routing.stay(routing.topic(stay.topic))
    return None if now is None or now.use.incarnation == stay.use.incarnation else now


async def _ack_in_log(
    routing: Routing, command: Ack, given: dict[str, str | None], once: RequestId | None, logged: Result | None
) -> tuple[list[AckResult], int]:
    if logged is not None:
        return [AckResult(**one) for one in logged.body["results"] if one["msg_id"] in given], logged.index
    receipts = None if command.receipts is None else [receipt or "" for receipt in given.values()]
    of_log = Ack(topic=command.topic, group=command.group, msg_ids=list(given), receipts=receipts)
    result = await routing.node.submit(of_log, once=once)
    if result.code:
        raise Refused(result.code, **result.body)
    return [AckResult(**one) for one in result.body["results"]], result.index


async def on_its_engine(
    node: Node, command: C, once: RequestId | None, step: Callable[[Routing, C], Awaitable[A | None]]
) -> Result | A:
    """Carry out a command on one message where the message is: in the log, or by `step` on the engine."""
    of_engine = command.msg_id.startswith(MARK)
    if of_engine and uses_engine(node, command.topic) and (answer := await step(routing_of(node), command)) is not None:
        return answer
    result = await node.submit(command, once=once)
    if of_engine and uses_engine(node, command.topic) and (answer := await step(routing_of(node), command)) is not None:
        # This node did not know yet that the topic is there.
        return answer
    return result


async def nack(routing: Routing, command: Nack) -> NackAnswer | None:
    """Give a message back. None: nothing of the topic is on the engine.

    Raises:
        Refused: `stale_receipt`, `unknown_outcome`, `engine_away`.
    """
    stay = routing.stay(routing.topic(command.topic))
    if stay is None:
        return None

    async def step(stay: Stay) -> Nacked:
        return await routing.service.engine().nack(
            stay.name,
            command.group,
            command.msg_id,
            command.receipt,
            stay.settings,
            delay_ms=command.delay_ms,
            dead=command.dead,
            silent=command.silent,
            acks=stay.settings.acks,
        )

    nacked = await _in_its_stay(routing, stay, step, lambda nacked: nacked.nacked)
    return NackAnswer(nacked=nacked.nacked, dead=nacked.dead, durability="redis", index=None)


async def extend(routing: Routing, command: Extend) -> ExtendAnswer | None:
    """Keep a message hidden. None: nothing of the topic is on the engine.

    Raises:
        Refused: `stale_receipt`, `engine_away`.
    """
    stay = routing.stay(routing.topic(command.topic))
    if stay is None:
        return None

    async def step(stay: Stay) -> int:
        return await routing.service.engine().extend(
            stay.name,
            command.group,
            command.msg_id,
            command.receipt,
            stay.settings,
            command.visibility_ms,
            acks=stay.settings.acks,
        )

    until_ms = await _in_its_stay(routing, stay, step, lambda until_ms: True)
    return ExtendAnswer(msg_id=command.msg_id, visible_until_ms=until_ms, durability="redis", index=None)


async def give_back(routing: Routing, topic: str, group: str, receipts: dict[str, str]) -> None:
    """The consumer of these deliveries, receipts by msg_id, has gone."""
    stay = routing.stay(routing.topic(topic))
    if stay is not None:
        await routing.service.engine().give_back(stay.name, group, receipts, stay.settings)


async def ended(routing: Routing, topic: str, group: str, receipts: dict[str, str], is_overdue: bool) -> list[str]:
    """Those of these deliveries, receipts by msg_id, that have ended.

    Args:
        is_overdue: the time of some of them is over, which the engine may not have noticed yet.

    Raises:
        Refused: `engine_away`.
    """
    stay = routing.stay(routing.topic(topic))
    if stay is None:
        return list(receipts)
    if is_overdue:
        await routing.service.administration().sweep(stay.name, stay.settings, [group])
    in_flight = await routing.service.views().in_flight(stay.name, group, receipts)
    return [msg_id for msg_id in receipts if msg_id not in in_flight]


async def are_unfinished(routing: Routing, topic: str, group: str, msg_ids: Iterable[str]) -> bool:
    """Whether the group still has to finish one of these messages.

    Raises:
        Refused: `engine_away`.
    """
    stay = routing.stay(routing.topic(topic))
    if stay is None:
        return False
    for msg_id in msg_ids:
        for line in await routing.service.views().peek(stay.name, group, msg_id=msg_id):
            if line.state != "dead":
                return True
    return False


def needs_log(field: str, topic: str) -> Result:
    """The refusal of what takes effect in one step in the log only."""
    detail = f"`{field}` needs the replicated log, and topic {topic!r} is on the engine `redis`: make separate calls"
    return Result({"field": field, "detail": detail}, "not_on_engine")


def _stale(msg_id: str) -> Result:
    return Result({"detail": "the delivery is over: another consumer may have the message", "msg_ids": [msg_id]}, _STALE)
