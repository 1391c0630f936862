"""The JSON fast path and DRF give the same answer to the same call, valid or not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

# The entry points keep no state between two calls.
_quick = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_fields = st.sampled_from(["key", "value", "ttl_ms", "force", "note", "items", "op", "unknown"])
_bodies = st.dictionaries(_fields, _json, max_size=6).map(lambda body: json.dumps(body).encode()) | st.binary(max_size=80)


def test_a_good_call(entry_points: Any) -> None:
    reply = entry_points.call_both(
        "POST", "/demo/put", body=b'{"key": "a", "value": {"x": [1, 2.50]}, "ttl_ms": "5", "force": "true"}'
    )
    assert (reply.status, reply.media_type) == (200, "application/json")
    assert reply.document == {"ok": True, "key": "a", "value": {"x": [1, 2.5]}, "ttl_ms": 5, "force": True, "index": 7}
    assert b'{"x": [1, 2.50]}' in reply.body, "a value is passed on unchanged"


@_quick
@given(body=_bodies)
@example(body=b'{"key": "a", "value": 1}')
@example(body=b"")
def test_any_body(entry_points: Any, body: bytes) -> None:
    reply = entry_points.call_both("POST", "/demo/put", body=body)
    assert reply.status in (200, 400)
    assert reply.document["ok"] is (reply.status == 200)


@_quick
@given(
    query=st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), max_size=30)
    | st.lists(
        st.tuples(
            st.sampled_from(["key", "tags", "limit", "x"]), st.sampled_from(["a", "1", "99", "", "%ff", "%00", "a+b", "%C3%A9"])
        ),
        max_size=4,
    ).map(lambda pairs: "&".join(f"{name}={value}" for name, value in pairs))
)
def test_any_query(entry_points: Any, query: str) -> None:
    reply = entry_points.call_both("GET", "/demo/get", query=query)
    assert reply.status in (200, 400)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/demo/put", "/demo/get", "/demo/things/a", "/open"])
def test_any_method(entry_points: Any, method: str, path: str) -> None:
    reply = entry_points.call_both(method, path)
    if reply.status == 405:
        assert reply.document["code"] == "method_not_allowed"
        assert method not in reply.headers["allow"]


def test_head_is_get_without_a_body(entry_points: Any) -> None:
    get, head = (entry_points.call_json(method, "/demo/get", query="key=a") for method in ("GET", "HEAD"))
    assert (head.status, head.body, head.headers) == (200, b"", get.headers)
    assert entry_points.call_drf("HEAD", "/demo/get", query="key=a").status == 200


def test_a_path_parameter(entry_points: Any) -> None:
    assert entry_points.call_both("DELETE", "/demo/things/node-4").document == {"ok": True, "id": "node-4", "index": 8}
    assert entry_points.call_both("DELETE", "/demo/things/node-4", query="id=node-5").document["field"] == "id"


@pytest.mark.parametrize("code", ["no_quorum", "over_limit", "held", "unauthenticated"])
def test_refusals(entry_points: Any, code: str) -> None:
    reply = entry_points.call_both("POST", "/demo/refuse", body=json.dumps({"code": code}).encode())
    assert reply.media_type == "application/problem+json"
    page = entry_points.call_drf(
        "POST", "/demo/refuse", body=json.dumps({"code": code}).encode(), headers={"Accept": "text/html"}
    )
    assert b"application/problem+json" in page.body, "what a program gets"
    assert reply.document["ok"] is False
    assert reply.document["code"] == code
    assert reply.document["status"] == reply.status
    if code == "held":
        assert reply.document["holders"] == ["a"]
        assert reply.document["detail"] == "held by a"
        assert reply.document["index"] == 9
    else:
        assert reply.document["after"] == 3


def test_both_entry_points_check_the_token(make_entry_points: Any) -> None:
    entry_points = make_entry_points(token="s3cret")
    for wrong in ("", "Bearer wrong", "Bearer s", "Bearer s3cret2", "Basic s3cret", "Bearer", "s3cret"):
        headers = {"Authorization": wrong} if wrong else {}
        reply = entry_points.call_both("GET", "/demo/get", query="key=a", headers=headers)
        assert (reply.status, reply.document["code"], reply.headers["www-authenticate"]) == (401, "unauthenticated", "Bearer")
        page = entry_points.call_drf("GET", "/demo/get", query="key=a", headers={"Accept": "text/html", **headers})
        assert (page.status, page.media_type) == (401, "text/html")
    assert entry_points.call_both("GET", "/demo/get", query="key=a", headers={"Authorization": "bearer s3cret"}).status == 200
    assert entry_points.call_both("GET", "/open").status == 200


def test_calls_from_pages_of_other_sites_are_refused(entry_points: Any) -> None:
    reply = entry_points.call_both(
        "POST", "/demo/put", body=b'{"key":"a","value":1}', headers={"Origin": "http://evil.example", "Host": "testserver"}
    )
    assert (reply.status, reply.document["code"]) == (403, "forbidden")
    own = entry_points.call_both(
        "POST", "/demo/put", body=b'{"key":"a","value":1}', headers={"Origin": "http://testserver", "Host": "testserver"}
    )
    assert own.status == 200
