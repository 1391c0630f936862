"""Behaviour of the JSON fast path alone: bugs in a handler, its histogram, its answers."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from dss_api.answer import Answer, Part
from dss_api.codec import AnswerEncoder
from dss_api.result import Result
from dss_api.routes import Routes


def _count(operation: str, status: str) -> float:
    return REGISTRY.get_sample_value("dss_request_seconds_count", {"operation": operation, "status": status}) or 0.0


def test_a_bug_is_answered_and_logged_once(entry_points: Any) -> None:
    with capture_logs() as events:
        reply = entry_points.call_json("POST", "/demo/refuse", body=b'{"code": "bug"}')
    assert (reply.status, reply.document["code"]) == (500, "internal")
    assert "a bug" not in reply.body.decode()
    assert [(event["event"], event["operation"]) for event in events] == [("api.failed", "demo.refuse")]


def test_calls_are_counted_by_operation_and_status(entry_points: Any) -> None:
    good, bad = _count("demo.get", "200"), _count("demo.get", "400")
    entry_points.call_json("GET", "/demo/get", query="key=a")
    entry_points.call_json("GET", "/demo/get")
    entry_points.call_drf("GET", "/demo/get", query="key=a")
    assert (_count("demo.get", "200"), _count("demo.get", "400")) == (good + 2, bad + 1)


def test_two_operations_with_the_same_method_and_path_are_refused(demo_operations: Any) -> None:
    with pytest.raises(ValueError, match="two operations at POST /demo/put"):
        Routes([*demo_operations, demo_operations[0]])


@pytest.mark.parametrize(
    ("body", "index", "error"),
    [
        ({"id": "a"}, 0, "Missing required argument 'index'"),
        ({}, 8, "Missing required argument 'id'"),
        ({"id": "a", "colour": "red"}, 8, "Unexpected keyword argument 'colour'"),
    ],
)
def test_an_answer_that_differs_from_its_declaration_is_never_sent(
    entry_points: Any, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any], index: int, error: str
) -> None:
    async def remove(node: Any, request: Any) -> Result:
        return Result(body, index=index)

    monkeypatch.setattr(entry_points.json_fast_path.routes.by_name["demo.remove"], "handle", remove)
    with capture_logs() as events:
        reply = entry_points.call_json("DELETE", "/demo/things/a")
    assert (reply.status, reply.document["code"]) == (500, "internal")
    assert [(event["event"], event["operation"], event["error"]) for event in events] == [
        ("api.undeclared_answer", "demo.remove", error)
    ]


class Named(Part):
    name: str


class ListAnswer(Answer, kw_only=True):
    parts: list[Named]


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (Result({"parts": [{"name": "a"}, {"name": "b", "size": 1}]}), "unknown field `size` - at `$.parts[1]`"),
        (Result({"parts": [{}]}), "missing required field `name` - at `$.parts[0]`"),
        (Result({"parts": [{"name": 1}]}), "Expected `str`, got `int` - at `$.parts[0].name`"),
        (Answer(), "expected ListAnswer, got Answer"),
    ],
)
def test_parts_of_an_answer_are_checked_too(result: Result | Answer, error: str) -> None:
    with capture_logs() as events:
        answer = AnswerEncoder("demo.list", ListAnswer).encode(result)
    assert answer.status == 500
    assert error in events[0]["error"]


def test_fields_keep_their_order_with_ok_first_and_index_last(entry_points: Any) -> None:
    reply = entry_points.call_json("POST", "/demo/put", body=b'{"key": "a", "value": 1}')
    assert reply.body == b'{"ok":true,"key":"a","value":1,"ttl_ms":100,"force":false,"index":7}'
