"""Messages as SQS describes them: attributes, their MD5, ids and receipt handles.

The body is the message's value, a JSON string. What else SQS keeps of a message is in headers whose names begin with `sqs-`. A message
that another program has published has none of them, and its body is its JSON.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from hashlib import blake2b, md5
from typing import Any

import msgspec

from dss_queue.core.records import decoded_headers, message_number
from dss_queue.redis_engine.messages import place_of
from dss_queue.sqs.attributes import arn_of
from dss_queue.sqs.errors import SqsError, bad_value

#: of a message, or of a batch: bodies and attributes
BYTES_MAX = 1_048_576
ATTRIBUTES_MAX = 10
ATTRIBUTE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,255}")
TYPE_PATTERN = re.compile(r"(String|Number|Binary)(\..{1,256})?", re.DOTALL)
NUMBER_PATTERN = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
GROUP_ID = re.compile(r"[A-Za-z0-9!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]{1,128}")
#: characters that XML 1.0 does not have
NOT_ALLOWED = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

SERIAL = re.compile(r"[0-9a-f]{1,32}")
#: the first digit of the fourth part of a UUID, whose first two bits are fixed
_VARIANT = {f"{digit:x}": f"{8 | digit & 3:x}" for digit in range(16)}
_text = msgspec.json.Decoder(str)

H_ATTRIBUTES, H_DEDUP_ID, H_GROUP_ID, H_SENDER, H_TRACE = (
    "sqs-attributes",
    "sqs-dedup-id",
    "sqs-group-id",
    "sqs-sender",
    "sqs-trace",
)


class AttributeValue(msgspec.Struct, rename="pascal", omit_defaults=True):
    """The value of a message attribute."""

    data_type: str = ""
    string_value: str | None = None
    #: Base64
    binary_value: str | None = None


def check_body(body: str) -> None:
    """Raises:
    SqsError: it is empty, or it has characters that are not allowed.
    """
    if not body:
        raise SqsError("MissingParameter", "The request must contain the parameter MessageBody.")
    if NOT_ALLOWED.search(body):
        raise SqsError(
            "InvalidMessageContents",
            "Invalid characters found. Valid unicode characters are #x9 | #xA | "
            "#xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF",
        )


def bytes_of(body: str, attributes: dict[str, AttributeValue]) -> int:
    """The size of a message as SQS counts it."""
    size = len(body.encode())
    for name, value in attributes.items():
        # Base64 stands for three quarters of its length.
        payload = len((value.string_value or "").encode()) or len(value.binary_value or "") * 3 // 4
        size += len(name.encode()) + len(value.data_type.encode()) + payload
    return size


def check_attributes(attributes: dict[str, AttributeValue]) -> None:
    """Check the attributes of a message.

    Raises:
        SqsError: names the attribute.
    """
    if len(attributes) > ATTRIBUTES_MAX:
        raise bad_value(f"Number of message attributes [{len(attributes)}] exceeds the allowed maximum [{ATTRIBUTES_MAX}].")
    for name, value in attributes.items():
        lowered = name.lower()
        if not ATTRIBUTE_NAME.fullmatch(name) or lowered.startswith(("aws.", "amazon.")) or name.endswith(".") or ".." in name:
            raise bad_value(
                f"The message attribute name '{name}' is invalid. Attribute name can contain A-Z, a-z, 0-9, underscore (_), "
                "hyphen (-), and period (.) characters."
            )
        if not TYPE_PATTERN.fullmatch(value.data_type):
            raise bad_value(
                f"The message attribute '{name}' has an invalid message attribute type, "
                "the set of supported type prefixes is Binary, Number, and String."
            )
        _payload(name, value)


def _payload(name: str, value: AttributeValue) -> tuple[bytes, bytes]:
    """The mark of its transport type in the MD5, and the value's bytes."""
    kind = value.data_type.partition(".")[0]
    text = value.binary_value if kind == "Binary" else value.string_value
    if not text:
        raise bad_value(f"The message attribute '{name}' must contain a non-empty value for the message attribute type '{kind}'.")
    if kind == "Binary":
        try:
            return b"\x02", base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise bad_value(f"The message attribute '{name}' is not Base64.") from None
    if kind == "Number" and not NUMBER_PATTERN.fullmatch(text):
        raise bad_value(f"Can't cast the value of message attribute '{name}' to a number.")
    if NOT_ALLOWED.search(text):
        raise bad_value(f"The message attribute '{name}' has characters that are not allowed.")
    return b"\x01", text.encode()


def md5_of(text: str) -> str:
    return md5(text.encode(), usedforsecurity=False).hexdigest()


def md5_of_attributes(attributes: dict[str, AttributeValue]) -> str:
    """As the documentation of SQS computes it."""
    digest = md5(usedforsecurity=False)
    for name in sorted(attributes):
        value = attributes[name]
        mark, payload = _payload(name, value)
        for part in (name.encode(), value.data_type.encode()):
            digest.update(struct.pack(">I", len(part)) + part)
        digest.update(mark + struct.pack(">I", len(payload)) + payload)
    return digest.hexdigest()


def message_uuid(msg_id: str) -> str:
    """The `MessageId`: the same for a message on all nodes, and after it has moved to a dead-letter queue."""
    digits = blake2b(b"sqs " + msg_id.encode(), digest_size=16).hexdigest()
    # Version 4, as the class UUID of Python writes it. Each message is described often.
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{_VARIANT[digits[16]]}{digits[17:20]}-{digits[20:]}"


def sequence_number(msg_id: str) -> str:
    """It grows within a message group, for as long as its queue stays on one engine."""
    place = place_of(msg_id)
    return f"{message_number(msg_id) if place is None else int(place.number):020d}"


def handle_of(receipt: str) -> str:
    """The receipt handle of a delivery."""
    return base64.urlsafe_b64encode(receipt.encode()).decode()


def receipt_in(handle: str) -> tuple[str, str]:
    """(msg_id, receipt) in a receipt handle.

    Raises:
        SqsError: it is none.
    """
    try:
        receipt = base64.b64decode(handle, b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        receipt = ""
    msg_id, _, serial = receipt.partition(".")
    is_known = message_number(msg_id) >= 0 or place_of(msg_id) is not None
    if not is_known or not SERIAL.fullmatch(serial):
        raise SqsError("ReceiptHandleIsInvalid", "The input receipt handle is invalid.")
    return msg_id, receipt


def wanted(names: list[str], attributes: dict[str, AttributeValue]) -> dict[str, AttributeValue]:
    """The attributes that `MessageAttributeNames` selects."""
    if "All" in names or ".*" in names:
        return attributes
    prefixes = tuple(name[:-2] for name in names if name.endswith(".*"))
    return {name: value for name, value in attributes.items() if name in names or (prefixes and name.startswith(prefixes))}


def described(
    message: dict[str, Any], attribute_names: list[str], system_names: set[str], is_fifo: bool, region: str
) -> dict[str, Any]:
    """A delivered message, as `ReceiveMessage` answers it."""
    value: bytes = message["value"]
    body = _text.decode(value) if value.startswith(b'"') else value.decode()
    headers = decoded_headers(message["headers"])
    msg_id = headers.get("dss-dead-msg-id", message["msg_id"])
    described: dict[str, Any] = {
        "MessageId": message_uuid(msg_id),
        "ReceiptHandle": handle_of(message["receipt"]),
        "MD5OfBody": md5_of(body),
        "Body": body,
    }
    if system_names:
        system = _system_attributes(message, headers, is_fifo, region)
        shown = {name: text for name, text in system.items() if text and ("All" in system_names or name in system_names)}
        if shown:
            described["Attributes"] = shown
    if H_ATTRIBUTES in headers:
        found = wanted(attribute_names, _stored_attributes(headers[H_ATTRIBUTES]))
        if found:
            described["MessageAttributes"] = found
            described["MD5OfMessageAttributes"] = md5_of_attributes(found)
    return described


def _system_attributes(message: dict[str, Any], headers: dict[str, str], is_fifo: bool, region: str) -> dict[str, str]:
    """All of them; "" for those that the message does not have."""
    return {
        "SenderId": headers.get(H_SENDER, "anyone"),
        "SentTimestamp": headers.get("dss-dead-published-ms", str(message["published_ms"])),
        "ApproximateReceiveCount": str(message["attempt"]),
        "ApproximateFirstReceiveTimestamp": str(message.get("first_delivered_ms") or message.get("delivered_ms", 0)),
        "MessageGroupId": message["key"] if is_fifo else headers.get(H_GROUP_ID, ""),
        "MessageDeduplicationId": headers.get(H_DEDUP_ID, ""),
        "SequenceNumber": sequence_number(message["msg_id"]) if is_fifo else "",
        "AWSTraceHeader": headers.get(H_TRACE, ""),
        "DeadLetterQueueSourceArn": arn_of(headers["dss-dead-topic"], region) if "dss-dead-topic" in headers else "",
    }


def _stored_attributes(text: str) -> dict[str, AttributeValue]:
    """The attributes in the header. None, if another program has published the message with a header that is not from SQS."""
    try:
        stored = msgspec.json.decode(text, type=dict[str, AttributeValue])
        check_attributes(stored)
    except (msgspec.MsgspecError, RecursionError, SqsError):
        return {}
    return stored
