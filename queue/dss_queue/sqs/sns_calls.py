"""A small SNS at the same port: topics whose messages go to queues. See `core/sns_fanout.py`."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from heapq import nsmallest
from typing import Any

import msgspec

from dss_api.caller import caller
from dss_queue.core import filter_policies
from dss_queue.core.sns_topics import (
    CreateSnsTopic,
    DeleteSnsTopic,
    Notice,
    PublishToSns,
    SnsTopic,
    Subscribe,
    Unsubscribe,
)
from dss_queue.routing import routing_of
from dss_queue.sqs import messages
from dss_queue.sqs.attributes import ACCOUNT, arn_of, is_fifo, is_on_engine
from dss_queue.sqs.calls import Call, Reply, broker_of, checked_result, find_queue, may_publish, queue_in_arn, submit
from dss_queue.sqs.errors import SqsError, bad_value
from dss_queue.sqs.message_calls import checked_entries, failure
from dss_queue.sqs.sns_requests import BYTES_MAX, PublishEntry

PAGE = 100
#: of the serial number that is the token of a page
SERIAL_DIGITS = 20
_SUBJECT = re.compile(r"[!-~][ -~]{0,99}")
#: stored; only the first has an effect, as topics are all of this kind
TOPIC_ATTRIBUTES = frozenset(("FifoTopic", "DisplayName", "Policy", "DeliveryPolicy", "KmsMasterKeyId", "TracingConfig"))


def topic_arn(name: str, region: str) -> str:
    return f"arn:aws:sns:{region}:{ACCOUNT}:{name}"


async def create_topic(call: Call) -> Reply:
    given = call.input
    for name, text in given.attributes.items():
        if name not in TOPIC_ATTRIBUTES:
            raise bad_value(f"Invalid parameter: Attributes Reason: Unknown attribute {name}")
        if name == "FifoTopic" and text != "false":
            raise bad_value("Invalid parameter: Attributes Reason: FifoTopic must be false: FIFO topics are not supported")
    await submit(call, CreateSnsTopic(sns_topic=call.name, attributes=given.attributes))
    return Reply({"TopicArn": topic_arn(call.name, call.region)})


async def delete_topic(call: Call) -> Reply:
    await submit(call, DeleteSnsTopic(sns_topic=call.name))
    return Reply()


async def get_attributes(call: Call) -> Reply:
    await call.node.read_index()
    topic = await _find(call)
    known = {
        "Owner": ACCOUNT,
        "SubscriptionsConfirmed": str(len(topic.subscriptions)),
        "SubscriptionsPending": "0",
        "SubscriptionsDeleted": "0",
        "TopicArn": topic_arn(call.name, call.region),
    }
    return Reply({"Attributes": {**topic.attributes, **known}})


async def list_topics(call: Call) -> Reply:
    await call.node.read_index()
    names = [name for name in _seen(call) if name > call.input.next_token]
    described = [{"TopicArn": topic_arn(name, call.region)} for name in names[:PAGE]]
    return _page("Topics", described, names[PAGE - 1] if len(names) > PAGE else "")


async def list_subscriptions(call: Call) -> Reply:
    await call.node.read_index()
    topics = broker_of(call).registry.sns
    return _subscriptions(call, [topics[name] for name in _seen(call)])


async def list_subscriptions_by_topic(call: Call) -> Reply:
    await call.node.read_index()
    return _subscriptions(call, [await _find(call)])


def _subscriptions(call: Call, topics: list[SnsTopic]) -> Reply:
    token = call.input.next_token
    if token and not (token.isascii() and token.isdecimal() and len(token) <= SERIAL_DIGITS):
        raise bad_value("Invalid parameter: NextToken")
    after = int(token or -1)
    later = ((topic, one) for topic in topics for one in topic.subscriptions if one.serial > after)
    # The first lines alone are described; the one beyond tells whether there are more.
    found = nsmallest(PAGE + 1, later, key=lambda pair: pair[1].serial)
    described = [
        {
            "SubscriptionArn": _subscription_arn(topic.name, one.serial, call.region),
            "Owner": ACCOUNT,
            "Protocol": "sqs",
            "Endpoint": arn_of(one.queue, call.region),
            "TopicArn": topic_arn(topic.name, call.region),
        }
        for topic, one in found[:PAGE]
    ]
    return _page("Subscriptions", described, f"{found[PAGE - 1][1].serial:0{SERIAL_DIGITS}d}" if len(found) > PAGE else "")


def _page(field: str, described: list[dict[str, str]], token: str) -> Reply:
    """A page of at most `PAGE`. "": it is the last one."""
    return Reply({field: described, **({"NextToken": token} if token else {})})


def _seen(call: Call) -> list[str]:
    """The topics that the caller may use in any way."""
    access = caller().access
    seen = tuple(prefix for action in ("publish", "consume", "manage") for prefix in access.prefixes("queue", action))
    sees_all = access.everything or "read" in access.plain or "operate" in access.plain
    return sorted(name for name in broker_of(call).registry.sns if sees_all or name.startswith(seen))


async def _find(call: Call) -> SnsTopic:
    for is_current in (False, True):
        topic = broker_of(call).registry.sns.get(call.name)
        if topic is not None:
            return topic
        if not is_current:
            await call.node.read_index()
    raise SqsError("NotFound", "Topic does not exist", 404)


async def subscribe(call: Call) -> Reply:
    given = call.input
    if given.protocol != "sqs":
        raise bad_value("Invalid parameter: Protocol Reason: only sqs is supported")
    await _find(call)
    queue_name = queue_in_arn(given.endpoint, "Endpoint")
    queue = await find_queue(Call(call.node, queue_name, None, call.base_url, call.region))
    if is_fifo(queue.attributes):
        raise bad_value("Invalid parameter: Endpoint Reason: FIFO queues cannot be subscribed to a standard topic")
    if is_on_engine(queue.attributes):
        raise bad_value("Invalid parameter: Endpoint Reason: queues with DssEngine redis cannot be subscribed to a topic")
    if not may_publish(queue_name):
        raise SqsError("AuthorizationError", f"the token may not publish to {queue_name}", 403)
    _check_subscription(given.attributes)
    result = await submit(call, Subscribe(sns_topic=call.name, queue=queue_name, attributes=given.attributes))
    if not result.body["is_same"]:
        raise bad_value("Invalid parameter: Attributes Reason: Subscription already exists with different attributes")
    return Reply({"SubscriptionArn": _subscription_arn(call.name, result.body["subscription"], call.region)})


def _check_subscription(attributes: dict[str, str]) -> None:
    for name, text in attributes.items():
        if name == "RawMessageDelivery":
            is_right = text in ("true", "false")
        elif name == "FilterPolicyScope":
            is_right = text == "MessageAttributes"
        elif name == "FilterPolicy":
            try:
                filter_policies.parsed(text or "{}")
            except ValueError as error:
                raise bad_value(f"Invalid parameter: FilterPolicy: {error}") from None
            is_right = True
        else:
            raise bad_value(f"Invalid parameter: Attributes Reason: Unknown attribute {name}")
        if not is_right:
            raise bad_value(f"Invalid parameter: Attributes Reason: {name}: Invalid value [{text[:100]}]")


async def unsubscribe(call: Call) -> Reply:
    arn = call.input.subscription_arn
    topic = broker_of(call).registry.sns.get(call.name)
    if topic is None:
        await call.node.read_index()
        topic = broker_of(call).registry.sns.get(call.name)
    for one in topic.subscriptions if topic is not None else ():
        if _subscription_arn(call.name, one.serial, call.region).rpartition(":")[2] == arn.rpartition(":")[2]:
            await submit(call, Unsubscribe(sns_topic=call.name, subscription=one.serial))
    return Reply()


def _subscription_arn(name: str, serial: int, region: str) -> str:
    one = uuid.UUID(bytes=blake2b(f"sns {serial}".encode(), digest_size=16).digest(), version=4)
    return f"{topic_arn(name, region)}:{one}"


async def publish(call: Call) -> Reply:
    return Reply({"MessageId": (await _publish(call, [call.input]))[0]})


async def publish_batch(call: Call) -> Reply:
    entries = checked_entries(call.input.entries, "Publish")
    accepted, failed = [], []
    for entry in entries:
        try:
            _check(entry)
            accepted.append(entry)
        except SqsError as error:
            failed.append(failure(entry.id, error))
    ids = await _publish(call, accepted) if accepted else []
    successful = [{"Id": entry.id, "MessageId": one} for entry, one in zip(accepted, ids, strict=True)]
    return Reply({"Successful": successful, "Failed": failed})


def _check(entry: PublishEntry) -> None:
    if not entry.message:
        raise bad_value("Invalid parameter: Empty message")
    messages.check_body(entry.message)
    messages.check_attributes(entry.message_attributes)
    if entry.subject and not _SUBJECT.fullmatch(entry.subject):
        raise bad_value("Invalid parameter: Subject")
    if entry.message_structure not in ("", "json"):
        raise bad_value("Invalid parameter: MessageStructure")
    _text_of(entry)


def _text_of(entry: PublishEntry) -> str:
    """The message for queues."""
    if not entry.message_structure:
        return entry.message
    try:
        texts = msgspec.json.decode(entry.message, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        texts = {}
    if not isinstance(texts.get("default"), str) or not isinstance(texts.get("sqs", ""), str):
        raise bad_value("Invalid parameter: Message Structure - No default entry in JSON message body")
    return str(texts.get("sqs", texts["default"]))


async def _publish(call: Call, entries: Sequence[PublishEntry]) -> list[str]:
    """Returns the ids of the messages."""
    size = 0
    for entry in entries:
        _check(entry)
        size += messages.bytes_of(entry.message, entry.message_attributes)
    if size > BYTES_MAX:
        raise bad_value(f"Invalid parameter: Message too long: at most {BYTES_MAX} bytes")
    await _find(call)
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    headers = {messages.H_SENDER: caller().owner or "anyone"}
    ids, notices = [], []
    for entry in entries:
        ids.append(str(uuid.uuid4()))
        subject = {"Subject": entry.subject} if entry.subject else {}
        envelope = {"MessageId": ids[-1], "TopicArn": topic_arn(call.name, call.region), **subject, "Timestamp": now}
        attributes = {name: msgspec.to_builtins(value) for name, value in entry.message_attributes.items()}
        notices.append(Notice(_text_of(entry), attributes, headers, envelope))
    checked_result(await routing_of(call.node).submit(PublishToSns(sns_topic=call.name, notices=notices)))
    return ids
