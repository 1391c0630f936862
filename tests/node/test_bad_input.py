"""The answer to a malformed call says what is wrong and names the field; nothing is logged."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from structlog.testing import capture_logs

DEEP = b"[" * 50_000 + b"]" * 50_000


@pytest.fixture(autouse=True)
def _nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Any:
    with capture_logs() as events, caplog.at_level(logging.WARNING):
        yield
    assert events == []
    assert caplog.records == []


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        (b"{", None, "not valid JSON"),
        (b'{"key": "a", "value": 1} x', None, "not valid JSON"),
        (b"[]", None, "must be a JSON object"),
        (b'"text"', None, "must be a JSON object"),
        (b"1e400", None, "must be a JSON object"),
        (b"{}", "key", "is missing"),
        (b"", "key", "is missing"),
        (b'{"key": "a"}', "value", "is missing"),
        (b'{"key": 1, "value": 1}', "key", "Expected str, got int"),
        (b'{"key": "a", "value": 1, "ttl_ms": "soon"}', "ttl_ms", "Expected int"),
        (b'{"key": "a", "value": 1, "ttl_ms": 1001}', "ttl_ms", "<= 1000"),
        (b'{"key": "a", "value": 1, "ttl_ms": null}', "ttl_ms", "Expected int"),
        (b'{"key": "a", "value": 1, "colour": 2}', "colour", "is not a field of this call"),
        (b'{"key": "", "value": 1}', "key", "length >= 1"),
        (b'{"key": "%s", "value": 1}' % (b"k" * 513), "key", "length <= 512"),
        ('{"key": "%s", "value": 1}' % ("é" * 257), "key", "512 bytes"),
        (b'{"key": "a\\u0000", "value": 1}', "key", "not allowed"),
        (b'{"key": "a", "value": 1, "items": [{"name": "n"}, {"name": "n", "size": -1}]}', "items[1].size", ">= 0"),
        (b'{"key": "a", "value": 1, "items": [{"size": 1}]}', "items[0].name", "is missing"),
        (b'{"key": "a", "value": 1, "items": [{"name": "n", "x": 1}]}', "items[0].x", "is not a field"),
        (b'{"key": "both", "value": 1, "note": "x"}', "note", "does not go with"),
        (b'{"key": "a", "value": "\xff"}', None, "not valid UTF-8"),
        (b'{"key": "\xff", "value": 1}', None, "not valid UTF-8"),
        (b'{"key": "a", "value": NaN}', None, "not valid JSON"),
    ],
)
def test_a_bad_body(entry_points: Any, body: bytes | str, field: str | None, words: str) -> None:
    reply = entry_points.call_both("POST", "/demo/put", body=body.encode() if isinstance(body, str) else body)
    assert (reply.status, reply.media_type) == (400, "application/problem+json")
    assert reply.document["code"] == "invalid"
    assert reply.document["ok"] is False
    assert reply.document.get("field") == field
    assert words in reply.document["detail"]
    assert field is None or f"`{field}`" in reply.document["detail"]


@pytest.mark.parametrize("where", [b'{"key": "a", "value": %s}', b'{"key": "a", "value": 1, "items": %s}', b"%s"])
def test_deep_nesting(make_entry_points: Any, where: bytes) -> None:
    entry_points = make_entry_points(body_bytes_max=1_000_000)
    reply = entry_points.call_both("POST", "/demo/put", body=where % DEEP)
    assert (reply.status, reply.document["code"]) == (400, "invalid")


@pytest.mark.parametrize(
    ("query", "field", "words"),
    [
        ("", "key", "is missing"),
        ("key=", "key", "length >= 1"),
        ("key=a&key=b", "key", "given twice"),
        ("key=a&limit=many", "limit", "Expected int"),
        ("key=a&limit=11", "limit", "<= 10"),
        ("key=a&colour=1", "colour", "is not a field"),
        ("key=%ff", None, "not valid UTF-8"),
        ("key=a%00", "key", "not allowed"),
        ("&".join(["tags=a"] * 65), None, "more than 64"),
    ],
)
def test_a_bad_query(entry_points: Any, query: str, field: str | None, words: str) -> None:
    reply = entry_points.call_both("GET", "/demo/get", query=query)
    assert (reply.status, reply.document["code"], reply.document.get("field")) == (400, "invalid", field)
    assert words in reply.document["detail"]


def test_a_good_query(entry_points: Any) -> None:
    reply = entry_points.call_both("GET", "/demo/get", query="key=a%20b+c&tags=x&tags=y&limit=3")
    assert reply.document == {"ok": True, "key": "a b c", "tags": ["x", "y"], "limit": 3}


@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x", "", "json"]
)
def test_another_content_type(entry_points: Any, content_type: str) -> None:
    reply = entry_points.call_both("POST", "/demo/put", body=b'{"key":"a","value":1}', headers={"Content-Type": content_type})
    assert (reply.status, reply.document["code"]) == (415, "unsupported_media_type")


def test_json_with_a_charset(entry_points: Any) -> None:
    for content_type in ("application/json; charset=utf-8", "Application/JSON"):
        assert (
            entry_points.call_both(
                "POST", "/demo/put", body=b'{"key":"a","value":1}', headers={"Content-Type": content_type}
            ).status
            == 200
        )


def test_a_body_that_is_too_large(entry_points: Any) -> None:
    body = json.dumps({"key": "a", "value": "x" * 5000}).encode()
    announced = entry_points.call_both("POST", "/demo/put", body=body, headers={"Content-Length": str(len(body))})
    assert (announced.status, announced.document["code"]) == (413, "too_large")
    assert entry_points.call_both("POST", "/demo/put", body=body).status == 413


def test_an_unknown_path(entry_points: Any) -> None:
    for path in ("/demo/nothing", "/demo/things/", "/demo/things/a/b", "/demo", "/demo/put/", "/elsewhere"):
        reply = entry_points.call_http("GET", path)
        assert (reply.status, reply.media_type, reply.document["code"]) == (404, "application/problem+json", "not_found")


def test_another_host(entry_points: Any) -> None:
    for host in ("evil.example", "localhost.evil.example", "evil.example:8201"):
        reply = entry_points.call_http("GET", "/demo/get", query="key=a", headers={"Host": host})
        assert (reply.status, reply.document["field"]) == (400, "Host")
    for host in ("localhost", "LOCALHOST:8201", "10.1.2.3:8201", "[::1]:8201"):
        assert entry_points.call_http("GET", "/demo/get", query="key=a", headers={"Host": host}).status == 200
