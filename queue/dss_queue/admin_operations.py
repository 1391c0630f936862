"""The operations on whole topics and groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from dss_api.operation import Operation
from dss_api.request_id import RequestId
from dss_api.result import Result
from dss_api.rights import OPERATE, Either, Every, queue
from dss_queue import answers, both_engines
from dss_queue.core.broker import Broker
from dss_queue.core.commands import Purge, PutTopic, PutTopicRequest, Redrive, SetTopic, TopicSettings
from dss_queue.core.engines import contradiction
from dss_queue.core.topic_commands import DeleteGroup, DeleteTopic, PutGroup, PutQueueSettings
from dss_queue.routing import routing_of

if TYPE_CHECKING:
    from dss_raft.node import Node
    from dss_raft.replication.commands import Command

#: the settings that `PutTopic` does not have, with their defaults
_NEW_SETTINGS = {
    name: getattr(TopicSettings(), name) for name in TopicSettings.__struct_fields__ if name not in PutTopic.__struct_fields__
}


async def put_topic(node: Node, request: PutTopicRequest, once: RequestId | None = None) -> Result:
    refused = contradiction(request)
    if refused is not None:
        return refused
    await _check_acks(node, request)
    is_plain = request.max_attempts and not request.dead_letter_topic and request.engine != "redis"
    if is_plain and request.acks in (None, "primary"):
        leaves_engine = request.engine is None and request.acks is None
        if leaves_engine or not await _is_known(node, SetTopic):
            # All cluster versions know this command, and those that have no other one have no other engine.
            fields = {name: getattr(request, name) for name in PutTopic.__struct_fields__}
            result = await node.submit(PutTopic(**fields), once=once)
            return result if result.code else Result({**_NEW_SETTINGS, **result.body}, "", result.index)
    return await node.submit(SetTopic(**{name: getattr(request, name) for name in request.__struct_fields__}), once=once)


async def _check_acks(node: Node, request: PutTopicRequest) -> None:
    """Check whether the engine can do what `acks` asks for.

    Raises:
        Refused: `engine_away`, `not_on_engine`.
    """
    engine = request.engine
    if engine is None and request.acks not in (None, "primary"):
        await node.read_index()
        topic = cast(Broker, node.machine("queue")).topics.get(request.topic)
        engine = None if topic is None else topic.messages.settings.engine
    if engine == "redis":
        await routing_of(node).service.check_settings(request)


async def _is_known(node: Node, command: type[Command]) -> bool:
    """Whether the cluster's version has this command."""
    limits = cast(Broker, node.machine("queue")).limits
    if limits.cluster_version < command.since:
        await node.read_index()
    return limits.cluster_version >= command.since


async def put_settings(node: Node, request: PutQueueSettings, once: RequestId | None = None) -> Result:
    return await node.submit(request, once=once)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="queue.topic",
        method="PUT",
        path="/queue/topic",
        request=PutTopicRequest,
        handle=put_topic,
        answer=answers.TopicAnswer,
        takes_request_id=True,
        needs=Either(
            (OPERATE, Every((queue("manage", "topic"), queue("publish", "dead_letter_topic", optional=True)))),
        ),
        summary="Set a topic's settings",
        description=(
            "Replaces all settings; a field that is left out gets its default, apart from `engine` and `acks`. A topic does not have to "
            "be created before use, unless `create_topics` of `PUT /queue/settings` is false. With `dead_letter_topic`, dead letters are "
            "published to this topic; their headers `dss-dead-…` say where they come from.\n\n`engine` says where the messages are: in "
            "the replicated log (`raft`), or on Valkey or Redis (`redis`). Another engine than before moves the topic: the messages on "
            "the old engine are delivered first, and new messages go to the new one. A call without `engine` leaves the topic where it "
            "is; a new one is in the log. A call without `acks` leaves it as it is; a topic that comes to `redis` gets `primary`. A topic "
            "that still moves cannot go back: that is refused with `moving`. `keep_ms` and `dead_letter_topic` need `raft` "
            "(`not_on_engine`)."
        ),
        tag="Queue",
        example={"topic": "example/orders", "max_attempts": 20, "backoff_ms": 1000},
        problems=("not_on_engine", "moving", "engine_away"),
    ),
    Operation(
        name="queue.topic_delete",
        method="DELETE",
        path="/queue/topic",
        request=DeleteTopic,
        handle=both_engines.delete_topic,
        answer=answers.TopicDeletedAnswer,
        takes_request_id=True,
        needs=Either((OPERATE, queue("manage", "topic"))),
        summary="Delete a topic",
        description=(
            "Deletes the topic with its messages, dead letters, groups and settings. Consumes that wait are answered `not_found`. A "
            "later publish or consume creates the topic again, if topics may be created by using them."
        ),
        tag="Queue",
        example={"topic": "example/orders"},
    ),
    Operation(
        name="queue.group",
        method="PUT",
        path="/queue/group",
        request=PutGroup,
        handle=both_engines.put_group,
        answer=answers.GroupAnswer,
        takes_request_id=True,
        needs=Either((queue("consume", "topic"), queue("manage", "topic"))),
        summary="Create a group",
        description=(
            "Creates the group before its first consume. It starts with the oldest retained message; with `start: now`, with the next "
            "one that is published or whose delay ends; with `msg_id`, with this message or the next retained one after it. A group "
            "that exists stays as it is."
        ),
        tag="Queue",
        example={"topic": "example/orders", "group": "billing", "start": "now"},
        problems=("not_found", "not_on_engine", "engine_away"),
    ),
    Operation(
        name="queue.group_delete",
        method="DELETE",
        path="/queue/group",
        request=DeleteGroup,
        handle=both_engines.delete_group,
        answer=answers.GroupDeletedAnswer,
        takes_request_id=True,
        needs=Either((OPERATE, queue("manage", "topic"))),
        summary="Delete a group",
        description=(
            "Deletes the group with its dead letters. Messages that every other group has finished are deleted, too. Consumes that "
            "wait are answered `not_found`. A later consume creates the group again. The group `sqs` of an SQS queue cannot "
            "be deleted: delete the topic."
        ),
        tag="Queue",
        example={"topic": "example/orders", "group": "billing"},
        problems=("engine_away",),
    ),
    Operation(
        name="queue.settings",
        method="PUT",
        path="/queue/settings",
        request=PutQueueSettings,
        handle=put_settings,
        answer=answers.QueueSettingsAnswer,
        takes_request_id=True,
        needs=OPERATE,
        summary="Set the queue's settings for the cluster",
        description=(
            "With `create_topics: false`, `publish` and `consume` no longer create a topic that does not exist, but answer `not_found`: "
            "a typing error makes no topic. `PUT /queue/topic` creates one. The setting is part of the replicated state."
        ),
        tag="Queue",
        example={"create_topics": True},
    ),
    Operation(
        name="queue.redrive",
        method="POST",
        path="/queue/redrive",
        request=Redrive,
        handle=both_engines.redrive,
        answer=answers.RedriveAnswer,
        takes_request_id=True,
        needs=Either((OPERATE, queue("manage", "topic"))),
        summary="Return dead letters to the queue",
        description="Returns all dead letters of the group, or `msg_id` only. Their attempts start again at zero.",
        tag="Queue",
        example={"topic": "example/orders", "group": "billing"},
        problems=("engine_away",),
    ),
    Operation(
        name="queue.purge",
        method="POST",
        path="/queue/purge",
        request=Purge,
        handle=both_engines.purge,
        answer=answers.PurgeAnswer,
        takes_request_id=True,
        needs=Either((OPERATE, queue("manage", "topic"))),
        summary="Delete the messages of a topic",
        description="Deletes all messages, including those in flight; with `dead`, the dead letters of `group` or of every group instead.",
        tag="Queue",
        example={"topic": "example/orders"},
        problems=("engine_away",),
    ),
)
