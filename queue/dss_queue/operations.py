"""The operations of the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec
from msgspec import UNSET

from dss_api.errors import Refused
from dss_api.operation import Operation
from dss_api.request_id import RequestId
from dss_api.result import Result
from dss_api.rights import READ, Either, Every, locks, queue
from dss_queue import answers, both_engines, engine_endings, metrics, push
from dss_queue.admin_operations import OPERATIONS as ADMIN_OPERATIONS
from dss_queue.config import config_of
from dss_queue.core import inspection
from dss_queue.core.broker import Broker
from dss_queue.core.commands import (
    Ack,
    AckFields,
    AckRequest,
    Consume,
    ConsumeRequest,
    ConsumeRuns,
    DeliveryFields,
    Extend,
    ExtendRequest,
    MessageRequest,
    Nack,
    NewMessage,
    PeekQuery,
    Publish,
    PublishRequest,
    StatsQuery,
)
from dss_queue.core.partitions import ring
from dss_queue.delivering import count_delivered, count_structs, delivered
from dss_queue.routing import ON_ENGINE, routing_of, uses_engine

if TYPE_CHECKING:
    from dss_queue.redis_engine.engine import Answer
    from dss_raft.node import Node

_headers = msgspec.json.Encoder()
NOT_IN_FLIGHT = "the delivery is over: the message is not in flight"
_ACK_FIELDS = AckFields.__struct_fields__


# ------------------------------------------------------------------ publish


async def publish(node: Node, request: PublishRequest, once: RequestId | None = None) -> Result | answers.PublishAnswer:
    """Store messages. Answered when they are on the disks of a majority, or on the engine `redis`."""
    several = request.messages is not None
    requests: Sequence[MessageRequest | PublishRequest] = request.messages if request.messages is not None else (request,)
    messages = [_new_message(node, request.topic, one) for one in requests]
    command = Publish(messages=messages)
    if not uses_engine(node, request.topic):
        result = await node.submit(command, once=once)
        if result.code != ON_ENGINE:
            return _published_in_log(request.topic, result, several)
    stored = await routing_of(node).publish(command, once)
    if isinstance(stored, Result):
        return _published_in_log(request.topic, stored, several)
    metrics.of_topic(request.topic).published.inc(sum(not one.duplicate for one in stored))
    if several:
        return answers.PublishAnswer(messages=stored, durability="redis", index=None)
    (one,) = stored
    return answers.PublishAnswer(
        msg_id=one.msg_id, partition=one.partition, duplicate=one.duplicate, durability="redis", index=None
    )


def _published_in_log(topic: str, result: Result, several: bool) -> Result | answers.PublishAnswer:
    if result.code:
        return result
    published = result.body["messages"]
    metrics.of_topic(topic).published.inc(sum(not one["duplicate"] for one in published))
    if several:
        return answers.PublishAnswer(messages=[answers.Published(**one) for one in published], index=result.index)
    return answers.PublishAnswer(**published[0], index=result.index)


def _new_message(node: Node, topic: str, request: MessageRequest | PublishRequest) -> NewMessage:
    """The message as stored in the log. The partition is computed here, because nodes may differ in their number of virtual nodes."""
    assert request.value is not msgspec.UNSET
    value = bytes(request.value)
    bytes_max = config_of(node).value_bytes_max
    if len(value) > bytes_max:
        raise Refused("too_large", f"`value` is {len(value)} bytes long; the limit is {bytes_max}", field="value")
    key = request.key
    partition = ring(config_of(node).queue_num_vnodes).partition_of(key) if key else -1
    headers = _headers.encode(request.headers) if request.headers else b""
    return NewMessage(topic, value, key, partition, request.delay_ms, request.dedup_id, headers)


# ------------------------------------------------------------------ consume


async def consume(node: Node, request: ConsumeRequest, once: RequestId | None = None) -> Result | answers.ConsumeAnswer:
    """Take messages. Answered when one is ready, or when `timeout_ms` is over."""
    visibility_ms = request.visibility_ms
    fields: dict[str, Any] = {
        "topic": request.topic,
        "group": request.group,
        "timeout_ms": request.timeout_ms,
        "attempt_id": request.attempt_id,
        "visibility_ms": config_of(node).queue_visibility_timeout_ms if visibility_ms is None else visibility_ms,
        "max_messages": request.max_messages or 1,
    }
    # All cluster versions know the command without runs.
    command = Consume(**fields) if request.max_per_key == 1 else ConsumeRuns(**fields, max_per_key=request.max_per_key)
    counters = metrics.of_topic(request.topic)
    try:
        if uses_engine(node, request.topic):
            taken = await routing_of(node).take(command, once)
        else:
            taken = await node.submit(command, wait_ms=request.timeout_ms, once=once)
            if taken.code == ON_ENGINE:
                taken = await routing_of(node).take(command, once)
    except asyncio.CancelledError:
        counters.consumed("cancelled")
        raise
    except Refused:
        counters.consumed("failed")
        raise
    if not isinstance(taken, Result):
        return _consumed_on_engine(request, taken, counters)
    result = taken
    if result.code:
        counters.consumed("refused")
        return result
    messages = result.body["messages"]
    count_delivered(counters, messages)
    empty_reason = result.body["empty_reason"] if not messages else UNSET
    if request.max_messages is not None:
        several = [delivered(message) for message in messages]
        return answers.ConsumeAnswer(messages=several, empty_reason=empty_reason, index=result.index)
    if not messages:
        return answers.ConsumeAnswer(msg_id=None, value=None, empty_reason=empty_reason, index=result.index)
    message = messages[0]
    return answers.ConsumeAnswer(
        msg_id=message["msg_id"],
        value=msgspec.Raw(message["value"]),
        key=message["key"],
        headers=inspection.json_text(message["headers"]),
        partition=message["partition"],
        receipt=message["receipt"],
        attempt=message["attempt"],
        first_delivered_ms=message.get("first_delivered_ms", msgspec.UNSET),
        delivered_ms=message["delivered_ms"],
        visible_until_ms=message["visible_until_ms"],
        published_ms=message["published_ms"],
        index=result.index,
    )


def _consumed_on_engine(request: ConsumeRequest, taken: Answer, counters: metrics.TopicCounters) -> answers.ConsumeAnswer:
    messages = taken.messages
    count_structs(counters, messages)
    empty_reason = taken.empty_reason if not messages else UNSET
    if request.max_messages is not None:
        return answers.ConsumeAnswer(messages=messages, empty_reason=empty_reason, durability="redis", index=None)
    if not messages:
        return answers.ConsumeAnswer(msg_id=None, value=None, empty_reason=empty_reason, durability="redis", index=None)
    (message,) = messages
    return answers.ConsumeAnswer(**msgspec.structs.asdict(message), durability="redis", index=None)


async def give_back(node: Node, request: ConsumeRequest, answer: answers.ConsumeAnswer) -> None:
    """The client disconnected before it was answered: its messages go back to the group immediately."""
    if answer.messages is not UNSET:
        held = {one.msg_id: one.receipt for one in answer.messages}
    elif answer.msg_id:
        assert answer.receipt is not UNSET
        held = {answer.msg_id: answer.receipt}
    else:
        return
    await push.give_back(node, request.topic, request.group, held)


# ------------------------------------------------------ ack, nack, extend …


async def ack(node: Node, request: AckRequest, once: RequestId | None = None) -> Result | answers.AckAnswer:
    """Finish messages. A repeat has no effect."""
    fields = {name: getattr(request, name) for name in _ACK_FIELDS}
    publish = [_new_message(node, one.topic, one) for one in request.publish or ()]
    command = Ack(**fields, publish=publish, release=request.release or [])
    msg_ids = request.msg_ids or (request.msg_id or "",)
    if uses_engine(node, request.topic):
        result = await engine_endings.ack(routing_of(node), command, once)
    else:
        result = await node.submit(command, once=once)
        if result.code == ON_ENGINE:
            result = await engine_endings.ack(routing_of(node), command, once)
        elif not result.body.get("acked") and engine_endings.are_of_engine(msg_ids) and uses_engine(node, request.topic):
            # This node did not know yet that the topic is there.
            result = await engine_endings.ack(routing_of(node), command, logged=result)
    push.settled(node, request.topic, request.group, msg_ids)
    if not isinstance(result, Result):
        return result
    for message, published in zip(publish, result.body.get("published", ()), strict=False):
        if not published["duplicate"]:
            metrics.of_topic(message.topic).published.inc()
    if result.code or len(result.body) > 1:
        return result
    return answers.AckAnswer(acked=result.body["acked"], index=result.index)


async def nack(node: Node, request: Nack, once: RequestId | None = None) -> Result | answers.NackAnswer:
    result = await engine_endings.on_its_engine(node, request, once, engine_endings.nack)
    push.settled(node, request.topic, request.group, (request.msg_id,))
    return result


async def extend(node: Node, request: ExtendRequest, once: RequestId | None = None) -> Result | answers.ExtendAnswer:
    fields: dict[str, Any] = {name: getattr(request, name) for name in DeliveryFields.__struct_fields__}
    if request.visibility_ms:
        command = Extend(**fields, visibility_ms=request.visibility_ms)
        return await engine_endings.on_its_engine(node, command, once, engine_endings.extend)
    result = await engine_endings.on_its_engine(node, Nack(**fields, delay_ms=0), once, engine_endings.nack)
    if isinstance(result, Result):
        if result.code:
            return result
        answer = answers.NackAnswer(**result.body, index=result.index)
    else:
        answer = result
    if not answer.nacked:
        return Result({"detail": NOT_IN_FLIGHT, "msg_ids": [request.msg_id]}, "stale_receipt", answer.index or 0)
    push.settled(node, request.topic, request.group, (request.msg_id,))
    return answers.ExtendAnswer(
        msg_id=request.msg_id, visible_until_ms=node.now_ms(), durability=answer.durability, index=answer.index
    )


# ------------------------------------------------------------------ queries


async def stats(node: Node, request: StatsQuery) -> Result:
    if request.consistency == "linearizable":
        await node.read_index()
    broker, now_ms = _broker(node), node.now_ms()
    if request.topics is not None:
        answer = inspection.stats_of(broker, request.topics, request.group, now_ms)
    else:
        answer = inspection.stats(broker, request.topic, now_ms)
    lines = answer.get("topics", [answer])
    on_engine = [line for line in lines if uses_engine(node, line["topic"])]
    if on_engine:
        await both_engines.add_statistics(node, on_engine, request.group)
    return Result(answer)


async def peek(node: Node, request: PeekQuery) -> Result | answers.PeekAnswer:
    if request.consistency == "linearizable":
        await node.read_index()
    lines = inspection.peek(_broker(node), request, node.now_ms())
    for line in lines:
        line["value"] = msgspec.Raw(line["value"])
        line["headers"] = inspection.json_text(line["headers"])
    if uses_engine(node, request.topic):
        return answers.PeekAnswer(messages=await both_engines.peek(node, request, lines))
    return Result({"messages": lines})


def _broker(node: Node) -> Broker:
    return cast(Broker, node.machine("queue"))


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="queue.publish",
        method="POST",
        path="/queue/publish",
        request=PublishRequest,
        handle=publish,
        answer=answers.PublishAnswer,
        takes_request_id=True,
        needs=queue("publish", "topic"),
        summary="Publish a message",
        description=(
            "Stores `value`, any JSON, for every group of the topic. Messages with the same routing `key` reach a group in publish "
            "order, one in flight at a time. `delay_ms` hides the message for this time. With a `dedup_id`, a repeat is not stored "
            "again.\n\nWith `messages: [...]`, several messages are stored in one step: all of them or none."
        ),
        tag="Queue",
        example={"topic": "example/orders", "value": {"order": 42}, "key": "customer-7"},
        problems=("too_large", "not_found", "crosses_slots", "engine_away"),
    ),
    Operation(
        name="queue.consume",
        method="POST",
        path="/queue/consume",
        request=ConsumeRequest,
        handle=consume,
        undo=give_back,
        answer=answers.ConsumeAnswer,
        takes_request_id=True,
        needs=queue("consume", "topic"),
        summary="Take a message",
        description=(
            "Waits up to `timeout_ms` for a message and hides it from the rest of the group for `visibility_ms`. It is delivered "
            "again unless it is acked or extended by then. A new group starts with the oldest message that the topic retains.\n\n"
            "With `max_messages`, the answer has a list, `messages`. With `max_per_key`, it may have several messages of one key, a run: "
            "no other consumer gets one of the key until the whole run has ended.\n\nIf the answer is lost, repeat the call with the same "
            "`attempt_id` to get the same messages. If no message is ready, `empty_reason` gives the reason."
        ),
        tag="Queue",
        example={"topic": "example/orders", "group": "billing", "timeout_ms": 1000},
        problems=("not_found", "engine_away"),
    ),
    Operation(
        name="queue.ack",
        method="POST",
        path="/queue/ack",
        request=AckRequest,
        handle=ack,
        answer=answers.AckAnswer,
        takes_request_id=True,
        needs=Every(
            (
                queue("consume", "topic"),
                queue("publish", "publish.topic", optional=True),
                locks("release.key", optional=True),
            )
        ),
        summary="Acknowledge a message",
        description=(
            "With `receipt`, the ack applies to this delivery only; without it, to the one in flight. A repeat answers "
            "`acked: false`. With `publish: [...]` and `release: [...]`, the ack, the new messages and the release of the locks take "
            "effect together or not at all. If a `fencing_token` no longer holds its lock, the call is refused with `not_holder`."
        ),
        tag="Queue",
        example={"topic": "example/orders", "group": "billing", "msg_id": "12-0"},
        problems=("stale_receipt", "not_holder", "too_large", "not_found", "not_on_engine", "engine_away"),
    ),
    Operation(
        name="queue.nack",
        method="POST",
        path="/queue/nack",
        request=Nack,
        handle=nack,
        answer=answers.NackAnswer,
        takes_request_id=True,
        needs=queue("consume", "topic"),
        summary="Give a message back",
        description=(
            "The attempt failed. The message is delivered again after `delay_ms` or the topic's backoff; with `dead` it becomes a "
            "dead letter immediately. With `silent` the attempt does not count (for a consumer that is shutting down)."
        ),
        tag="Queue",
        example={"topic": "example/orders", "group": "billing", "msg_id": "12-0", "delay_ms": 5000},
        problems=("stale_receipt", "engine_away"),
    ),
    Operation(
        name="queue.extend",
        method="POST",
        path="/queue/extend",
        request=ExtendRequest,
        handle=extend,
        answer=answers.ExtendAnswer,
        takes_request_id=True,
        needs=queue("consume", "topic"),
        summary="Keep a message hidden for longer",
        description=(
            "Hides the message for `visibility_ms` from now. Call it after a third of this time. With `visibility_ms: 0`, the message "
            "is given back now; the attempt counts."
        ),
        tag="Queue",
        example={"topic": "example/orders", "group": "billing", "msg_id": "12-0", "visibility_ms": 15000},
        problems=("stale_receipt", "engine_away"),
    ),
    Operation(
        name="queue.stats",
        method="GET",
        path="/queue/stats",
        request=StatsQuery,
        handle=stats,
        answer=answers.StatsAnswer,
        needs=Either(
            (READ, *(queue(action, field) for field in ("topic", "topics") for action in ("publish", "consume", "manage")))
        ),
        summary="Statistics of a topic and its groups",
        description=(
            "Without `topic`: one entry per topic. With `topics`: an entry for each of those that exist, with its settings, and with "
            "`ready`, the messages that are ready for `group`."
        ),
        tag="Queue",
        example={"topic": "example/orders"},
    ),
    Operation(
        name="queue.peek",
        method="GET",
        path="/queue/peek",
        request=PeekQuery,
        handle=peek,
        answer=answers.PeekAnswer,
        needs=Either((queue("consume", "topic"), queue("manage", "topic"))),
        summary="Look at messages without taking them",
        description=(
            "The retained messages of the topic; with `group`, its unfinished messages; with `dead`, its dead letters. With `msg_id` "
            "or `dedup_id` only this message; with `group` nothing if the group has finished it."
        ),
        tag="Queue",
        example={"topic": "example/orders"},
        problems=("engine_away",),
    ),
    *ADMIN_OPERATIONS,
)

SUBSCRIPTIONS = push.SUBSCRIPTIONS
