"""The requests and commands of the queue: their fields, limits and defaults. They are defined only here.

A message's value and headers are JSON for the client and encoded bytes in the log. The entry points decode the types that end in
`Request`; the log holds the command of the same name.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from dss_api.fields import DurationMs, Fields, Index, Name, OptionalName, WaitMs, check_name
from dss_raft.replication.commands import Command

MESSAGES_PER_CALL_MAX = 1000
#: `topics` of one `queue.stats`
TOPICS_PER_QUERY_MAX = 100
LOCKS_PER_ACK_MAX = 64
HEADERS_MAX = 64
HEADERS_BYTES_MAX = 16 * 1024
VISIBILITY_MS_MAX = 12 * 3600 * 1000
TIMEOUT_MS_DEFAULT = 1000
MAX_ATTEMPTS_DEFAULT = 20
DEDUP_WINDOW_MS_DEFAULT = 300_000
RETENTION_MS_DEFAULT = 7 * 24 * 3600 * 1000
TOPIC_BYTES_DEFAULT = 1024**3
TOPICS_MAX = 10_000
GROUPS_PER_TOPIC_MAX = 1000
#: One consume hands out no further message once it has more than this.
BYTES_PER_CONSUME_MAX = 4 * 1024 * 1024

VisibilityMs = Annotated[int, msgspec.Meta(ge=1, le=VISIBILITY_MS_MAX)]
#: "<index>-<n>", from the answer of `publish`
MessageId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Receipt = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
MessageCount = Annotated[int, msgspec.Meta(ge=1, le=MESSAGES_PER_CALL_MAX)]
HeaderText = Annotated[str, msgspec.Meta(max_length=HEADERS_BYTES_MAX)]
Headers = Annotated[dict[Name, HeaderText], msgspec.Meta(max_length=HEADERS_MAX)]
Consistency = Literal["linearizable", "local"]
#: where the messages of a topic are: in the log, or on Valkey or Redis
Engine = Literal["raft", "redis"]
#: Where a change must be before it counts: in the memory of the primary, also in that of a replica, or on the disks of both.
#: It is about the servers of the engine `redis`, and has nothing to do with the `ack` of a message.
Acks = Literal["primary", "replica", "fsync"]


# ------------------------------------------------------------------ publish


class MessageFields(Fields, kw_only=True):
    """The fields of a message besides its value."""

    #: routing key: messages with the same key reach a group in the order published; empty: none
    key: OptionalName = ""
    #: hidden from every group for this time
    delay_ms: DurationMs = 0
    #: a second message with the same id within the topic's window is not stored; the answer has the msg_id of the first one
    dedup_id: OptionalName = ""


class MessageRequest(MessageFields, kw_only=True):
    """One message as a client sends it."""

    value: msgspec.Raw
    headers: Headers | None = None

    def __post_init__(self) -> None:
        _check_message(self)


class TopicMessageRequest(MessageRequest, kw_only=True):
    """One message with its topic, as an `ack` publishes it."""

    topic: Name

    def __post_init__(self) -> None:
        check_name("topic", self.topic)
        _check_message(self)


class PublishRequest(MessageFields, kw_only=True):
    """One message, or several in `messages`: all of them or none."""

    topic: Name
    value: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    headers: Headers | None = None
    messages: Annotated[list[MessageRequest], msgspec.Meta(min_length=1, max_length=MESSAGES_PER_CALL_MAX)] | None = None

    def __post_init__(self) -> None:
        check_name("topic", self.topic)
        if self.messages is None:
            if self.value is msgspec.UNSET:
                raise ValueError("`value` is missing (or `messages`, for several)")
            _check_message(self)
        elif self.value is not msgspec.UNSET or self.headers or self.key or self.delay_ms or self.dedup_id:
            raise ValueError(
                "`messages` excludes `value`, `key`, `headers`, `delay_ms` and `dedup_id`: give them inside each message"
            )


class NewMessage(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One message as the log holds it."""

    topic: Name
    #: JSON
    value: bytes
    key: OptionalName
    #: computed from the key by the node that received the call, so that every node applies the same one; -1 without a key
    partition: int
    delay_ms: DurationMs
    dedup_id: OptionalName
    #: a JSON object, or empty
    headers: bytes


class Publish(Command, tag="queue.publish", kw_only=True):
    """Store messages, all of them or none."""

    messages: list[NewMessage]


# ------------------------------------------------------------------ consume


class ConsumeFields(Fields, kw_only=True):
    """Take messages for a group; wait up to `timeout_ms` for the first one."""

    topic: Name
    group: Name
    #: how long to wait when no message is ready
    timeout_ms: WaitMs = TIMEOUT_MS_DEFAULT
    #: names this attempt of the client: if the answer is lost, a repeat of the call gets the same messages
    attempt_id: OptionalName = ""


class ConsumeRequest(ConsumeFields, kw_only=True):
    #: None: the node's QUEUE_VISIBILITY_TIMEOUT_MS
    visibility_ms: VisibilityMs | None = None
    #: if given, the answer has a list, `messages`
    max_messages: MessageCount | None = None
    #: messages of one routing key that may be taken together, in order: a run
    max_per_key: MessageCount = 1

    def __post_init__(self) -> None:
        check_name("topic", self.topic)
        check_name("group", self.group)
        check_name("attempt_id", self.attempt_id)


class Consume(ConsumeFields, Command, tag="queue.consume", kw_only=True):
    is_undone_by_cancel: ClassVar[bool] = True

    #: each message stays hidden for this time; then it is delivered again unless it was acked
    visibility_ms: VisibilityMs
    max_messages: MessageCount = 1
    #: False: refused with `not_found` if the group does not exist
    create: bool = True


class ConsumeRuns(Consume, tag="queue.consume_runs", kw_only=True):
    """Take messages, several of one key together."""

    since: ClassVar[int] = 5

    max_per_key: MessageCount


class Subscribe(Fields, kw_only=True):
    """Receive a group's messages as they arrive, over a WebSocket."""

    topic: Name
    group: Name
    #: unfinished messages at one time
    credit: MessageCount = 10
    #: each message stays hidden for this time; None: the node's QUEUE_VISIBILITY_TIMEOUT_MS
    visibility_ms: VisibilityMs | None = None

    def __post_init__(self) -> None:
        check_name("topic", self.topic)
        check_name("group", self.group)


# ---------------------------------------------------------- ack, nack, extend


class AckFields(Fields, kw_only=True):
    """One message is done, or several are."""

    topic: Name
    group: Name
    msg_id: MessageId | None = None
    receipt: Receipt | None = None
    msg_ids: Annotated[list[MessageId], msgspec.Meta(min_length=1, max_length=MESSAGES_PER_CALL_MAX)] | None = None
    #: one per entry of `msg_ids`, in the same order
    receipts: Annotated[list[Receipt], msgspec.Meta(max_length=MESSAGES_PER_CALL_MAX)] | None = None

    def __post_init__(self) -> None:
        check_name("topic", self.topic)
        check_name("group", self.group)
        if (self.msg_id is None) == (self.msg_ids is None):
            raise ValueError("give either `msg_id` or `msg_ids`")
        if self.msg_ids is None:
            if self.receipts is not None:
                raise ValueError("`receipts` goes with `msg_ids`")
        elif self.receipt is not None:
            raise ValueError("`receipt` goes with `msg_id`")
        elif self.receipts is not None and len(self.receipts) != len(self.msg_ids):
            raise ValueError("`receipts` and `msg_ids` must have the same length")


class LockRelease(Fields, kw_only=True):
    """A lock that an `ack` releases."""

    key: Name
    client: Name
    #: if given, the lock must still be held under this token; otherwise the whole ack is refused
    fencing_token: Index | None = None

    def __post_init__(self) -> None:
        check_name("key", self.key)
        check_name("client", self.client)


class AckRequest(AckFields, kw_only=True):
    #: published in the same step: either the messages are done and these are stored, or nothing happens
    publish: Annotated[list[TopicMessageRequest], msgspec.Meta(max_length=MESSAGES_PER_CALL_MAX)] | None = None
    #: locks released in the same step
    release: Annotated[list[LockRelease], msgspec.Meta(max_length=LOCKS_PER_ACK_MAX)] | None = None

    def __post_init__(self) -> None:
        # Only here: logs of earlier releases may have such an `Ack`, in which the last receipt counts.
        super().__post_init__()
        if self.msg_ids is not None and self.receipts is not None and len(set(self.msg_ids)) < len(self.msg_ids):
            raise ValueError("`msg_ids` must name each message once if there are `receipts`")


class Ack(AckFields, Command, tag="queue.ack", kw_only=True):
    publish: list[NewMessage] = []
    release: list[LockRelease] = []


class DeliveryFields(Fields, kw_only=True):
    """Names a delivery: with `receipt` exactly this one, without it the one in flight."""

    topic: Name
    group: Name
    msg_id: MessageId
    receipt: Receipt | None = None

    def __post_init__(self) -> None:
        check_name("topic", self.topic)
        check_name("group", self.group)


class Nack(DeliveryFields, Command, tag="queue.nack", kw_only=True):
    """Give a message back: the attempt failed."""

    #: hidden for this time; None: the topic's backoff
    delay_ms: DurationMs | None = None
    #: straight to the dead letters
    dead: bool = False
    #: does not count as an attempt: the consumer is shutting down
    silent: bool = False


class ExtendRequest(DeliveryFields, kw_only=True):
    """The consumer is still working: hide the message for `visibility_ms` from now. With 0 it gives the message back now."""

    visibility_ms: Annotated[int, msgspec.Meta(ge=0, le=VISIBILITY_MS_MAX)]


class Extend(DeliveryFields, Command, tag="queue.extend", kw_only=True):
    """The consumer is still working: hide the message for `visibility_ms` from now."""

    visibility_ms: VisibilityMs


class Deliveries(Command, kw_only=True):
    """Deliveries that a node has pushed to one subscriber. The node proposes these commands itself."""

    topic: Name
    group: Name
    msg_ids: list[MessageId]
    #: one per entry of `msg_ids`, in the same order
    receipts: list[Receipt]

    def __post_init__(self) -> None:
        if len(self.receipts) != len(self.msg_ids):
            raise ValueError("`receipts` and `msg_ids` must have the same length")


class GiveBack(Deliveries, tag="queue.give_back", kw_only=True):
    """The consumer has gone: return its messages to the group."""


class MarkReceived(Deliveries, tag="queue.mark_received", kw_only=True):
    """Whether anything was heard from the client after these messages were pushed to it. If not, their timeout is no attempt."""

    received: bool


# ------------------------------------------------------------------ topics


class TopicFields(Fields, kw_only=True):
    """The settings of a topic that every cluster version has."""

    #: deliveries of a message to a group before it becomes a dead letter of the group; 0: it never does
    max_attempts: Annotated[int, msgspec.Meta(ge=0, le=1000)] = MAX_ATTEMPTS_DEFAULT
    #: delay before the second delivery, doubled for each further one, at most an hour; 0: none
    backoff_ms: DurationMs = 0
    #: a message older than this goes to the dead letters of each group that has not taken it; without groups it is deleted; 0: never
    retention_ms: DurationMs = RETENTION_MS_DEFAULT
    #: how long a dedup_id is remembered; 0: not at all
    dedup_window_ms: DurationMs = DEDUP_WINDOW_MS_DEFAULT
    #: how long after its publication a message stays for groups that come later, although every group has finished it; 0: not at all
    keep_ms: DurationMs = 0
    #: bytes of values, keys and headers in the topic, dead letters included; 0: only the limit of the node applies
    max_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = TOPIC_BYTES_DEFAULT


class LatestTopicFields(TopicFields, kw_only=True):
    """Also the fields that came later, apart from `engine` and `acks`."""

    #: the topic to which dead letters move; empty: they stay with their group
    dead_letter_topic: OptionalName = ""


class TopicSettings(LatestTopicFields, kw_only=True):
    """A topic's settings."""

    #: where the messages are: `raft`, in the replicated log, or `redis`
    engine: Engine = "raft"
    #: with `redis`: where a change must be before it is answered
    acks: Acks = "primary"


class PutTopicRequest(LatestTopicFields, kw_only=True):
    """Settings of a topic. A call replaces all of them; a field that it leaves out gets its default, apart from `engine` and `acks`."""

    topic: Name
    #: where the messages are: `raft`, in the replicated log, or `redis`. With another engine than before, the topic moves: the
    #: messages on the old engine are delivered first, and new messages go to the new one. None: the topic stays where it is; a
    #: new one is in the log
    engine: Engine | None = None
    #: with `redis`: where a change must be before it is answered. None: as before; `primary` for a topic that was not on `redis`
    acks: Acks | None = None

    def __post_init__(self) -> None:
        check_name("topic", self.topic)
        check_name("dead_letter_topic", self.dead_letter_topic)
        if self.dead_letter_topic == self.topic:
            raise ValueError("`dead_letter_topic` must be another topic")


class PutTopic(TopicFields, Command, tag="queue.topic", kw_only=True):
    topic: Name
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=1000)] = MAX_ATTEMPTS_DEFAULT

    def __post_init__(self) -> None:
        check_name("topic", self.topic)


class SetTopic(PutTopicRequest, Command, tag="queue.topic_settings", kw_only=True):
    """`PutTopic` with the settings that older cluster versions do not have."""

    since: ClassVar[int] = 5


class Redrive(Command, tag="queue.redrive", kw_only=True):
    """Move dead letters of a group back to its queue; their count of attempts starts again."""

    topic: Name
    group: Name
    #: only this one; None: all
    msg_id: MessageId | None = None

    def __post_init__(self) -> None:
        check_name("topic", self.topic)
        check_name("group", self.group)


class Purge(Command, tag="queue.purge", kw_only=True):
    """Delete the messages of a topic, or its dead letters."""

    topic: Name
    #: the dead letters instead of the messages
    dead: bool = False
    #: with `dead`: only this group's
    group: OptionalName = ""

    def __post_init__(self) -> None:
        check_name("topic", self.topic)
        check_name("group", self.group)
        if self.group and not self.dead:
            raise ValueError("`group` goes with `dead`: messages belong to every group of the topic")


# ------------------------------------------------------------------ queries


class StatsQuery(Fields, kw_only=True):
    """Neither `topic` nor `topics`: every topic."""

    topic: OptionalName = ""
    #: several topics, in one call; those that do not exist are not in the answer
    topics: Annotated[list[Name], msgspec.Meta(min_length=1, max_length=TOPICS_PER_QUERY_MAX)] | None = None
    #: goes with `topics`: how many messages are ready for this group
    group: OptionalName = ""
    consistency: Consistency = "linearizable"

    def __post_init__(self) -> None:
        for name in self.topics or ():
            check_name("topics", name)
        if self.topics is not None and self.topic:
            raise ValueError("give either `topic` or `topics`")
        if self.topics is None and self.group:
            raise ValueError("`topics` is missing: `group` goes with it")


class PeekQuery(Fields, kw_only=True):
    """Without `group`: the messages that the topic retains. With it: its unfinished messages, or with `dead` its dead letters.

    With `msg_id` or `dedup_id` only this message; with `group` unless the group has finished it, dead or not.
    """

    topic: Name
    group: OptionalName = ""
    dead: bool = False
    msg_id: MessageId | None = None
    #: of a message that was published within the topic's dedup window
    dedup_id: OptionalName = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 10
    consistency: Consistency = "linearizable"

    def __post_init__(self) -> None:
        if self.dead and not self.group:
            raise ValueError("`group` is missing: dead letters belong to a group")
        if self.msg_id is not None and self.dedup_id:
            raise ValueError("give either `msg_id` or `dedup_id`")


def _check_message(message: MessageRequest | PublishRequest) -> None:
    check_name("key", message.key)
    check_name("dedup_id", message.dedup_id)
    headers = message.headers or {}
    if sum(len(name.encode()) + len(text.encode()) for name, text in headers.items()) > HEADERS_BYTES_MAX:
        raise ValueError(f"`headers` are longer than {HEADERS_BYTES_MAX} bytes")
