"""What the SQS endpoint makes of messages and attributes that no SQS client has written."""

from __future__ import annotations

import base64
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dss_api.errors import Refused
from dss_api.result import Result
from dss_queue.core.sqs_queues import Queue
from dss_queue.routing import SERVICE
from dss_queue.sqs import attributes, message_calls
from dss_queue.sqs.calls import Call
from dss_queue.sqs.errors import SqsError
from dss_queue.sqs.messages import H_ATTRIBUTES, described
from dss_queue.sqs.port import TEXTS_MAX, require_few_texts
from dss_queue.sqs.requests import DeleteBatchInput, DeleteEntry

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


async def deleted(monkeypatch: pytest.MonkeyPatch, receipts: list[str], *answers: Result | Refused) -> dict[str, Any]:
    """The answer to a DeleteMessageBatch with these receipts, when the commands it submits are answered so."""
    left = list(answers)

    async def submit(command: Any, once: Any = None) -> Result:
        answer = left.pop(0)
        if isinstance(answer, Refused):
            raise answer
        return answer

    async def find_queue(call: Call) -> Queue:
        return Queue({}, {}, 0, 0)

    monkeypatch.setattr(message_calls, "find_queue", find_queue)
    entries = [
        DeleteEntry(id=str(number), receipt_handle=base64.b64encode(receipt.encode(), b"-_").decode())
        for number, receipt in enumerate(receipts)
    ]
    routing: Any = SimpleNamespace(topic=lambda name: None, stay=lambda topic: None, submit=submit)
    node = cast(Any, SimpleNamespace(submit=submit, services={SERVICE: routing}))
    reply = await message_calls.delete_batch(Call(node, "q", DeleteBatchInput(entries=entries), "", ""))
    assert left == []
    return reply.body


TWICE = ["5-0.1", "5-0.2", "6-0.1"]


async def test_entries_of_a_batch_that_were_deleted_are_answered_although_others_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = await deleted(monkeypatch, TWICE, Result({"results": []}), Refused("no_leader", "there is none"))
    assert answer["Successful"] == [{"Id": "0"}, {"Id": "2"}]
    (failed,) = answer["Failed"]
    assert (failed["Id"], failed["SenderFault"], failed["Message"]) == ("1", False, "there is none")


async def test_a_batch_of_which_nothing_was_deleted_is_refused_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="no_leader"):
        await deleted(monkeypatch, TWICE, Refused("no_leader"))


@pytest.mark.parametrize("text", ["", "a", '"', "\\", '\\"', '"\\', "a\\\\", "ü\n"])
def test_texts_are_counted_whatever_they_end_with(text: str) -> None:
    require_few_texts(json.dumps([text] * TEXTS_MAX).encode())
    with pytest.raises(SqsError, match=f"more than {TEXTS_MAX} texts"):
        require_few_texts(json.dumps([text] * (TEXTS_MAX + 1000)).encode())
