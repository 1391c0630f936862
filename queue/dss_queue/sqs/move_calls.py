"""StartMessageMoveTask, CancelMessageMoveTask and ListMessageMoveTasks. The tasks run in the replicated state: `core/queue_moves.py`."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from dss_queue.core.sqs_queues import MOVE_TASKS_MAX, MOVES_PER_SECOND_MAX, CancelMove, MoveTask, StartMove
from dss_queue.sqs.attributes import arn_of
from dss_queue.sqs.calls import Call, Reply, find_queue, may_publish, queue_in_arn, sources_of, submit
from dss_queue.sqs.errors import SqsError, bad_value


async def start_move(call: Call) -> Reply:
    given = call.input
    await _find(call, "SourceArn")
    await call.node.read_index()
    sources = sources_of(call.node, call.name)
    if not sources:
        raise bad_value("Source queue must be configured as a Dead Letter Queue.")
    rate = given.max_number_of_messages_per_second
    if rate is not None and not 1 <= rate <= MOVES_PER_SECOND_MAX:
        raise bad_value(
            f"Value {rate} for parameter MaxNumberOfMessagesPerSecond is invalid. "
            f"Reason: You must enter a value between 1 and {MOVES_PER_SECOND_MAX}."
        )
    target = queue_in_arn(given.destination_arn, "DestinationArn") if given.destination_arn else ""
    if target:
        await _find(Call(call.node, target, None, call.base_url, call.region), "DestinationArn")
        if target == call.name:
            raise bad_value("Source queue arn and destination queue arn cannot be the same.")
        if target.endswith(".fifo") != call.name.endswith(".fifo"):
            raise bad_value("Source queue and destination queue must be of the same type.")
    for name in [target] if target else sources:
        if not may_publish(name):
            raise SqsError("AccessDenied", f"the token may not publish to {name}", 403)
    result = await submit(call, StartMove(topic=call.name, target=target, rate=rate or 0))
    task = result.body["task"]
    if task is None:
        raise bad_value(
            "There is already a task running. Only one active task is allowed for a source queue arn at a given time."
        )
    return Reply({"TaskHandle": _handle_of(call.name, task)})


async def cancel_move(call: Call) -> Reply:
    await _find(call, "TaskHandle")
    result = await submit(call, CancelMove(topic=call.name, task=task_in(call.input.task_handle)[1]))
    moved = result.body["moved"]
    if moved is None:
        raise SqsError("UnsupportedOperation", "A message movement task can only be cancelled when its status is RUNNING.")
    return Reply({"ApproximateNumberOfMessagesMoved": moved})


async def list_moves(call: Call) -> Reply:
    most = call.input.max_results
    if most is None:
        most = 1
    if not 1 <= most <= MOVE_TASKS_MAX:
        raise bad_value(f"Value {most} for parameter MaxResults is invalid. Reason: Must be between 1 and {MOVE_TASKS_MAX}.")
    await call.node.read_index()
    await _find(call, "SourceArn")
    queue = await find_queue(call)
    return Reply({"Results": [_described(call, task) for task in list(reversed(queue.moves))[:most]]})


def _described(call: Call, task: MoveTask) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "Status": task.status,
        "SourceArn": arn_of(call.name, call.region),
        "ApproximateNumberOfMessagesMoved": task.moved,
        "ApproximateNumberOfMessagesToMove": task.found,
        "StartedTimestamp": task.started_ms,
    }
    if task.status == "RUNNING":
        shown["TaskHandle"] = _handle_of(call.name, task.serial)
    if task.target:
        shown["DestinationArn"] = arn_of(task.target, call.region)
    if task.rate:
        shown["MaxNumberOfMessagesPerSecond"] = task.rate
    if task.reason:
        shown["FailureReason"] = task.reason
    return shown


async def _find(call: Call, parameter: str) -> None:
    try:
        await find_queue(call)
    except SqsError:
        message = f"The resource that you specified for the {parameter} parameter doesn't exist."
        raise SqsError("ResourceNotFoundException", message, 404) from None


def _handle_of(name: str, task: int) -> str:
    return base64.urlsafe_b64encode(f"{name}/{task}".encode()).decode()


def task_in(handle: str) -> tuple[str, int]:
    """(queue, task) in a task handle.

    Raises:
        SqsError: it is not a task handle.
    """
    try:
        name, _, task = base64.b64decode(handle, b"-_", validate=True).decode("ascii").rpartition("/")
    except (binascii.Error, ValueError):
        name = task = ""
    if not name or not task.isascii() or not task.isdecimal() or len(task) > 18:
        raise SqsError("ResourceNotFoundException", "Task does not exist.", 404)
    return name, int(task)
