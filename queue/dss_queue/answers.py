"""The answers of the queue's operations, field by field."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from dss_api.answer import Answer, Part, RaftIndex
from dss_queue.core.commands import Acks, Engine, TopicSettings

#: As published; null: none. Stored and sent as JSON text, like `value`.
Headers = Annotated[Any, msgspec.Meta(extra_json_schema={"type": ["object", "null"], "additionalProperties": {"type": "string"}})]

#: Where the call took effect: on the disks of a majority of the nodes, or on Valkey or Redis, as the topic's `acks` says.
Durability = Literal["replicated-log", "redis"]
#: Null: the call took effect on the engine `redis`, which has no such index.
EngineIndex = RaftIndex | None


class MessageAnswer(Answer, kw_only=True):
    """Base of the answers to calls on messages, which either engine can carry out."""

    #: what carried it out: `replicated-log`, or `redis` (for an ack of messages of both)
    durability: Durability = "replicated-log"


class Published(Part):
    msg_id: str
    partition: int
    #: the dedup_id was already used; `msg_id` is the earlier message
    duplicate: bool
    #: true: the topic did not exist, and has been created with the default settings; from cluster version 5 on
    created: bool | UnsetType = UNSET


class PublishAnswer(MessageAnswer, kw_only=True):
    #: with `messages` in the call, the answer has only this list
    msg_id: str | UnsetType = UNSET
    partition: int | UnsetType = UNSET
    duplicate: bool | UnsetType = UNSET
    #: true: the topic did not exist, and has been created with the default settings; from cluster version 5 on
    created: bool | UnsetType = UNSET
    messages: list[Published] | UnsetType = UNSET
    index: EngineIndex


class Delivered(Part, kw_only=True):
    msg_id: str
    #: any JSON
    value: Any
    key: str
    headers: Headers
    partition: int
    #: identifies this delivery in ack, nack and extend
    receipt: str
    #: 1 for the first delivery
    attempt: int
    #: the beginning of the first delivery to the group that counts; missing before cluster version 5
    first_delivered_ms: int | UnsetType = UNSET
    delivered_ms: int
    #: the message is delivered to another consumer then, unless it is acked or extended
    visible_until_ms: int
    published_ms: int


class ConsumeAnswer(MessageAnswer, kw_only=True):
    #: null: there was no message
    msg_id: str | UnsetType | None = UNSET
    value: Any = UNSET
    key: str | UnsetType = UNSET
    headers: Headers = UNSET
    partition: int | UnsetType = UNSET
    receipt: str | UnsetType = UNSET
    attempt: int | UnsetType = UNSET
    first_delivered_ms: int | UnsetType = UNSET
    delivered_ms: int | UnsetType = UNSET
    visible_until_ms: int | UnsetType = UNSET
    published_ms: int | UnsetType = UNSET
    #: with `max_messages` in the call, instead of the fields of one message
    messages: list[Delivered] | UnsetType = UNSET
    #: why there was no message: no_messages, all_in_flight, delayed, key_blocked
    empty_reason: str | UnsetType = UNSET
    index: EngineIndex


class AckResult(Part):
    msg_id: str
    acked: bool
    #: "stale_receipt" when another consumer has it
    code: str | UnsetType = UNSET


class AckAnswer(MessageAnswer, kw_only=True):
    #: false: it was already acked, or with `msg_ids`: not all of them were acked
    acked: bool
    #: with `publish`
    published: list[Published] | UnsetType = UNSET
    #: with `publish` or `release`: for each lock, whether it was held
    released: list[bool] | UnsetType = UNSET
    #: with `msg_ids`
    results: list[AckResult] | UnsetType = UNSET
    index: EngineIndex


class NackAnswer(MessageAnswer, kw_only=True):
    #: false: the message was not in flight
    nacked: bool
    #: it went to the dead letters
    dead: bool
    index: EngineIndex


class ExtendAnswer(MessageAnswer, kw_only=True):
    msg_id: str
    #: with `visibility_ms: 0` in the call: now
    visible_until_ms: int
    index: EngineIndex


class EngineState(Part):
    """Whether this node reaches the servers that a topic's messages are on."""

    #: `ready`; otherwise the numbers are those of the log only: `none`, `connecting`, `away` or `unfit`
    state: Literal["none", "connecting", "ready", "away", "unfit"]
    #: why it is not ready
    detail: str


class TopicStats(Part):
    topic: str
    messages: int
    bytes: int
    published: int
    oldest_age_ms: int
    dead: int
    group_count: int
    #: the engine that the topic leaves, while something is left there
    moving_from: Engine | UnsetType = UNSET
    #: of a topic with messages on the engine `redis`
    engine: EngineState | UnsetType = UNSET
    #: with `topics` in the call
    settings: TopicSettings | UnsetType = UNSET
    #: with `topics` in the call: messages that are ready for its `group`
    ready: int | UnsetType = UNSET


class GroupStats(Part):
    group: str
    ready: int
    delayed: int
    in_flight: int
    #: dead letters
    dead: int
    #: consumers that wait for a message
    waiters: int
    oldest_age_ms: int
    #: totals since the group was created
    delivered: int
    redelivered: int
    acked: int
    #: dead letters by reason
    dead_total: dict[str, int]
    #: over ten seconds
    deliver_per_second: float
    ack_per_second: float


class StatsAnswer(Answer, kw_only=True):
    #: without `topic` in the call: whether topics are created by using them
    create_topics: bool | UnsetType = UNSET
    #: without `topic` in the call: one line for each topic
    topics: list[TopicStats] | UnsetType = UNSET
    topic_count: int | UnsetType = UNSET
    topic: str | UnsetType = UNSET
    messages: int | UnsetType = UNSET
    bytes: int | UnsetType = UNSET
    published: int | UnsetType = UNSET
    oldest_age_ms: int | UnsetType = UNSET
    dead: int | UnsetType = UNSET
    group_count: int | UnsetType = UNSET
    #: the engine that the topic leaves, while something is left there
    moving_from: Engine | UnsetType = UNSET
    #: of a topic with messages on the engine `redis`
    engine: EngineState | UnsetType = UNSET
    exists: bool | UnsetType = UNSET
    expired: int | UnsetType = UNSET
    #: over ten seconds
    publish_per_second: float | UnsetType = UNSET
    settings: TopicSettings | UnsetType = UNSET
    groups: list[GroupStats] | UnsetType = UNSET


class Ended(Part):
    """A delivery that ended without an ack."""

    attempt: int
    delivered_ms: int
    ended_ms: int
    #: nack, timeout, gone (the consumer hung up before the answer, or unsubscribed), silent, not_received (a timeout of a pushed
    #: message after which nothing was heard from the client), rejected (nack with `dead`), behind (an earlier message of its run
    #: came back)
    reason: str
    #: the node that the consumer called
    node: str


class PeekedMessage(Part, kw_only=True):
    msg_id: str
    value: Any
    headers: Headers
    key: str
    partition: int
    published_ms: int
    #: until its delay is over; not for dead letters
    delayed_for_ms: int | UnsetType = UNSET
    #: with `group`: ready, delayed, in_flight or dead
    state: str | UnsetType = UNSET
    #: when it became a dead letter
    dead_ms: int | UnsetType = UNSET
    #: why it became a dead letter
    reason: str | UnsetType = UNSET
    attempt: int | UnsetType = UNSET
    #: while it is in flight: of the consume that got it
    attempt_id: str | UnsetType = UNSET
    delivered_ms: int | UnsetType = UNSET
    visible_until_ms: int | UnsetType = UNSET
    #: the node of the consumer that has it
    node: str | UnsetType = UNSET
    history: list[Ended] | UnsetType = UNSET


class PeekAnswer(Answer, kw_only=True):
    messages: list[PeekedMessage]


class TopicAnswer(Answer, kw_only=True):
    """The topic's settings, see `TopicSettings`."""

    topic: str
    max_attempts: int
    backoff_ms: int
    retention_ms: int
    dedup_window_ms: int
    keep_ms: int
    max_bytes: int
    #: empty: dead letters stay with their group
    dead_letter_topic: str
    #: where the messages are
    engine: Engine
    #: with `redis`: where a change must be before it is answered
    acks: Acks
    index: RaftIndex


class TopicDeletedAnswer(Answer, kw_only=True):
    #: false: there was no such topic
    deleted: bool
    #: messages that were deleted with it
    purged: int
    index: RaftIndex


class GroupAnswer(Answer, kw_only=True):
    #: false: it existed already, and stays as it was
    created: bool
    #: messages that the group has to finish
    pending: int
    index: RaftIndex


class GroupDeletedAnswer(Answer, kw_only=True):
    #: false: there was no such group
    deleted: bool
    index: RaftIndex


class QueueSettingsAnswer(Answer, kw_only=True):
    create_topics: bool
    index: RaftIndex


class RedriveAnswer(Answer, kw_only=True):
    redriven: int
    index: RaftIndex


class PurgeAnswer(Answer, kw_only=True):
    purged: int
    index: RaftIndex
