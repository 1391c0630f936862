"""The operations of SQS on queues: each function is one."""

from __future__ import annotations

from typing import Any, cast

from dss_api.caller import caller
from dss_api.errors import Refused
from dss_api.result import Result
from dss_queue import both_engines
from dss_queue.core.commands import Acks, Engine
from dss_queue.core.engines import chosen
from dss_queue.core.inspection import stats
from dss_queue.core.sqs_queues import (
    ACKS_ATTRIBUTE,
    ENGINE_ATTRIBUTE,
    GROUP,
    TAGS_MAX,
    ChangeQueue,
    CreateQueue,
    PurgeQueue,
    Queue,
    settings_of,
)
from dss_queue.core.topic import Topic
from dss_queue.core.topic_commands import DeleteTopic
from dss_queue.engine_service import engine_of
from dss_queue.routing import routing_of
from dss_queue.sqs import attributes as queue_attributes
from dss_queue.sqs.attributes import arn_of
from dss_queue.sqs.calls import Call, Reply, broker_of, checked_result, find_queue, may_publish, sources_of, submit, topics_of
from dss_queue.sqs.errors import SqsError, bad_value

LIST_MAX = 1000
#: attribute -> the field of the statistics of a group
COUNTS = {
    "ApproximateNumberOfMessages": "ready",
    "ApproximateNumberOfMessagesDelayed": "delayed",
    "ApproximateNumberOfMessagesNotVisible": "in_flight",
}


async def create_queue(call: Call) -> Reply:
    given = call.input
    attributes = queue_attributes.checked(call.name, given.attributes, creates=True)
    _check_tags(call.name, given.tags)
    if "RedrivePolicy" in attributes:
        await _require_target(call, attributes["RedrivePolicy"])
    existing = topics_of(call.node).get(call.name)
    if existing is None or existing.queue is None:
        await call.node.read_index()
        existing = topics_of(call.node).get(call.name)
    if existing is not None and existing.queue is None:
        attributes = {**attributes, **_kept_engine(existing, attributes)}
    await _check_engine(
        call, existing.queue.attributes if existing is not None and existing.queue is not None else {}, attributes
    )
    result = await _submit(call, CreateQueue(topic=call.name, attributes=attributes, tags=given.tags))
    differs = result.body["differs"]
    if differs:
        queue = await find_queue(call)
        present = queue_attributes.with_defaults(queue.attributes)
        differs = [name for name in differs if present.get(name) != attributes[name]]
    if differs:
        raise SqsError(
            "QueueNameExists", f"A queue already exists with the same name and a different value for attribute {differs[0]}"
        )
    return Reply({"QueueUrl": call.url_of(call.name)})


def _kept_engine(topic: Topic, given: dict[str, str]) -> dict[str, str]:
    """What else a topic that becomes a queue needs among its attributes to stay on the engine `redis`; see `PUT /queue/topic`."""
    named = cast("Engine | None", given.get(ENGINE_ATTRIBUTE)), cast("Acks | None", given.get(ACKS_ATTRIBUTE))
    engine, acks = chosen(*named, topic.messages.settings)
    return {ENGINE_ATTRIBUTE: engine, ACKS_ATTRIBUTE: acks} if engine == "redis" else {}


async def _require_target(call: Call, policy: str) -> None:
    """Raises:
    SqsError: the dead-letter queue does not exist, or the caller may not name it, as in `PUT /queue/topic`.
    """
    target = queue_attributes.check_redrive_policy(call.name, policy)
    try:
        await find_queue(Call(call.node, target, None, call.base_url, call.region))
    except SqsError:
        reason = f"Value {policy} for parameter RedrivePolicy is invalid. Reason: Dead letter target does not exist."
        raise bad_value(reason) from None
    if not may_publish(target):
        raise SqsError("AccessDenied", f"the token may not publish to {target}", 403)


async def _check_engine(call: Call, present: dict[str, str], attributes: dict[str, str]) -> None:
    """Check whether a queue may have its messages where these attributes say.

    Args:
        present: its attributes before; {} for a new one.

    Raises:
        SqsError: it may not.
    """
    queue_attributes.check_engine(attributes)
    is_same = all(present.get(name) == attributes.get(name) for name in queue_attributes.OWN_DEFAULTS)
    if is_same or not queue_attributes.is_on_engine(attributes):
        return
    sources = sources_of(call.node, call.name)
    if sources:
        raise queue_attributes.wrong(ENGINE_ATTRIBUTE, f"The queue is the dead-letter queue of {sources[0]}.")
    try:
        await engine_of(call.node).check_settings(settings_of(attributes))
    except Refused as refusal:
        if refusal.code != "not_on_engine":
            raise
        raise queue_attributes.wrong(ACKS_ATTRIBUTE, refusal.detail) from None


async def _submit(call: Call, command: CreateQueue | ChangeQueue) -> Result:
    """Carry a command out that may change where the messages of the queue are.

    Raises:
        SqsError: it was refused; names the attribute.
    """
    result = await call.node.submit(command, wait_ms=0)
    if result.code in ("moving", "not_on_engine"):
        raise queue_attributes.wrong(queue_attributes.OF_SETTINGS[result.body["field"]], result.body["detail"])
    return checked_result(result)


def _check_tags(name: str, tags: dict[str, str]) -> None:
    for key, text in tags.items():
        if not 1 <= len(key) <= 128:
            raise bad_value("Tag keys must be between 1 and 128 characters in length.")
        if len(text) > 256:
            raise bad_value("Tag values must be at most 256 characters in length.")
    if len(tags) > TAGS_MAX:
        raise bad_value(f"Too many tags added for queue {name}.")


async def get_queue_url(call: Call) -> Reply:
    await find_queue(call)
    return Reply({"QueueUrl": call.url_of(call.name)})


async def list_queues(call: Call) -> Reply:
    await call.node.read_index()
    prefix = call.input.queue_name_prefix
    names = sorted(name for name in _seen_queues(call) if name.startswith(prefix))
    return _page(call, names, "QueueUrls")


def _seen_queues(call: Call) -> dict[str, Queue]:
    """The queues that the caller may use in any way."""
    access = caller().access
    actions = ("publish", "consume", "manage")
    seen = tuple(prefix for action in actions for prefix in access.prefixes("queue", action))
    sees_all = access.everything or "read" in access.plain or "operate" in access.plain
    topics = topics_of(call.node).items()
    return {name: topic.queue for name, topic in topics if topic.queue is not None and (sees_all or name.startswith(seen))}


async def list_sources(call: Call) -> Reply:
    await find_queue(call)
    seen = _seen_queues(call)
    return _page(call, [name for name in sources_of(call.node, call.name) if name in seen], "queueUrls")


def _page(call: Call, names: list[str], field: str) -> Reply:
    most, token = call.input.max_results, call.input.next_token
    if most is not None and not 1 <= most <= LIST_MAX:
        raise bad_value("MaxResults must be an integer between 1 and 1000.")
    names = [name for name in names if name > token] if token else names
    shown = names[: most or LIST_MAX]
    body: dict[str, Any] = {field: [call.url_of(name) for name in shown]}
    if most is not None and len(names) > len(shown):
        body["NextToken"] = shown[-1]
    return Reply(body)


async def delete_queue(call: Call) -> Reply:
    await find_queue(call)
    checked_result(await both_engines.delete_topic(call.node, DeleteTopic(topic=call.name)))
    return Reply()


async def purge_queue(call: Call) -> Reply:
    await find_queue(call)
    routing = routing_of(call.node)
    if routing.stay(routing.topic(call.name)) is not None:
        # Before the minute begins in which no other one is allowed.
        routing.service.require_ready()
    result = await submit(call, PurgeQueue(topic=call.name))
    if result.body["purged"] is None:
        raise SqsError("PurgeQueueInProgress", f"Only one PurgeQueue operation on {call.name} is allowed every 60 seconds.", 403)
    stay = routing.stay(routing.topic(call.name))
    if stay is not None:
        await routing.service.administration().purge(stay.name)
    return Reply()


async def get_attributes(call: Call) -> Reply:
    names = call.input.attribute_names
    for name in names:
        if name != "All" and name not in queue_attributes.KNOWN:
            raise SqsError("InvalidAttributeName", f"Unknown Attribute {name}.")
    await call.node.read_index()
    queue = await find_queue(call)
    present = queue_attributes.with_defaults(queue.attributes)
    known = {
        **{name: text for name, text in present.items() if name in queue.attributes or not name.startswith(("Kms", "Dss"))},
        **(await _counts(call) if "All" in names or not COUNTS.keys().isdisjoint(names) else {}),
        "CreatedTimestamp": str(queue.created_ms // 1000),
        "LastModifiedTimestamp": str(queue.modified_ms // 1000),
        "QueueArn": arn_of(call.name, call.region),
    }
    shown = {name: text for name, text in known.items() if "All" in names or name in names}
    return Reply({"Attributes": shown} if shown else {})


async def _counts(call: Call) -> dict[str, str]:
    """The numbers of messages, in the log and on the engine together.

    Raises:
        Refused: `engine_away`.
    """
    node, routing = call.node, routing_of(call.node)
    line = next(one for one in stats(broker_of(call), call.name, node.now_ms())["groups"] if one["group"] == GROUP)
    counts = {name: line[field] for name, field in COUNTS.items()}
    stay = routing.stay(routing.topic(call.name))
    if stay is not None:
        group = await routing.service.views().group_stats(stay.name, GROUP, node.now_ms())
        counts = {name: counts[name] + getattr(group, field) for name, field in COUNTS.items()}
    return {name: str(count) for name, count in counts.items()}


async def set_attributes(call: Call) -> Reply:
    queue = await find_queue(call)
    given = call.input.attributes
    if not given:
        raise SqsError("MissingParameter", "The request must contain the parameter Attribute.Name.")
    given = queue_attributes.checked(call.name, given, creates=False)
    if given.get("RedrivePolicy"):
        await _require_target(call, given["RedrivePolicy"])
    left = {name: text for name, text in {**queue.attributes, **given}.items() if text}
    await _check_engine(call, queue.attributes, left)
    await _submit(call, ChangeQueue(topic=call.name, attributes=given))
    return Reply()


async def tag_queue(call: Call) -> Reply:
    _check_tags(call.name, call.input.tags)
    if not call.input.tags:
        raise SqsError("MissingParameter", "The request must contain the parameter Tags.")
    await submit(call, ChangeQueue(topic=call.name, tags=call.input.tags))
    return Reply()


async def untag_queue(call: Call) -> Reply:
    keys = call.input.tag_keys
    if not keys or not all(1 <= len(key) <= 128 for key in keys):
        raise bad_value("Tag keys must be between 1 and 128 characters in length.")
    if len(keys) > TAGS_MAX:
        raise bad_value(f"A queue has at most {TAGS_MAX} tags.")
    await submit(call, ChangeQueue(topic=call.name, untag=keys))
    return Reply()


async def list_tags(call: Call) -> Reply:
    await call.node.read_index()
    tags = (await find_queue(call)).tags
    return Reply({"Tags": tags} if tags else {})
