"""What answers tell browsers, apart from the pages of a real node (tests/cluster/test_page_security.py)."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import Mock

import pytest
from django.test import override_settings

from dss_api.asgi import state_of
from dss_api.codec import EncodedAnswer
from dss_api.http_answers import encode_answer, header_lines
from dss_api.security_headers import CONTENT_SECURITY_POLICY, NOSNIFF, PAGE_HEADERS, hsts, with_headers

POLICY = "content-security-policy"
STRICT = "strict-transport-security"


def test_the_policy_lets_nothing_in_the_html_run() -> None:
    directives = dict(part.split(" ", 1) for part in CONTENT_SECURITY_POLICY.split("; "))
    assert directives.pop("default-src") == "'none'"
    for name in ("script-src", "style-src", "form-action", "base-uri", "frame-ancestors"):
        assert directives[name] in ("'self'", "'none'")
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "http" not in CONTENT_SECURITY_POLICY
    assert "*" not in CONTENT_SECURITY_POLICY


async def test_an_answer_keeps_the_headers_that_it_has() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    one = with_headers(send, ((b"a", b"1"), (b"b", b"2")))
    await one({"type": "http.response.start", "status": 200, "headers": [(b"A", b"own")]})
    await one({"type": "http.response.body", "body": b""})
    assert sent[0]["headers"] == [(b"A", b"own"), (b"b", b"2")]
    assert sent[1] == {"type": "http.response.body", "body": b""}


def test_hsts_is_one_prepared_header() -> None:
    assert hsts(0) == ()
    assert hsts(60) == ((b"strict-transport-security", b"max-age=60"),)
    answer = EncodedAnswer(200, b"{}", ((b"content-type", b"application/json"), NOSNIFF))
    plain = encode_answer(answer, False, True, False)
    secure = encode_answer(answer, False, True, False, header_lines(hsts(60)))
    assert secure == plain.replace(b"content-length", b"strict-transport-security: max-age=60\r\ncontent-length")


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/", "/api/docs", "/demo/put", "/admin/login/", "/elsewhere"])
def test_debug_pages_only_report(entry_points: Any, path: str) -> None:
    page = {"Accept": "text/html", "Host": "localhost"}
    assert entry_points.call_http("GET", path, headers=page).headers[POLICY] == CONTENT_SECURITY_POLICY
    with override_settings(DEBUG=True):
        headers = entry_points.call_http("GET", path, headers=page).headers
    assert POLICY not in headers
    assert headers["content-security-policy-report-only"] == CONTENT_SECURITY_POLICY


@pytest.mark.django_db
def test_an_error_before_the_middleware_has_the_headers(entry_points: Any) -> None:
    """Django answers a form that is too large before its middleware runs."""
    headers = {"Accept": "text/html", "Host": "localhost", "Content-Type": "application/x-www-form-urlencoded; charset=nothing"}
    reply = entry_points.call_http("POST", "/admin/login/", body=b"a=1", headers=headers)
    assert reply.status >= 400
    for name, value in PAGE_HEADERS:
        assert reply.headers[name.decode()] == value.decode()


async def _answers(entry: Any, scheme: str) -> list[dict[str, str]]:
    found = []
    for path in ("/admin/login/", "/metrics", "/favicon.ico", "/static/nothing"):
        sent: list[Any] = []
        messages = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive(messages: list[Any] = messages) -> Any:
            return messages.pop() if messages else await asyncio.Event().wait()

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        scope: dict[str, Any] = {"type": "http", "method": "GET", "path": path, "query_string": b""}
        scope["headers"] = [(b"host", b"localhost")]
        scope |= {"scheme": scheme, "http_version": "1.1", "state": state_of(Mock())}
        async with asyncio.timeout(60):
            await entry(scope, receive, send)
        found.append({name.decode().lower(): value.decode() for name, value in sent[0]["headers"]})
    return found


@pytest.mark.django_db
def test_every_answer_over_https_says_so(entry_points: Any) -> None:
    entry_points.http._https_headers = hsts(60)
    for headers in entry_points.run(_answers(entry_points.http, "https")):
        assert headers[STRICT] == "max-age=60"
    for headers in entry_points.run(_answers(entry_points.http, "http")):
        assert STRICT not in headers
