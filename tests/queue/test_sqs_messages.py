"""What the SQS endpoint makes of messages and attributes that no SQS client has written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dss_queue.sqs import attributes
from dss_queue.sqs.errors import SqsError
from dss_queue.sqs.messages import H_ATTRIBUTES, described

DEEP = "[" * 100_000 + "]" * 100_000


def shown(value: str, **headers: str) -> dict[str, Any]:
    message = {
        "msg_id": "0000000000000001",
        "value": value.encode(),
        "headers": json.dumps(headers).encode() if headers else b"",
        "receipt": "0000000000000001.1",
        "published_ms": 1,
        "attempt": 1,
        "first_delivered_ms": 2,
        "key": "",
    }
    return described(message, ["All"], {"All"}, False, "us-east-1")


@pytest.mark.parametrize(("value", "body"), [('"a \\u00fc"', "a ü"), ('{"a": 1}', '{"a": 1}'), ("null", "null"), (DEEP, DEEP)])
def test_every_value_has_a_body(value: str, body: str) -> None:
    assert shown(value)["Body"] == body


@pytest.mark.parametrize(
    "text",
    ["", "no JSON", "[]", DEEP, '{"a": 1}', '{"a": {"DataType": "String"}}', '{"a": {"DataType": "Binary", "BinaryValue": "?"}}'],
)
def test_a_header_that_is_not_from_sqs_does_not_stop_the_queue(text: str) -> None:
    assert "MessageAttributes" not in shown('"m"', **{H_ATTRIBUTES: text})


def test_attributes_of_sqs_are_shown() -> None:
    text = json.dumps({"a": {"DataType": "String", "StringValue": "x"}})
    assert set(shown('"m"', **{H_ATTRIBUTES: text})["MessageAttributes"]) == {"a"}


def test_a_policy_that_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(SqsError, match="Policy"):
        attributes.checked("q", {"Policy": f'{{"a":{DEEP}}}'}, creates=True)
