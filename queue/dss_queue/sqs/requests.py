"""The requests of the SQS endpoint, with the field names of SQS."""

from __future__ import annotations

import msgspec

from dss_queue.sqs.attributes import NAME_PATTERN
from dss_queue.sqs.calls import queue_in_arn, queue_in_url
from dss_queue.sqs.errors import bad_value
from dss_queue.sqs.messages import AttributeValue
from dss_queue.sqs.move_calls import task_in


class Input(msgspec.Struct, rename="pascal", kw_only=True):
    """The base of all requests. Unknown fields are ignored, as SQS does."""

    def named(self) -> str:
        """The queue that the request names; "" if requests of this kind name none.

        Raises:
            SqsError: there cannot be such a queue.
        """
        return ""


class QueueInput(Input, kw_only=True):
    queue_url: str = ""

    def named(self) -> str:
        return queue_in_url(self.queue_url)


class NamedInput(Input, kw_only=True):
    queue_name: str = ""

    def named(self) -> str:
        if not NAME_PATTERN.fullmatch(self.queue_name):
            raise bad_value("Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length")
        return self.queue_name


class SourceInput(Input, kw_only=True):
    source_arn: str = ""

    def named(self) -> str:
        return queue_in_arn(self.source_arn, "SourceArn")


class CreateQueueInput(NamedInput, kw_only=True):
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
    attributes: dict[str, str] = {}


class Message(Input, kw_only=True):
    """The fields of a message in `SendMessage` and in the entries of a batch."""

    id: str = ""
    message_body: str = ""
    delay_seconds: int | None = None
    message_attributes: dict[str, AttributeValue] = {}
    message_system_attributes: dict[str, AttributeValue] = {}
    message_deduplication_id: str = ""
    message_group_id: str = ""


class SendMessageInput(Message, kw_only=True):
    queue_url: str = ""

    def named(self) -> str:
        return queue_in_url(self.queue_url)


class SendBatchInput(QueueInput, kw_only=True):
    entries: list[Message] = []


class ReceiveInput(QueueInput, kw_only=True):
    attribute_names: list[str] = []
    message_system_attribute_names: list[str] = []
    message_attribute_names: list[str] = []
    max_number_of_messages: int = 1
    visibility_timeout: int | None = None
    wait_time_seconds: int | None = None
    receive_request_attempt_id: str = ""


class DeleteEntry(Input, kw_only=True):
    id: str = ""
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
    task_handle: str = ""

    def named(self) -> str:
        return task_in(self.task_handle)[0]
