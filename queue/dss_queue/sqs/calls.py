"""A call of the SQS endpoint, and what its operations have in common: finding the queue, and submitting a command."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import msgspec

from dss_api.caller import caller
from dss_api.errors import Refused
from dss_api.result import Result
from dss_queue.core.broker import Broker
from dss_queue.core.sqs_queues import Queue
from dss_queue.sqs import attributes as queue_attributes
from dss_queue.sqs.errors import SqsError, bad_value, no_queue, of_refusal

if TYPE_CHECKING:
    from dss_raft.node import Node


@dataclass(frozen=True)
class Call:
    """A call with what the entry point knows of it."""

    node: Node
    #: the queue; for calls that name none, ""
    name: str
    input: Any
    #: begins the URLs of queues
    base_url: str
    region: str

    def url_of(self, name: str) -> str:
        return f"{self.base_url}/{queue_attributes.ACCOUNT}/{name}"


class Reply(msgspec.Struct):
    """The answer of a call, and how to give back what it handed out."""

    body: dict[str, Any] = {}
    undo: Callable[[], Awaitable[None]] | None = None


def queue_in_url(url: str) -> str:
    """The name of a queue, from its URL.

    Raises:
        SqsError: there cannot be such a queue.
    """
    if not url:
        raise SqsError("MissingParameter", "The request must contain the parameter QueueUrl.")
    name = url.rstrip("/").rpartition("/")[2]
    if not queue_attributes.NAME_PATTERN.fullmatch(name):
        raise SqsError("InvalidAddress", f"The address {url[:200]} is not valid for this endpoint.")
    return name


def queue_in_arn(arn: str, parameter: str) -> str:
    """The name of a queue, from its ARN.

    Raises:
        SqsError: there cannot be such a queue.
    """
    if not arn:
        raise SqsError("MissingParameter", f"The request must contain the parameter {parameter}.")
    name = arn.rpartition(":")[2]
    if not arn.startswith("arn:") or not queue_attributes.NAME_PATTERN.fullmatch(name):
        raise bad_value(
            f"You must use this format to specify the {parameter}: arn:<partition>:<service>:<region>:<account-id>:<resource-id>"
        )
    return name


def sources_of(node: Node, name: str) -> list[str]:
    """The queues whose dead letters go to the queue `name`."""
    return sorted(
        source
        for source, topic in topics_of(node).items()
        if topic.queue is not None and topic.messages.settings.dead_letter_topic == name
    )


def may_publish(name: str) -> bool:
    """Whether the caller may fill the queue `name` by naming it as a target."""
    access = caller().access
    return access.everything or "operate" in access.plain or name.startswith(access.prefixes("queue", "publish"))


def broker_of(call: Call) -> Broker:
    return cast(Broker, call.node.machine("queue"))


def topics_of(node: Node) -> Any:
    return cast(Broker, node.machine("queue")).topics


async def find_queue(call: Call) -> Queue:
    """The queue as this node knows it. If it knows none, it asks whether another node has just created it.

    Raises:
        SqsError: `QueueDoesNotExist`.
    """
    for is_current in (False, True):
        topic = topics_of(call.node).get(call.name)
        if topic is not None and topic.queue is not None:
            return cast(Queue, topic.queue)
        if not is_current:
            await call.node.read_index()
    raise no_queue()


async def submit(call: Call, command: Any, wait_ms: int = 0) -> Result:
    """Carry a command out.

    Raises:
        SqsError: it was refused.
    """
    return checked_result(await call.node.submit(command, wait_ms=wait_ms))


def checked_result(result: Result) -> Result:
    """Raises:
    SqsError: the command was refused.
    """
    if result.code and result.code != "stale_receipt":
        if result.code == "not_found":
            raise no_queue()
        raise of_refusal(Refused(result.code, result.body.get("detail", "")))
    return result
