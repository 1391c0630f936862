"""Pages for people: they work without the internet, and their examples work unchanged."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from dss_console.call_pages import with_code

pytestmark = pytest.mark.django_db
PAGE = {"Accept": "text/html,application/xhtml+xml"}


class _Links(HTMLParser):
    """Collects what a page makes a browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        wanted = {"script": "src", "link": "href", "img": "src", "iframe": "src"}.get(tag)
        self.loaded += [value for name, value in attributes if name == wanted and value]


def loaded_by(page: bytes) -> list[str]:
    parser = _Links()
    parser.feed(page.decode())
    return parser.loaded


@pytest.mark.parametrize("path", ["/", "/api/docs", "/demo/put", "/admin/login/"])
def test_no_page_needs_the_internet(entry_points: Any, path: str) -> None:
    reply = entry_points.call_drf("GET", path, headers=PAGE)
    assert reply.media_type == "text/html"
    loaded = [link for link in loaded_by(reply.body) if not link.startswith("data:")]
    assert path == "/" or loaded
    for link in loaded:
        assert link.startswith("/"), f"{path} loads {link}"
        target, _, query = link.partition("?")
        asset = entry_points.call_http("GET", target, query=query, headers={"Host": "localhost"})
        assert asset.status in (200, 204), f"{path} loads {link}, which is not there"
    assert b"cdn." not in reply.body


def test_the_landing_page_says_who_leads(entry_points: Any) -> None:
    page = entry_points.call_drf("GET", "/").body.decode()
    assert "node-1 leads" in page
    assert "term 3" in page
    for link in ("/api/docs", "/api/schema", "/admin/", "/metrics", "/raft/status"):
        assert f'href="{link}"' in page


def test_text_in_backticks_is_shown_as_code() -> None:
    assert with_code("with `if_version` <b>") == "with <code>if_version</code> &lt;b&gt;"
    assert with_code("a ` alone") == "a ` alone"


def test_the_browsable_page_of_a_post_is_filled_in(entry_points: Any) -> None:
    reply = entry_points.call_drf("GET", "/demo/put", headers=PAGE)
    assert reply.status == 200, "a browser that opens the page has done nothing wrong"
    assert b"Method not allowed" not in reply.body
    form = re.search(r"<textarea[^>]*>(.*?)</textarea>", reply.body.decode(), re.DOTALL)
    assert form is not None
    example = html.unescape(form.group(1)).strip()
    assert '"colour"' in example
    assert entry_points.call_both("POST", "/demo/put", body=example.encode()).status == 200


def test_a_user_with_a_session_gets_the_form_and_sends_its_csrf_token(entry_points: Any) -> None:
    browser = Client(headers={"Host": "testserver", **PAGE}, enforce_csrf_checks=True)
    browser.force_login(User.objects.create_superuser("boss", password="x"))
    page = browser.get("/demo/put").content.decode()
    form = re.search(r"<textarea[^>]*>(.*?)</textarea>", page, re.DOTALL)
    assert form is not None
    body = html.unescape(form.group(1)).strip()
    assert browser.post("/demo/put", body, content_type="application/json").status_code == 403, "not without the token"
    token = re.search(r'csrfmiddlewaretoken" value="([^"]+)"', page)
    assert token is not None
    reply = browser.post("/demo/put", body, content_type="application/json", headers={"X-CSRFToken": token.group(1)})
    assert reply.status_code == 200


def test_the_browsable_page_shows_the_answer(entry_points: Any) -> None:
    reply = entry_points.call_drf("POST", "/demo/put", body=b'{"key": "a", "value": "<marquee>"}', headers=PAGE)
    page = html.unescape(reply.body.decode())
    assert reply.status == 200
    assert '"index": 7' in page
    assert "<marquee>" not in reply.body.decode(), "what clients store is never markup"
    reply = entry_points.call_drf("GET", "/demo/get", query="key=a", headers=PAGE)
    assert reply.status == 200
    assert '"limit": 10' in html.unescape(reply.body.decode())


def test_a_form_post_is_refused(entry_points: Any) -> None:
    reply = entry_points.call_drf(
        "POST", "/demo/put", body=b"key=a&value=1", headers={"Content-Type": "application/x-www-form-urlencoded", **PAGE}
    )
    assert reply.status == 415


def test_browsers_get_pages_and_programs_get_json(entry_points: Any) -> None:
    assert entry_points.call_http("GET", "/demo/get", query="key=a").headers["content-type"] == "application/json"
    page = entry_points.call_http("GET", "/demo/get", query="key=a", headers={**PAGE, "Host": "localhost"})
    assert page.media_type == "text/html"
    assert b"Distributed Sync System" in page.body
    for path in ("/", "/admin/login/", "/api/schema"):
        assert entry_points.call_http("GET", path, headers={"Host": "localhost"}).status == 200
    assert entry_points.call_http("GET", "/elsewhere", headers={**PAGE, "Host": "localhost"}).media_type == "text/html"


def test_staff_may_call_without_the_token_and_others_may_not(
    make_entry_points: Any, admin_client: Client, client: Client
) -> None:
    make_entry_points(token="s3cret")
    assert admin_client.get("/demo/get?key=a").status_code == 200
    assert client.get("/demo/get?key=a").status_code == 401
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = admin_client.cookies
    assert strict.post("/demo/put", b'{"key":"a","value":1}', content_type="application/json").status_code == 403


def test_metrics(entry_points: Any) -> None:
    entry_points.call_json("GET", "/demo/get", query="key=a")
    reply = entry_points.call_http("GET", "/metrics")
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/plain; version=")
    assert b'dss_request_seconds_count{operation="demo.get",status="200"}' in reply.body
    assert b"process_resident_memory_bytes" in reply.body
    assert b"_created" not in reply.body


def test_head_of_a_page_of_a_post(entry_points: Any) -> None:
    assert entry_points.call_drf("HEAD", "/demo/put", headers=PAGE).status == 200


def test_a_program_that_gets_a_post_is_refused(entry_points: Any) -> None:
    assert entry_points.call_both("GET", "/demo/put").status == 405


@pytest.mark.parametrize("path", ["/demo/put", "/demo/get"])
def test_options_names_the_methods(entry_points: Any, path: str) -> None:
    reply = entry_points.call_both("OPTIONS", path)
    assert (reply.status, reply.body) == (200, b"")
    assert entry_points.call_drf("OPTIONS", path, headers=PAGE).status == 200
    assert ("GET" in reply.headers["allow"]) == (path == "/demo/get")


def test_the_page_of_a_post_asks_for_the_token_as_the_post_does(make_entry_points: Any) -> None:
    assert make_entry_points(token="secret").call_drf("GET", "/demo/put", headers=PAGE).status == 401
