"""The operations of SQS on messages: each function is one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from hashlib import sha256
from typing import Any

import msgspec

from dss_api.caller import caller
from dss_api.errors import Refused
from dss_queue import metrics, push
from dss_queue.config import config_of
from dss_queue.core.commands import Ack, Consume, ConsumeRuns, Extend, Nack, NewMessage
from dss_queue.core.partitions import ring
from dss_queue.core.sqs_queues import GROUP, Queue
from dss_queue.delivering import count_delivered
from dss_queue.sqs import attributes as queue_attributes
from dss_queue.sqs import messages, requests, routed
from dss_queue.sqs.attributes import is_fifo, number
from dss_queue.sqs.calls import Call, Reply, find_queue
from dss_queue.sqs.errors import SqsError, bad_value, of_refusal

BATCH_MAX = 10
NO_DEDUP_ID = "The queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId provided explicitly"
ENTRY_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")


async def send_message(call: Call) -> Reply:
    queue = await find_queue(call)
    new = _new_message(call, queue, call.input)
    (answer,) = await _publish(call, queue, [call.input], [new])
    assert not isinstance(answer, SqsError), "it would have been raised"
    return Reply(answer)


async def send_batch(call: Call) -> Reply:
    queue = await find_queue(call)
    entries = checked_entries(call.input.entries, "SendMessage")
    size = sum(messages.bytes_of(entry.message_body, entry.message_attributes) for entry in entries)
    if size > messages.BYTES_MAX:
        raise SqsError(
            "BatchRequestTooLong", f"Batch requests cannot be longer than {messages.BYTES_MAX} bytes. You have sent {size} bytes."
        )
    accepted, failed = [], []
    for entry in entries:
        try:
            accepted.append((entry, _new_message(call, queue, entry)))
        except SqsError as error:
            # "If you don't provide a MessageDeduplicationId and the queue doesn't have ContentBasedDeduplication set, the action
            # fails with an error."
            if error.code == "MissingParameter" or error.detail == NO_DEDUP_ID:
                raise
            failed.append(failure(entry.id, error))
    sent = await _publish(call, queue, [entry for entry, _ in accepted], [new for _, new in accepted]) if accepted else []
    successful = []
    for (entry, _), answer in zip(accepted, sent, strict=True):
        if isinstance(answer, SqsError):
            failed.append(failure(entry.id, answer))
        else:
            successful.append({"Id": entry.id, **answer})
    return Reply({"Successful": successful, "Failed": failed})


def checked_entries(entries: Sequence[Any], kind: str) -> Sequence[Any]:
    """Raises:
    SqsError: this is no batch.
    """
    if not entries:
        raise SqsError("EmptyBatchRequest", f"There should be at least one {kind}BatchRequestEntry in the request.")
    if len(entries) > BATCH_MAX:
        raise SqsError(
            "TooManyEntriesInBatchRequest",
            f"Maximum number of entries per request are {BATCH_MAX}. You have sent {len(entries)}.",
        )
    ids = [entry.id for entry in entries]
    for id in ids:
        if not ENTRY_ID.fullmatch(id):
            raise SqsError(
                "InvalidBatchEntryId",
                "A batch entry id can only contain alphanumeric characters, hyphens "
                "and underscores. It can be at most 80 letters long.",
            )
    repeated = next((id for i, id in enumerate(ids) if id in ids[:i]), None)
    if repeated is not None:
        raise SqsError("BatchEntryIdsNotDistinct", f"Id {repeated} repeated.")
    return entries


def failure(id: str, error: SqsError) -> dict[str, Any]:
    return {"Id": id, "SenderFault": error.status < 500, "Code": error.query_code, "Message": error.detail}


def _new_message(call: Call, queue: Queue, given: requests.Message) -> NewMessage:
    """The message for the log.

    Raises:
        SqsError: the queue does not take it.
    """
    present = queue.attributes
    messages.check_body(given.message_body)
    messages.check_attributes(given.message_attributes)
    size = messages.bytes_of(given.message_body, given.message_attributes)
    most = number(present, "MaximumMessageSize")
    if size > most:
        raise bad_value(f"One or more parameters are invalid. Reason: Message must be shorter than {most} bytes.")
    headers = {messages.H_SENDER: caller().owner or "anyone"}
    if given.message_attributes:
        headers[messages.H_ATTRIBUTES] = msgspec.json.encode(given.message_attributes).decode()
    for name, trace in given.message_system_attributes.items():
        if name != "AWSTraceHeader" or trace.data_type != "String" or not trace.string_value:
            raise bad_value(f"Message system attribute name '{name}' is invalid.")
        headers[messages.H_TRACE] = trace.string_value
    key = dedup_id = ""
    group_id, delay_s = given.message_group_id, given.delay_seconds
    if group_id and not messages.GROUP_ID.fullmatch(group_id):
        raise bad_value(
            "Value for parameter MessageGroupId is invalid. Reason: MessageGroupId "
            "can only include alphanumeric and punctuation characters. 1 to 128 in length."
        )
    if is_fifo(present):
        if delay_s:
            raise bad_value(
                f"Value {delay_s} for parameter DelaySeconds is invalid. Reason: The "
                "request include parameter that is not valid for this queue type."
            )
        delay_s = None
        key, dedup_id = _fifo_ids(present, given, headers)
    else:
        if given.message_deduplication_id:
            raise bad_value("The request include parameter MessageDeduplicationId that is not valid for this queue type.")
        if group_id:
            headers[messages.H_GROUP_ID] = group_id
    if delay_s is None:
        delay_s = number(present, "DelaySeconds")
    if not 0 <= delay_s <= 900:
        raise bad_value(f"Value {delay_s} for parameter DelaySeconds is invalid. Reason: DelaySeconds must be >= 0 and <= 900.")
    partition = ring(config_of(call.node).queue_num_vnodes).partition_of(key) if key else -1
    value = msgspec.json.encode(given.message_body)
    return NewMessage(call.name, value, key, partition, delay_s * 1000, dedup_id, msgspec.json.encode(headers))


def _fifo_ids(present: dict[str, str], given: requests.Message, headers: dict[str, str]) -> tuple[str, str]:
    """Routing key and dedup_id of a message of a FIFO queue."""
    group_id, given_id = given.message_group_id, given.message_deduplication_id
    if not group_id:
        raise SqsError("MissingParameter", "The request must contain the parameter MessageGroupId.")
    if given_id and not messages.GROUP_ID.fullmatch(given_id):
        raise bad_value(
            "Value for parameter MessageDeduplicationId is invalid. Reason: "
            "MessageDeduplicationId can only include alphanumeric and punctuation characters. 1 to 128 in length."
        )
    if not given_id:
        if present.get("ContentBasedDeduplication") != "true":
            raise bad_value(NO_DEDUP_ID)
        given_id = sha256(given.message_body.encode()).hexdigest()
    headers[messages.H_DEDUP_ID] = given_id
    if present.get("DeduplicationScope") == "messageGroup":
        return group_id, sha256(f"{group_id}\0{given_id}".encode()).hexdigest()
    return group_id, given_id


async def _publish(
    call: Call, queue: Queue, given: Sequence[requests.Message], new: list[NewMessage]
) -> list[dict[str, Any] | SqsError]:
    """The answers for these messages, or the refusals of some of them."""
    outcomes = await routed.publish(call, new)
    stored_anew = sum(not isinstance(one, SqsError) and not one.duplicate for one in outcomes)
    metrics.of_topic(call.name).published.inc(stored_anew)
    answers: list[dict[str, Any] | SqsError] = []
    for one, stored in zip(given, outcomes, strict=True):
        if isinstance(stored, SqsError):
            answers.append(stored)
            continue
        answer = {"MD5OfMessageBody": messages.md5_of(one.message_body), "MessageId": messages.message_uuid(stored.msg_id)}
        if one.message_attributes:
            answer["MD5OfMessageAttributes"] = messages.md5_of_attributes(one.message_attributes)
        if one.message_system_attributes:
            answer["MD5OfMessageSystemAttributes"] = messages.md5_of_attributes(one.message_system_attributes)
        if is_fifo(queue.attributes):
            answer["SequenceNumber"] = messages.sequence_number(stored.msg_id)
        answers.append(answer)
    return answers


# ---------------------------------------------------------------- receiving


async def receive(call: Call) -> Reply:
    queue, given = await find_queue(call), call.input
    count = given.max_number_of_messages
    if not 1 <= count <= BATCH_MAX:
        raise bad_value(
            f"Value {count} for parameter MaxNumberOfMessages is invalid. Reason: Must be between 1 and {BATCH_MAX}, if provided."
        )
    wait_s = _seconds(queue, given.wait_time_seconds, "WaitTimeSeconds", "ReceiveMessageWaitTimeSeconds")
    visibility_s = _seconds(queue, given.visibility_timeout, "VisibilityTimeout", "VisibilityTimeout")
    fifo = is_fifo(queue.attributes)
    fields: dict[str, Any] = {
        "topic": call.name,
        "group": GROUP,
        "timeout_ms": wait_s * 1000,
        "visibility_ms": visibility_s * 1000 or 1,
        "max_messages": count,
        "create": False,
    }
    if fifo:
        attempt_id = given.receive_request_attempt_id
        if attempt_id and not messages.GROUP_ID.fullmatch(attempt_id):
            raise bad_value("Value for parameter ReceiveRequestAttemptId is invalid.")
        command: Consume = ConsumeRuns(**fields, attempt_id=attempt_id, max_per_key=count)
    else:
        command = Consume(**fields)
    taken = await routed.take(call, command)
    count_delivered(metrics.of_topic(call.name), taken)
    if not taken:
        return Reply()
    system_names = {*given.attribute_names, *given.message_system_attribute_names}
    if not visibility_s:
        # Visible again at once, the last one first: a message of a run takes those behind it along.
        named = {"topic": call.name, "group": GROUP, "delay_ms": 0}
        given_back = (Nack(**named, msg_id=one["msg_id"], receipt=one["receipt"]) for one in reversed(taken))  # type: ignore[arg-type]
        await asyncio.gather(*(routed.nack(call, one) for one in given_back))
    shown = [messages.described(one, given.message_attribute_names, system_names, fifo, call.region) for one in taken]
    receipts = {one["msg_id"]: one["receipt"] for one in taken}
    return Reply({"Messages": shown}, partial(push.give_back, call.node, call.name, GROUP, receipts))


def _seconds(queue: Queue, given: int | None, name: str, attribute: str) -> int:
    """A time that a call gives, or the queue's."""
    if given is None:
        return number(queue.attributes, attribute)
    _, lowest, highest = queue_attributes.NUMBERS[attribute]
    if not lowest <= given <= highest:
        raise bad_value(
            f"Value {given} for parameter {name} is invalid. Reason: Must be >= {lowest} and <= {highest}, if provided."
        )
    return given


async def delete_message(call: Call) -> Reply:
    queue = await find_queue(call)
    handle = call.input.receipt_handle
    msg_id, receipt = messages.receipt_in(handle)
    is_stale = await routed.ack(call, Ack(topic=call.name, group=GROUP, msg_id=msg_id, receipt=receipt))
    push.settled(call.node, call.name, GROUP, (msg_id,))
    if is_stale and is_fifo(queue.attributes):
        raise _expired(handle)
    return Reply()


async def delete_batch(call: Call) -> Reply:
    queue = await find_queue(call)
    entries = checked_entries(call.input.entries, "DeleteMessage")
    outcomes: dict[str, SqsError] = {}
    left: list[tuple[requests.DeleteEntry, str, str]] = []
    for entry in entries:
        try:
            left.append((entry, *messages.receipt_in(entry.receipt_handle)))
        except SqsError as error:
            outcomes[entry.id] = error
    is_begun = False
    while left:
        # One command for all of them, unless several entries name one message: each has its own receipt.
        now: dict[str, tuple[requests.DeleteEntry, str]] = {}
        for entry, msg_id, receipt in left:
            now.setdefault(msg_id, (entry, receipt))
        left = [one for one in left if one[0] is not now[one[1]][0]]
        receipts = [receipt for _, receipt in now.values()]
        try:
            stale = await routed.ack(call, Ack(topic=call.name, group=GROUP, msg_ids=list(now), receipts=receipts))
        except Refused as refusal:
            if not is_begun:
                raise  # nothing was deleted: clients repeat the whole request
            outcomes.update((entry.id, of_refusal(refusal)) for entry, _ in now.values())
            continue
        is_begun = True
        push.settled(call.node, call.name, GROUP, now)
        if is_fifo(queue.attributes):
            for msg_id in stale:
                entry = now[msg_id][0]
                outcomes[entry.id] = _expired(entry.receipt_handle)
    return _batch_reply(entries, [outcomes.get(entry.id) for entry in entries])


def _expired(handle: str) -> SqsError:
    """For a FIFO queue. A standard queue answers success and keeps the message, which has another receipt handle now."""
    return bad_value(f"Value {handle} for parameter ReceiptHandle is invalid. Reason: The receipt handle has expired.")


async def change_visibility(call: Call) -> Reply:
    await find_queue(call)
    if call.input.visibility_timeout is None:
        raise SqsError("MissingParameter", "The request must contain the parameter VisibilityTimeout.")
    await _change_visibility(call, call.input.receipt_handle, call.input.visibility_timeout)
    return Reply()


async def _change_visibility(call: Call, handle: str, seconds: int) -> None:
    if not 0 <= seconds <= 43_200:
        raise bad_value(
            f"Value {seconds} for parameter VisibilityTimeout is invalid. Reason: Must be >= 0 and <= 43200, if provided."
        )
    msg_id, receipt = messages.receipt_in(handle)
    named = {"topic": call.name, "group": GROUP, "msg_id": msg_id, "receipt": receipt}
    if seconds:
        in_flight = await routed.extend(call, Extend(**named, visibility_ms=seconds * 1000))
    else:
        in_flight = await routed.nack(call, Nack(**named, delay_ms=0))  # type: ignore[arg-type]
        push.settled(call.node, call.name, GROUP, (msg_id,))
    if not in_flight:
        raise SqsError(
            "MessageNotInflight",
            f"Value {handle} for parameter ReceiptHandle is invalid. Reason: "
            "Message does not exist or is not available for visibility timeout change.",
        )


async def change_visibility_batch(call: Call) -> Reply:
    await find_queue(call)
    return await _each(
        "ChangeMessageVisibility",
        call.input.entries,
        lambda entry: _change_visibility(call, entry.receipt_handle, entry.visibility_timeout),
    )


async def _each(kind: str, entries: Sequence[Any], work: Callable[[Any], Awaitable[None]]) -> Reply:
    """Do the entries of a batch: each succeeds or fails by itself."""
    entries = checked_entries(entries, kind)
    return _batch_reply(entries, await asyncio.gather(*(_outcome(work(entry)) for entry in entries)))


def _batch_reply(entries: Sequence[Any], outcomes: Sequence[SqsError | None]) -> Reply:
    """The answer to a batch. An outcome is None for an entry that has succeeded."""
    return Reply(
        {
            "Successful": [{"Id": entry.id} for entry, error in zip(entries, outcomes, strict=True) if error is None],
            "Failed": [_entry_failure(entry, error) for entry, error in zip(entries, outcomes, strict=True) if error is not None],
        }
    )


def _entry_failure(entry: requests.DeleteEntry, error: SqsError) -> dict[str, Any]:
    if error.code == "ReceiptHandleIsInvalid":
        error.detail = f'The input receipt handle "{entry.receipt_handle[:200]}" is not a valid receipt handle.'
    return failure(entry.id, error)


async def _outcome(work: Awaitable[None]) -> SqsError | None:
    try:
        await work
    except Refused as refusal:
        return of_refusal(refusal)
    return None
