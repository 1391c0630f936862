"""What the SQS endpoint keeps of the topics of SNS: their attributes and subscriptions. They hold no messages.

They have names of their own: a topic of SNS and a queue may have the same name.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from dss_api.fields import Name
from dss_queue.core.filter_policies import parsed, parsed_bytes
from dss_queue.core.sqs_queues import Attributes
from dss_raft.replication.commands import Command
from dss_raft.replication.limits import text_bytes

SNS_TOPICS_MAX = 10_000
SUBSCRIPTIONS_MAX = 1000
#: A topic or a subscription; its texts are added.
SNS_BYTES = 1024
NOTICES_MAX = 10


class CreateSnsTopic(Command, tag="queue.sns_create", kw_only=True):
    """Create a topic of SNS. A topic that exists stays as it is."""

    since: ClassVar[int] = 5

    sns_topic: Name
    attributes: Attributes = {}


class DeleteSnsTopic(Command, tag="queue.sns_delete", kw_only=True):
    """Delete a topic of SNS with its subscriptions."""

    since: ClassVar[int] = 5

    sns_topic: Name


class Subscribe(Command, tag="queue.sns_subscribe", kw_only=True):
    """Send what is published to a topic of SNS to a queue, too."""

    since: ClassVar[int] = 5

    sns_topic: Name
    queue: Name
    attributes: Attributes = {}

    def __post_init__(self) -> None:
        parsed(self.attributes.get("FilterPolicy") or "{}")


class Unsubscribe(Command, tag="queue.sns_unsubscribe", kw_only=True):
    """End a subscription."""

    since: ClassVar[int] = 5

    sns_topic: Name
    subscription: Annotated[int, msgspec.Meta(ge=0)]


class Notice(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What is published to a topic of SNS."""

    message: str
    #: as SQS keeps them: name -> "DataType", and "StringValue" or "BinaryValue"
    attributes: dict[str, dict[str, str]]
    #: further headers of the message in a queue
    headers: dict[str, str]
    #: further fields of the JSON object that is the message in other queues
    envelope: dict[str, str]


class PublishToSns(Command, tag="queue.sns_publish", kw_only=True):
    """Store messages in all queues whose subscriptions match, or in none."""

    since: ClassVar[int] = 5

    sns_topic: Name
    notices: Annotated[list[Notice], msgspec.Meta(max_length=NOTICES_MAX)]


class Subscription(msgspec.Struct, array_like=True):
    """A queue gets what is published."""

    #: unique in the broker
    serial: int
    queue: str
    attributes: dict[str, str]

    @property
    def bytes(self) -> int:
        """What it counts towards `queue_bytes_max`."""
        # Its policy is there twice: as a text, and as what was parsed.
        policy = self.attributes.get("FilterPolicy", "")
        return SNS_BYTES + text_bytes(self.queue) + _texts(self.attributes) + text_bytes(policy) + parsed_bytes(policy)


class SnsTopic(msgspec.Struct, array_like=True):
    """A topic of SNS."""

    name: str
    attributes: dict[str, str]
    subscriptions: list[Subscription] = []

    @property
    def own_bytes(self) -> int:
        """What it counts towards `queue_bytes_max` without its subscriptions."""
        return SNS_BYTES + text_bytes(self.name) + _texts(self.attributes)


def _texts(attributes: dict[str, str]) -> int:
    return sum(text_bytes(name) + text_bytes(text) for name, text in attributes.items())
