"""The requests of SNS, with its field names."""

from __future__ import annotations

import re

import msgspec

from dss_queue.sqs.errors import bad_value
from dss_queue.sqs.messages import AttributeValue
from dss_queue.sqs.requests import ATTRIBUTES_BODY_BYTES_MAX, Input, message_body_bytes_max

#: of a message, or of a batch, with attributes
BYTES_MAX = 262_144
NAME = re.compile(r"[A-Za-z0-9_-]{1,256}")


def name_in_arn(arn: str, parameter: str, parts: int) -> str:
    """The name of a topic, from its ARN, which has 6 parts, or that of a subscription, which has 7.

    Raises:
        SqsError: it is no such ARN.
    """
    pieces = arn.split(":")
    if len(pieces) != parts or pieces[0] != "arn" or pieces[2] != "sns" or not NAME.fullmatch(pieces[5]):
        raise bad_value(f"Invalid parameter: {parameter}")
    return pieces[5]


class CreateTopicInput(Input, kw_only=True):
    naming = ("name",)
    body_bytes_max = ATTRIBUTES_BODY_BYTES_MAX

    name: str = ""
    attributes: dict[str, str] = {}

    def named(self) -> str:
        if not NAME.fullmatch(self.name):
            raise bad_value("Invalid parameter: Topic Name")
        return self.name


class ListTopicsInput(Input, kw_only=True):
    next_token: str = ""


class TopicInput(Input, kw_only=True):
    naming = ("topic_arn",)

    topic_arn: str = ""

    def named(self) -> str:
        return name_in_arn(self.topic_arn, "TopicArn", 6)


class ListByTopicInput(TopicInput, kw_only=True):
    next_token: str = ""


class SubscribeInput(TopicInput, kw_only=True):
    body_bytes_max = ATTRIBUTES_BODY_BYTES_MAX

    protocol: str = ""
    endpoint: str = ""
    attributes: dict[str, str] = {}


class UnsubscribeInput(Input, kw_only=True):
    naming = ("subscription_arn",)

    subscription_arn: str = ""

    def named(self) -> str:
        return name_in_arn(self.subscription_arn, "SubscriptionArn", 7)


class PublishEntry(Input, kw_only=True):
    """The fields of a message in `Publish` and in the entries of a batch."""

    body_bytes_max = message_body_bytes_max(BYTES_MAX)

    #: of an entry
    id: str = ""
    message: str = ""
    subject: str = ""
    message_structure: str = ""
    message_attributes: dict[str, AttributeValue] = {}


class PublishInput(PublishEntry, kw_only=True):
    naming = ("topic_arn", "target_arn")

    topic_arn: str = ""
    target_arn: str = ""

    def named(self) -> str:
        return name_in_arn(self.topic_arn or self.target_arn, "TopicArn", 6)


class PublishBatchInput(TopicInput, kw_only=True):
    body_bytes_max = PublishEntry.body_bytes_max

    entries: list[PublishEntry] = msgspec.field(default_factory=list, name="PublishBatchRequestEntries")
