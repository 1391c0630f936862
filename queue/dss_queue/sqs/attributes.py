"""The attributes of queues: which can be set, with what values, and the defaults."""

from __future__ import annotations

import re
from typing import Any, get_args

import msgspec

from dss_queue.core.commands import Acks, Engine, TopicSettings
from dss_queue.core.sqs_queues import ACKS_ATTRIBUTE, ENGINE_ATTRIBUTE, RECEIVES_MAX, RedrivePolicy
from dss_queue.sqs.errors import SqsError

ACCOUNT = "000000000000"
REGION_DEFAULT = "us-east-1"
NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}|[A-Za-z0-9_-]{1,75}\.fifo")

#: attribute -> (default, lowest, highest)
NUMBERS = {
    "DelaySeconds": (0, 0, 900),
    "MaximumMessageSize": (1_048_576, 1024, 1_048_576),
    "MessageRetentionPeriod": (345_600, 60, 1_209_600),
    "ReceiveMessageWaitTimeSeconds": (0, 0, 20),
    "VisibilityTimeout": (30, 0, 43_200),
    "KmsDataKeyReusePeriodSeconds": (300, 60, 86_400),
}
CHOICES = {
    "FifoQueue": ("true", "false"),
    "ContentBasedDeduplication": ("true", "false"),
    "SqsManagedSseEnabled": ("true", "false"),
    "DeduplicationScope": ("queue", "messageGroup"),
    "FifoThroughputLimit": ("perQueue", "perMessageGroupId"),
    # Not of AWS: the settings `engine` and `acks` of the topic.
    ENGINE_ATTRIBUTE: get_args(Engine),
    ACKS_ATTRIBUTE: get_args(Acks),
}
DOCUMENTS = ("Policy", "RedriveAllowPolicy")
FIFO_ONLY = ("ContentBasedDeduplication", "DeduplicationScope", "FifoThroughputLimit")
FIFO_DEFAULTS = {
    "FifoQueue": "true",
    "ContentBasedDeduplication": "false",
    "DeduplicationScope": "queue",
    "FifoThroughputLimit": "perQueue",
}
#: those that AWS does not have are shown only where they were set
OWN_DEFAULTS = {ENGINE_ATTRIBUTE: TopicSettings().engine, ACKS_ATTRIBUTE: TopicSettings().acks}
#: setting of a topic -> the attribute that gives it
OF_SETTINGS = {"engine": ENGINE_ATTRIBUTE, "acks": ACKS_ATTRIBUTE, "dead_letter_topic": "RedrivePolicy"}
READ_ONLY = frozenset(
    (
        "ApproximateNumberOfMessages",
        "ApproximateNumberOfMessagesDelayed",
        "ApproximateNumberOfMessagesNotVisible",
        "CreatedTimestamp",
        "LastModifiedTimestamp",
        "QueueArn",
    )
)
SETTABLE = frozenset((*NUMBERS, *CHOICES, *DOCUMENTS, "RedrivePolicy", "KmsMasterKeyId"))
KNOWN = SETTABLE | READ_ONLY


def arn_of(name: str, region: str) -> str:
    return f"arn:aws:sqs:{region}:{ACCOUNT}:{name}"


def with_defaults(attributes: dict[str, str]) -> dict[str, str]:
    """The attributes of a queue, with the defaults of those that were not set."""
    defaults = {name: str(default) for name, (default, _, _) in NUMBERS.items()}
    return {**defaults, **OWN_DEFAULTS, **(FIFO_DEFAULTS if is_fifo(attributes) else {}), **attributes}


def number(attributes: dict[str, str], name: str) -> int:
    """A number among the attributes of a queue, or its default."""
    return int(attributes.get(name, NUMBERS[name][0]))


def is_fifo(attributes: dict[str, str]) -> bool:
    return attributes.get("FifoQueue") == "true"


def checked(name: str, attributes: dict[str, str], creates: bool) -> dict[str, str]:
    """Check the attributes that are given for the queue `name`. Returns them as they are stored.

    Raises:
        SqsError: `InvalidAttributeName`, `InvalidAttributeValue`.
    """
    fifo = name.endswith(".fifo")
    for attribute, text in attributes.items():
        if attribute not in SETTABLE:
            raise SqsError("InvalidAttributeName", f"Unknown Attribute {attribute}.")
        if attribute in FIFO_ONLY and not fifo:
            raise SqsError("InvalidAttributeName", f"Unknown Attribute {attribute}.")
        if text == "" and not creates and attribute in (*DOCUMENTS, "RedrivePolicy", "KmsMasterKeyId"):
            continue
        _check_value(name, attribute, text)
    given = attributes.get("FifoQueue")
    if given is not None and not creates and (given == "true") != fifo:
        raise wrong("FifoQueue", "It cannot be changed.")
    if creates and fifo and given != "true":
        raise SqsError(
            "InvalidParameterValue", "Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length"
        )
    if creates and given == "true" and not fifo:
        raise SqsError(
            "InvalidParameterValue",
            "The name of a FIFO queue can only include alphanumeric characters, "
            "hyphens, or underscores, must end with .fifo suffix and be 1 to 80 in length.",
        )
    stored = {attribute: text for attribute, text in attributes.items() if attribute != "FifoQueue" or text == "true"}
    if stored.get("RedrivePolicy"):
        policy = _document("RedrivePolicy", stored["RedrivePolicy"])
        # The replicated state reads these two fields, and no other ones. Otherwise the text stays as it is.
        kept = RedrivePolicy(policy["deadLetterTargetArn"], int(policy["maxReceiveCount"]))
        if policy != msgspec.to_builtins(kept):
            stored["RedrivePolicy"] = msgspec.json.encode(kept).decode()
    return stored


def is_on_engine(attributes: dict[str, str]) -> bool:
    """Whether new messages of the queue go to Valkey or Redis."""
    return attributes.get(ENGINE_ATTRIBUTE) == "redis"


def check_engine(attributes: dict[str, str]) -> None:
    """Check that all attributes of a queue can be kept where its messages are.

    Raises:
        SqsError: names the attribute that cannot.
    """
    if not is_on_engine(attributes):
        if attributes.get(ACKS_ATTRIBUTE, "primary") != "primary":
            raise wrong(
                ACKS_ATTRIBUTE, "It needs DssEngine redis; in the replicated log, messages are on the disks of a majority."
            )
        return
    if attributes.get("RedrivePolicy"):
        raise wrong(
            "RedrivePolicy",
            "A queue with DssEngine redis cannot have a dead-letter queue: its messages cannot move to another queue in one step.",
        )
    if is_fifo(attributes) and attributes.get("DeduplicationScope") != "messageGroup":
        raise wrong(
            "DeduplicationScope",
            "A FIFO queue with DssEngine redis must have messageGroup: it remembers deduplication ids for each message group only.",
        )


def _check_value(name: str, attribute: str, text: str) -> None:
    if attribute in NUMBERS:
        _, lowest, highest = NUMBERS[attribute]
        if not re.fullmatch(r"\d{1,9}", text) or not lowest <= int(text) <= highest:
            raise wrong(attribute)
    elif attribute in CHOICES:
        if text not in CHOICES[attribute]:
            raise wrong(attribute)
    elif attribute in DOCUMENTS:
        _document(attribute, text)
    elif attribute == "RedrivePolicy":
        check_redrive_policy(name, text)


def check_redrive_policy(name: str, text: str) -> str:
    """Returns the name of the dead-letter queue.

    Raises:
        SqsError: it is no policy, or not one for this queue.
    """
    policy = _document("RedrivePolicy", text)
    arn, receives = policy.get("deadLetterTargetArn"), policy.get("maxReceiveCount")
    if not isinstance(arn, str) or receives is None:
        raise wrong("RedrivePolicy", "Redrive policy must contain deadLetterTargetArn and maxReceiveCount.")
    if not re.fullmatch(r"\d{1,4}", str(receives)) or not 1 <= int(receives) <= RECEIVES_MAX:
        raise wrong(
            "RedrivePolicy",
            f"Invalid value for maxReceiveCount: {receives}, valid values are from 1 to {RECEIVES_MAX} both inclusive.",
        )
    target = arn.rpartition(":")[2]
    if not arn.startswith("arn:") or not NAME_PATTERN.fullmatch(target):
        raise wrong("RedrivePolicy", "Invalid value for deadLetterTargetArn.")
    if target.endswith(".fifo") != name.endswith(".fifo"):
        raise wrong("RedrivePolicy", "Dead-letter queue must be same type of queue as the source.")
    if target == name:
        raise wrong("RedrivePolicy", "Dead-letter queue must be another queue.")
    return target


def _document(attribute: str, text: str) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        raise wrong(attribute) from None
    return document


def wrong(attribute: str, reason: str = "") -> SqsError:
    """The refusal of an attribute's value."""
    return SqsError(
        "InvalidAttributeValue", f"Invalid value for the parameter {attribute}." + (f" Reason: {reason}" if reason else "")
    )
