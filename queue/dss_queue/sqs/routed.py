"""Commands about the messages of a queue, wherever they are: in the log or on the engine `redis`. What they return has one form."""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec.structs import asdict

from dss_api.errors import Refused
from dss_api.result import Result
from dss_queue import engine_endings
from dss_queue.answers import Delivered, Published
from dss_queue.core.commands import Ack, Consume, Extend, Nack, NewMessage
from dss_queue.core.sqs_queues import PublishToQueues
from dss_queue.routing import routing_of
from dss_queue.sqs.calls import Call, checked_result
from dss_queue.sqs.errors import SqsError, of_refusal


async def publish(call: Call, new: list[NewMessage]) -> list[Published | SqsError]:
    """Store messages. In the log, this is one step; on the engine, those of each partition are one.

    Raises:
        SqsError: none was stored.
    """
    try:
        return list(await _publish(call, new))
    except Refused as refusal:
        if refusal.code != "crosses_slots":
            raise of_refusal(refusal) from None
    of_partition: dict[int, list[int]] = {}
    for place, message in enumerate(new):
        of_partition.setdefault(message.partition, []).append(place)
    outcomes: dict[int, Published | SqsError] = {}

    async def publish_part(places: list[int]) -> None:
        try:
            stored: list[Published] = await _publish(call, [new[place] for place in places])
            outcomes.update(zip(places, stored, strict=True))
        except Refused as refusal:
            outcomes.update(dict.fromkeys(places, of_refusal(refusal)))

    await asyncio.gather(*map(publish_part, of_partition.values()))
    ordered = [outcomes[place] for place in range(len(new))]
    refused = [one for one in ordered if isinstance(one, SqsError)]
    if len(refused) == len(ordered):
        raise refused[0]  # nothing was stored: clients repeat the whole request
    return ordered


async def _publish(call: Call, new: list[NewMessage]) -> list[Published]:
    stored = await routing_of(call.node).publish(PublishToQueues(messages=new))
    if isinstance(stored, Result):
        return [Published(**one) for one in checked_result(stored).body["messages"]]
    return stored


async def take(call: Call, command: Consume) -> list[dict[str, Any]]:
    """Take messages.

    Raises:
        SqsError: it was refused.
    """
    taken = await routing_of(call.node).take(command)
    if isinstance(taken, Result):
        messages: list[dict[str, Any]] = checked_result(taken).body["messages"]
        return messages
    return [_delivered(one) for one in taken.messages]


def _delivered(message: Delivered) -> dict[str, Any]:
    """As the log hands it out."""
    return {**asdict(message), "value": bytes(message.value), "headers": bytes(message.headers or b"")}


async def ack(call: Call, command: Ack) -> frozenset[str]:
    """Finish messages. Returns the ids of those that other deliveries have.

    Raises:
        SqsError: it was refused.
    """
    answer = await engine_endings.ack(routing_of(call.node), command)
    if not isinstance(answer, Result):
        return frozenset(one.msg_id for one in answer.results or () if one.code)
    if checked_result(answer).code:
        return frozenset((command.msg_id or "",))
    return frozenset(one["msg_id"] for one in answer.body.get("results", ()) if one.get("code"))


async def nack(call: Call, command: Nack) -> bool:
    """Give a message back. Returns whether this delivery had it.

    Raises:
        SqsError: it was refused.
    """
    try:
        answer = await engine_endings.on_its_engine(call.node, command, None, engine_endings.nack)
    except Refused as refusal:
        return _is_over(refusal)
    if not isinstance(answer, Result):
        return answer.nacked
    return not checked_result(answer).code and bool(answer.body["nacked"])


async def extend(call: Call, command: Extend) -> bool:
    """Keep a message hidden for longer. Returns whether this delivery had it.

    Raises:
        SqsError: it was refused.
    """
    try:
        answer = await engine_endings.on_its_engine(call.node, command, None, engine_endings.extend)
    except Refused as refusal:
        return _is_over(refusal)
    return not isinstance(answer, Result) or not checked_result(answer).code


def _is_over(refusal: Refused) -> bool:
    """False for the refusal of a delivery that is over; raises any other one."""
    if refusal.code != "stale_receipt":
        raise of_refusal(refusal) from None
    return False
