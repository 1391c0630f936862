"""The requests of the SQS endpoint, with the field names of SQS."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from dss_queue.sqs import messages
from dss_queue.sqs.attributes import NAME_PATTERN
from dss_queue.sqs.calls import queue_in_arn, queue_in_url
from dss_queue.sqs.errors import bad_value
from dss_queue.sqs.messages import AttributeValue
from dss_queue.sqs.move_calls import task_in

#: of the body of a request
BODY_BYTES_MAX = 256 * 1024
#: the same for those with attributes or tags: a policy has up to 64 KiB, which a form writes with three times as many
ATTRIBUTES_BODY_BYTES_MAX = 1024 * 1024


def message_body_bytes_max(text_bytes: int) -> int:
    """The same for those with messages of this length: forms and JSON write a byte as up to three, and Base64 is longer, too."""
    return BODY_BYTES_MAX + 4 * text_bytes


class Input(msgspec.Struct, rename="pascal", kw_only=True):
    """The base of all requests. Unknown fields are ignored, as SQS does."""

    #: the fields that `named` reads: they are decoded first, to check the rights
    naming: ClassVar[tuple[str, ...]] = ()
    body_bytes_max: ClassVar[int] = BODY_BYTES_MAX

    def named(self) -> str:
        """The queue that the request names; "" if requests of this kind name none.

        Raises:
            SqsError: there cannot be such a queue.
        """
        return ""


class QueueInput(Input, kw_only=True):
    naming = ("queue_url",)

    queue_url: str = ""

    def named(self) -> str:
        return queue_in_url(self.queue_url)


class NamedInput(Input, kw_only=True):
    naming = ("queue_name",)

    queue_name: str = ""

    def named(self) -> str:
        if not NAME_PATTERN.fullmatch(self.queue_name):
            raise bad_value("Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length")
        return self.queue_name


class SourceInput(Input, kw_only=True):
    naming = ("source_arn",)

    source_arn: str = ""

    def named(self) -> str:
        return queue_in_arn(self.source_arn, "SourceArn")


class CreateQueueInput(NamedInput, kw_only=True):
    body_bytes_max = ATTRIBUTES_BODY_BYTES_MAX

    attributes: dict[str, str] = {}
    #: this field alone begins with a small letter
    tags: dict[str, str] = msgspec.field(default_factory=dict, name="tags")


class GetQueueUrlInput(NamedInput, kw_only=True):
    """It has no further fields that matter."""


class ListQueuesInput(Input, kw_only=True):
    queue_name_prefix: str = ""
    max_results: int | None = None
    next_token: str = ""


class ListSourcesInput(QueueInput, kw_only=True):
    max_results: int | None = None
    next_token: str = ""


class GetAttributesInput(QueueInput, kw_only=True):
    attribute_names: list[str] = []


class SetAttributesInput(QueueInput, kw_only=True):
    body_bytes_max = ATTRIBUTES_BODY_BYTES_MAX

    attributes: dict[str, str] = {}


class Message(Input, kw_only=True):
    """The fields of a message in `SendMessage` and in the entries of a batch."""

    body_bytes_max = message_body_bytes_max(messages.BYTES_MAX)

    message_body: str = ""
    delay_seconds: int | None = None
    message_attributes: dict[str, AttributeValue] = {}
    message_system_attributes: dict[str, AttributeValue] = {}
    message_deduplication_id: str = ""
    message_group_id: str = ""


class SendMessageInput(Message, kw_only=True):
    naming = ("queue_url",)

    queue_url: str = ""

    def named(self) -> str:
        return queue_in_url(self.queue_url)


class SendEntry(Message, kw_only=True):
    #: Entries have a field that is required. So a list of very many empty ones is refused at the first, before it takes memory.
    id: str


class SendBatchInput(QueueInput, kw_only=True):
    body_bytes_max = Message.body_bytes_max

    entries: list[SendEntry] = []


class ReceiveInput(QueueInput, kw_only=True):
    attribute_names: list[str] = []
    message_system_attribute_names: list[str] = []
    message_attribute_names: list[str] = []
    max_number_of_messages: int = 1
    visibility_timeout: int | None = None
    wait_time_seconds: int | None = None
    receive_request_attempt_id: str = ""


class DeleteEntry(Input, kw_only=True):
    id: str
    receipt_handle: str = ""


class DeleteInput(QueueInput, kw_only=True):
    receipt_handle: str = ""


class DeleteBatchInput(QueueInput, kw_only=True):
    entries: list[DeleteEntry] = []


class VisibilityEntry(DeleteEntry, kw_only=True):
    visibility_timeout: int = 0


class VisibilityInput(QueueInput, kw_only=True):
    receipt_handle: str = ""
    visibility_timeout: int | None = None


class VisibilityBatchInput(QueueInput, kw_only=True):
    entries: list[VisibilityEntry] = []


class TagInput(QueueInput, kw_only=True):
    body_bytes_max = ATTRIBUTES_BODY_BYTES_MAX

    tags: dict[str, str] = {}


class UntagInput(QueueInput, kw_only=True):
    tag_keys: list[str] = []


class AddPermissionInput(QueueInput, kw_only=True):
    label: str = ""
    account_ids: list[str] = msgspec.field(default_factory=list, name="AWSAccountIds")
    actions: list[str] = []


class RemovePermissionInput(QueueInput, kw_only=True):
    label: str = ""


class StartMoveInput(SourceInput, kw_only=True):
    destination_arn: str = ""
    max_number_of_messages_per_second: int | None = None


class ListMovesInput(SourceInput, kw_only=True):
    max_results: int | None = None


class CancelMoveInput(Input, kw_only=True):
    naming = ("task_handle",)

    task_handle: str = ""

    def named(self) -> str:
        return task_in(self.task_handle)[0]
