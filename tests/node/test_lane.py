"""What only the lane does: streaming bodies, clients that hang up, faults of a handler, its histogram."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from dss_api import json_fast_path as lane_module


class Client:
    """One client at the lane, who sends in pieces and may hang up."""

    def __init__(self, scope: dict[str, Any]) -> None:
        self.scope = scope
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    def call(self, application: Any) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(application(self.scope, self.inbox.get, self.send))


def _scope(path: str) -> dict[str, Any]:
    headers = [(b"content-type", b"application/json")]
    return {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}


def _count(operation: str, status: str) -> float:
    return REGISTRY.get_sample_value("dss_request_seconds_count", {"operation": operation, "status": status}) or 0.0


def test_a_client_that_hangs_up_cancels_its_call(doors: Any, fake_node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "WATCH_AFTER_S", 0.001)
    before = _count("demo.wait", "499")

    async def scene() -> list[dict[str, Any]]:
        client = Client(_scope("/demo/wait"))
        client.inbox.put_nowait({"type": "http.request", "body": b'{"wait_ms": 20000}'})
        task = client.call(doors.lane_app)
        await fake_node.waiting.wait()
        client.inbox.put_nowait({"type": "http.disconnect"})
        await task
        return client.sent

    assert doors.run(scene()) == []
    assert fake_node.cancelled == ["wait"]
    assert _count("demo.wait", "499") == before + 1


def test_a_server_that_stops_cancels_a_call_as_usual(doors: Any, fake_node: Any) -> None:
    async def scene() -> bool:
        client = Client(_scope("/demo/wait"))
        client.inbox.put_nowait({"type": "http.request", "body": b'{"wait_ms": 20000}'})
        task = client.call(doors.lane_app)
        await fake_node.waiting.wait()
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert doors.run(scene())
    assert fake_node.cancelled == ["wait"]


def test_a_client_that_hangs_up_in_the_middle_of_its_body(doors: Any) -> None:
    async def scene() -> list[dict[str, Any]]:
        client = Client(_scope("/demo/put"))
        client.inbox.put_nowait({"type": "http.request", "body": b'{"key": ', "more_body": True})
        client.inbox.put_nowait({"type": "http.disconnect"})
        await client.call(doors.lane_app)
        return client.sent

    assert doors.run(scene()) == []


def test_a_body_in_pieces(doors: Any) -> None:
    async def scene(*pieces: bytes) -> int:
        client = Client(_scope("/demo/put"))
        for number, piece in enumerate(pieces):
            client.inbox.put_nowait({"type": "http.request", "body": piece, "more_body": number < len(pieces) - 1})
        await client.call(doors.lane_app)
        return client.sent[0]["status"]

    assert doors.run(scene(b'{"key": "a', b'b", "val', b'ue": 1}')) == 200
    assert doors.run(scene(*[b"x" * 1000] * 6)) == 413


def test_a_bug_is_answered_and_logged_once(doors: Any) -> None:
    with capture_logs() as events:
        reply = doors.lane("POST", "/demo/refuse", body=b'{"code": "bug"}')
    assert (reply.status, reply.document["code"]) == (500, "internal")
    assert "a bug" not in reply.body.decode()
    assert [(event["event"], event["operation"]) for event in events] == [("api.failed", "demo.refuse")]


def test_calls_are_counted_by_operation_and_status(doors: Any) -> None:
    good, bad = _count("demo.get", "200"), _count("demo.get", "400")
    doors.lane("GET", "/demo/get", query="key=a")
    doors.lane("GET", "/demo/get")
    doors.drf("GET", "/demo/get", query="key=a")
    assert (_count("demo.get", "200"), _count("demo.get", "400")) == (good + 2, bad + 1)


def test_two_operations_at_one_place_are_refused(demo_operations: Any) -> None:
    with pytest.raises(ValueError, match="two operations at POST /demo/put"):
        lane_module.Routes([*demo_operations, demo_operations[0]])
