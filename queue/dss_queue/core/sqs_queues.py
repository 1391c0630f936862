"""What the SQS endpoint keeps of a queue: its attributes and tags. A queue is a topic that has this, with the group `GROUP`."""

from __future__ import annotations

from typing import Annotated, ClassVar, cast, get_args

import msgspec

from dss_api.fields import Name, check_name
from dss_queue.core.commands import Acks, Engine, Publish, TopicSettings
from dss_raft.replication.commands import Command
from dss_raft.replication.limits import text_bytes

GROUP = "sqs"
RETENTION_S_DEFAULT = 345_600
#: A queue; its texts are added.
QUEUE_BYTES = 1024
#: An attribute or a tag; its texts are added.
ENTRY_BYTES = 256
ATTRIBUTES_MAX = 32
TAGS_MAX = 50
#: A move task, with the name of its target.
MOVE_TASK_BYTES = 1024
#: Move tasks that a queue remembers.
MOVE_TASKS_MAX = 10
#: Tasks of all queues that run at the same time, as in AWS.
MOVES_RUNNING_MAX = 100
#: Messages that a task moves per second, at most what a task may ask for, and without such a wish.
MOVES_PER_SECOND_MAX = 500
MOVES_PER_SECOND_DEFAULT = 1000
PURGE_PAUSE_MS = 60_000

RECEIVES_MAX = 1000
SECONDS_DIGITS_MAX = 9
#: attributes that the broker itself counts with
_SECONDS = ("MessageRetentionPeriod", "DelaySeconds")
#: attributes of our own, which AWS does not have: the settings `engine` and `acks` of the topic
ENGINE_ATTRIBUTE = "DssEngine"
ACKS_ATTRIBUTE = "DssAcks"
_CHOICES = {ENGINE_ATTRIBUTE: get_args(Engine), ACKS_ATTRIBUTE: get_args(Acks)}

AttributeText = Annotated[str, msgspec.Meta(max_length=65_536)]
TagText = Annotated[str, msgspec.Meta(max_length=256)]
Attributes = Annotated[dict[Name, AttributeText], msgspec.Meta(max_length=ATTRIBUTES_MAX)]
Tags = Annotated[dict[TagText, TagText], msgspec.Meta(max_length=TAGS_MAX)]


def _check_attributes(attributes: dict[str, str]) -> None:
    """The port checks attributes before; what the broker uses must be sound on every path. Raises ValueError."""
    for name in _SECONDS:
        text = attributes.get(name, "")
        if text and not (text.isdecimal() and len(text) <= SECONDS_DIGITS_MAX):
            raise ValueError(f"{name} must be a number of seconds")
    for name, choices in _CHOICES.items():
        if attributes.get(name, "") not in ("", *choices):
            raise ValueError(f"{name} must be one of {', '.join(choices)}")


class CreateQueue(Command, tag="queue.sqs_create", kw_only=True):
    """Make a topic a queue. A queue with the same attributes stays as it is."""

    since: ClassVar[int] = 5

    topic: Name
    #: only those that were given; the others have their defaults
    attributes: Attributes = {}
    tags: Tags = {}

    def __post_init__(self) -> None:
        check_name("topic", self.topic)
        _check_attributes(self.attributes)


class ChangeQueue(Command, tag="queue.sqs_change", kw_only=True):
    """Change attributes and tags of a queue."""

    since: ClassVar[int] = 5

    topic: Name
    #: an empty text removes the attribute
    attributes: Attributes = {}
    tags: Tags = {}
    untag: Annotated[list[TagText], msgspec.Meta(max_length=TAGS_MAX)] = []
    #: texts that these attributes must still have ("": not set); otherwise nothing changes, and the result has `changed: false`
    expected: Attributes = {}

    def __post_init__(self) -> None:
        check_name("topic", self.topic)
        _check_attributes(self.attributes)


class PurgeQueue(Command, tag="queue.sqs_purge", kw_only=True):
    """Delete all messages of a queue, unless that was done less than `PURGE_PAUSE_MS` ago: the result has `purged: null` then."""

    since: ClassVar[int] = 5

    topic: Name

    def __post_init__(self) -> None:
        check_name("topic", self.topic)


class StartMove(Command, tag="queue.sqs_start_move", kw_only=True):
    """Move the messages of a queue to another one, some each second."""

    since: ClassVar[int] = 5

    topic: Name
    #: "": each message goes to the queue where it became a dead letter
    target: Annotated[str, msgspec.Meta(max_length=256)] = ""
    #: messages per second; 0: `MOVES_PER_SECOND_DEFAULT`
    rate: Annotated[int, msgspec.Meta(ge=0, le=MOVES_PER_SECOND_MAX)] = 0

    def __post_init__(self) -> None:
        check_name("topic", self.topic)


class CancelMove(Command, tag="queue.sqs_cancel_move", kw_only=True):
    """Stop moving messages. What has moved stays where it is."""

    since: ClassVar[int] = 5

    topic: Name
    task: Annotated[int, msgspec.Meta(ge=0)]

    def __post_init__(self) -> None:
        check_name("topic", self.topic)


class PublishToQueues(Publish, tag="queue.sqs_publish", kw_only=True):
    """`Publish`, refused with `not_found` if one of the topics is no queue: a queue that is deleted must not come back as a topic."""

    since: ClassVar[int] = 5


class MoveTask(msgspec.Struct, array_like=True):
    """Messages of a queue on their way to others. The latest tasks are kept when they have ended."""

    #: unique in the broker: names the task, and orders what is due at the same time
    serial: int
    target: str
    #: messages per second; 0: not given
    rate: int
    started_ms: int
    #: number of the last message that it moves
    last: int
    #: messages that there were at its start, and how many of them have moved
    found: int
    moved: int = 0
    #: "RUNNING", "COMPLETED", "CANCELLED", "FAILED"
    status: str = "RUNNING"
    #: why it failed
    reason: str = ""
    #: when it goes on
    due_ms: int = 0


class Queue(msgspec.Struct, array_like=True):
    """The attributes and tags of a queue, part of its topic."""

    attributes: dict[str, str]
    tags: dict[str, str]
    created_ms: int
    modified_ms: int
    #: when `PurgeQueue` was last carried out; 0: never
    purged_ms: int = 0
    #: the latest ones, at most `MOVE_TASKS_MAX`; only the last one may be running
    moves: list[MoveTask] = []

    @property
    def running(self) -> MoveTask | None:
        """The task that moves messages now."""
        return self.moves[-1] if self.moves and self.moves[-1].status == "RUNNING" else None

    @property
    def bytes(self) -> int:
        """What it counts towards `queue_bytes_max`."""
        return queue_bytes(self.attributes, self.tags) + MOVE_TASK_BYTES * len(self.moves)


def queue_bytes(attributes: dict[str, str], tags: dict[str, str]) -> int:
    """The bytes of a queue with these attributes and tags."""
    entries = [*attributes.items(), *tags.items()]
    return QUEUE_BYTES + sum(ENTRY_BYTES + text_bytes(name) + text_bytes(text) for name, text in entries)


class RedrivePolicy(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """The attribute `RedrivePolicy` as it is stored. Other fields are refused unread, so that no nesting matters."""

    dead_letter_target_arn: str
    max_receive_count: Annotated[int, msgspec.Meta(ge=1, le=RECEIVES_MAX)]


def redrive_policy(attributes: dict[str, str]) -> tuple[str, int] | None:
    """(dead-letter queue, maxReceiveCount) of a `RedrivePolicy`, which was checked before; None without one."""
    try:
        policy = msgspec.json.decode(attributes.get("RedrivePolicy", ""), type=RedrivePolicy, strict=False)
    except msgspec.MsgspecError:
        return None
    return policy.dead_letter_target_arn.rpartition(":")[2], policy.max_receive_count


def settings_of(attributes: dict[str, str]) -> TopicSettings:
    """The settings of the topic of a queue with these attributes."""
    target, max_attempts = redrive_policy(attributes) or ("", 0)
    return TopicSettings(
        max_attempts=max_attempts,
        dead_letter_topic=target,
        retention_ms=int(attributes.get("MessageRetentionPeriod") or RETENTION_S_DEFAULT) * 1000,
        max_bytes=0,
        engine=cast(Engine, attributes.get(ENGINE_ATTRIBUTE) or "raft"),
        acks=cast(Acks, attributes.get(ACKS_ATTRIBUTE) or "primary"),
    )
