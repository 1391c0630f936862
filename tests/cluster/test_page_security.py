"""Every page of a node says what a browser may do with it, has no script or style in its HTML, and works in a browser that obeys.

The pages are generated from the URL configuration: a new one cannot be forgotten.
"""

from __future__ import annotations

import html.parser
import http.client
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import pytest
from django.urls import URLPattern, URLResolver, get_resolver

from dss_api.security_headers import CONTENT_SECURITY_POLICY, PAGE_HEADERS
from dss_dev.browser import ALL_LOOKS, AXE_MISSING, TWO_LOOKS, axe_source, faults_of_look, headless_chromium, watch_console
from dss_dev.local_cluster import HOST, LocalCluster, LocalNode, free_ports
from dss_dev.prepared_pages import ENVIRONMENT, prepare_pages

pytestmark = pytest.mark.cluster

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
#: nodes without a token are open
TOKEN = "a token for everything"
#: of a page with a parameter
VALUE = "none"
#: A browser could not stay logged in, or gets a file instead of a page.
NOT_IN_BROWSER = ("/admin/logout/", "/api/schema", "/favicon.ico", "/admin/jsi18n/", "/admin/autocomplete/")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNode]:
    """A node with something of everything in it, so that every list of the admin has rows."""
    cluster = LocalCluster(tmp_path_factory.mktemp("pages"), free_ports(1), {**ENVIRONMENT, "DSS_API_TOKEN": TOKEN})
    prepare_pages(cluster)
    cluster.start()
    try:
        cluster.wait_ready()
        one = cluster.nodes[0]
        for path, body in (
            ("/lock/acquire", {"key": "held", "client": "a", "ttl_ms": 0}),
            ("/queue/publish", {"topic": "jobs", "value": 1}),
            ("/queue/consume", {"topic": "jobs", "group": "workers"}),
            ("/cache/put", {"key": "colour", "value": "blue"}),
            ("/tokens", {"name": "deploy", "scopes": ["read"]}),
        ):
            assert one.call("POST", path, body, headers=one.credentials).status == 200
        yield one
    finally:
        cluster.stop()


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: str

    @property
    def is_page(self) -> bool:
        return self.headers.get_content_type() == "text/html"


class Visitor:
    """Gets pages with the session of the user `admin`."""

    def __init__(self, node: LocalNode) -> None:
        self._node = node
        self.cookies: dict[str, str] = {}
        page = self.get("/admin/login/")
        token = re.search(r'csrfmiddlewaretoken" value="([^"]*)"', page.body)
        assert token is not None
        form = urlencode({"csrfmiddlewaretoken": token[1], "username": "admin", "password": "test"})
        assert self.get("/admin/login/?next=/admin/", "POST", form).status == 302

    def get(self, path: str, method: str = "GET", form: str = "", **headers: str) -> Answer:
        connection = http.client.HTTPConnection(HOST, self._node.port, timeout=60)
        cookies = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        kind = {"Content-Type": "application/x-www-form-urlencoded"} if form else {}
        connection.request(method, path, form or None, {**BROWSER, "Cookie": cookies, **kind, **headers})
        reply = connection.getresponse()
        body = reply.read().decode("utf-8", "replace")
        for cookie in reply.headers.get_all("Set-Cookie", ()):
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
        connection.close()
        return Answer(reply.status, reply.headers, body)


@pytest.fixture(scope="module")
def visitor(node: LocalNode) -> Visitor:
    return Visitor(node)


def paths(patterns: list[Any], before: str = "/") -> Iterator[str]:
    """A path for every pattern of the URL configuration."""
    for one in patterns:
        route = str(one.pattern)
        if isinstance(one, URLResolver):
            yield from paths(one.url_patterns, before + route)
        elif isinstance(one, URLPattern):
            route = re.sub(r"\(\?P<\w+>[^)]*\)", VALUE, route.removeprefix("^").removesuffix("$"))
            route = re.sub(r"<int:\w+>", "1", route)
            yield before + re.sub(r"<[^>]*>", VALUE, route).replace("\\", "")


PATHS = sorted(set(paths(get_resolver().url_patterns)))


class Html(html.parser.HTMLParser):
    """Collects what a strict policy does not let run, its scripts, and the links to pages of the admin."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.rows: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        # Data in a script element does not run.
        is_script = tag == "script" and "src" not in given and given.get("type") not in ("application/json", "text/plain")
        if tag == "script":
            self.scripts.append(given.get("src") or "")
        if is_script or tag == "style":
            self.inline.append(f"<{tag}>")
        for name, value in attributes:
            text = (value or "").strip().lower()
            if name.startswith("on") or name == "style" or text.startswith("javascript:"):
                self.inline.append(f"<{tag} {name}={value!r}>")
        if tag == "a" and re.fullmatch(r"/admin/\w+/\w+/.+/change/", given.get("href") or ""):
            self.rows.append(given["href"] or "")


def check(path: str, answer: Answer) -> list[str]:
    faults = [
        f"{path}: {name.decode()} is {answer.headers.get_all(name.decode())}"
        for name, value in PAGE_HEADERS
        if answer.headers.get_all(name.decode()) != [value.decode()]
    ]
    if answer.is_page:
        faults += [f"{path}: {found} in the HTML" for found in Html(answer.body).inline]
    return faults


def rows_of(visitor: Visitor) -> list[str]:
    """The first row of each list of the admin."""
    found = []
    for path in PATHS:
        if re.fullmatch(r"/admin/\w+/\w+/", path):
            found += Html(visitor.get(path).body).rows[:1]
    return found


def test_every_page(visitor: Visitor) -> None:
    assert len(PATHS) > 60
    assert {"/", "/api/docs", "/lock/acquire", "/admin/", "/admin/login/", "/admin/dss_locks/lockrow/"} <= set(PATHS)
    rows = rows_of(visitor)
    assert len(rows) >= 5, rows
    faults, statuses = [], set()
    for path in [*PATHS, *rows, "/api/docs?script=", "/nothing/here", "/admin/nothing/", "/admin/login", "/static/nothing"]:
        if path == "/admin/logout/":
            continue
        answer = visitor.get(path)
        statuses.add(answer.status)
        if answer.headers.get_content_type() not in ("application/json", "application/problem+json"):
            faults += check(path, answer)
        else:
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert not faults, "\n".join(faults)
    assert {200, 301, 302, 404} <= statuses <= {200, 204, 301, 302, 400, 403, 404, 405, 409, 423}


def test_pages_after_a_form(visitor: Visitor) -> None:
    """Errors of the login, of a missing CSRF token and of a call in the browsable API."""
    wrong = visitor.get("/admin/login/", "POST", "username=a")
    assert wrong.status == 403
    assert "without a valid CSRF token" in wrong.body
    assert not check("a form without a token", wrong)
    called = visitor.get("/cache/get?key=colour")
    assert called.status == 200
    refused = visitor.get("/cache/get?colour=1")
    assert refused.status == 400
    assert not check("an answer", called) + check("a refusal", refused)


def test_answers_that_are_no_page(node: LocalNode) -> None:
    """They are small, and many a second: only what a browser needs is in them."""
    for method, path in (("GET", "/raft/leader"), ("GET", "/nothing"), ("GET", "/metrics"), ("DELETE", "/raft/leader")):
        headers = node.call(method, path, headers=node.credentials).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"] is None
        assert headers["Strict-Transport-Security"] is None
    style = node.call("GET", "/static/dss_console/pages.css")
    assert (style.status, style.headers["Content-Security-Policy"]) == (200, CONTENT_SECURITY_POLICY)


def test_pages_of_the_admin_load_what_they_use(visitor: Visitor, node: LocalNode) -> None:
    """A browser keeps the texts of the scripts. A refusal to a stranger is not kept."""
    ours = ("theme.js", "page.js", "/admin/jsi18n/")
    for path, own in (
        ("/admin/dss_locks/lockrow/", {"core.js", "actions.js", "filters.js"}),
        ("/admin/dss_raft/userrow/add/", {"core.js", "jquery.min.js", "jquery.init.js", "prepopulate_init.js", "change_form.js"}),
    ):
        scripts = [script for script in Html(visitor.get(path).body).scripts if script and not script.endswith(ours)]
        assert {script.rpartition("/")[2] for script in scripts} == own
    assert visitor.get("/admin/jsi18n/").headers["Cache-Control"] == "private, max-age=3600"
    refused = node.call("GET", "/admin/jsi18n/")
    assert (refused.status, "max-age=3600" in (refused.headers["Cache-Control"] or "")) == (302, False)


#: in every page, before its own scripts
WATCH = """
document.addEventListener("securitypolicyviolation", event =>
    console.error("violates " + event.violatedDirective + ": " + event.blockedURI + " " + event.sourceFile + ":" + event.lineNumber));
"""


@dataclass
class Watched:
    """A page in a browser, and what is wrong with it."""

    page: Any
    url: str
    faults: list[str]

    def open(self, path: str, *, can_fail: bool = False) -> None:
        """Open a page and let its scripts run."""
        seen = len(self.faults)
        self.page.goto(self.url + path)
        found = self.faults[seen:]
        if can_fail:
            # The browser also reports the status of the page itself.
            found = [fault for fault in found if not fault.startswith("Failed to load resource")]
        self.faults[seen:] = [f"{path}: {fault}" for fault in found]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with headless_chromium() as browser:
        yield browser


def log_in(watched: Watched) -> None:
    page = watched.page
    watched.open("/admin/login/?next=/admin/")
    page.fill("input[name=username]", "admin")
    page.fill("input[name=password]", "test")
    page.click("input[type=submit]")
    page.wait_for_url("**/admin/")


@pytest.fixture
def watched(chromium: Any, node: LocalNode) -> Iterator[Watched]:
    """A browser that has logged in to the admin."""
    context = chromium.new_context()
    context.set_default_timeout(180_000)
    context.add_init_script(WATCH)
    page = context.new_page()
    one = Watched(page, node.url, [])
    watch_console(page, one.faults)
    log_in(one)
    yield one
    context.close()
    assert not one.faults, "\n".join(one.faults)


def test_every_page_in_a_browser(watched: Watched, visitor: Visitor) -> None:
    """Two of the pages that load the same scripts; all of them with DSS_EVERY_PAGE, which takes a minute."""
    seen: Counter[tuple[str, ...]] = Counter()
    for path in [*PATHS, *rows_of(visitor)]:
        answer = visitor.get(path) if path not in NOT_IN_BROWSER else None
        if answer is None or not answer.is_page:
            continue
        kind = tuple(Html(answer.body).scripts)
        seen[kind] += 1
        if seen[kind] <= 2 or os.environ.get("DSS_EVERY_PAGE"):
            watched.open(path, can_fail=True)
    assert len(seen) > 5


def test_the_browser_reports_violations(watched: Watched) -> None:
    """Otherwise, the tests of this file would show nothing."""
    watched.open("/")
    watched.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">')")
    watched.page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))")
    with suppress(Exception):
        watched.page.wait_for_function("window.ran", timeout=1)
    assert watched.page.evaluate("window.ran") is None
    assert any(fault.startswith("violates script-src") for fault in watched.faults)
    watched.faults.clear()


def test_a_page_without_a_ticket_opens_no_websocket(watched: Watched) -> None:
    """The node would answer 403. The page says that it has no contact, and asks again."""
    page = watched.page
    # The page before has opened its WebSocket.
    page.wait_for_selector("html[data-live=live]")
    opened: list[str] = []
    page.on("websocket", lambda websocket: opened.append(websocket.url))
    page.route("**/ui/ticket", lambda route: route.abort())
    watched.open("/", can_fail=True)
    page.wait_for_selector("html[data-live=lost]")
    # The failure of the second request, after which the page waits again.
    with page.expect_event("requestfailed"):
        pass
    assert opened == []
    page.unroute("**/ui/ticket")
    page.wait_for_selector("html[data-live=live]")
    assert len(opened) == 1
    watched.faults[:] = [fault for fault in watched.faults if "Failed to load resource" not in fault]


def test_a_request_for_a_ticket_that_no_one_answers_ends(watched: Watched) -> None:
    """A browser has few connections to a node: with a request left for each attempt, the page would stay without contact."""
    page = watched.page
    page.wait_for_selector("html[data-live=live]")
    page.route("**/ui/ticket", lambda route: None)
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/ui/ticket")):
        watched.open("/", can_fail=True)
    page.wait_for_selector("html[data-live=lost]")
    page.unroute("**/ui/ticket")
    page.wait_for_selector("html[data-live=live]")
    watched.faults[:] = [fault for fault in watched.faults if "Failed to load resource" not in fault]


def test_a_form_of_the_browsable_api(watched: Watched) -> None:
    watched.open("/lock/acquire")
    page = watched.page
    page.fill("textarea[name=_content]", '{"key": "from-a-form", "client": "a browser"}')
    page.click("button.send")
    page.wait_for_selector(".response-info:has-text('fencing_token')")


def test_swagger_tries_a_call(watched: Watched) -> None:
    watched.open("/api/docs")
    watched.page.click(".auth-wrapper .btn.authorize >> nth=0")
    watched.page.fill(".auth-container input", TOKEN)
    watched.page.click(".auth-btn-wrapper .authorize")
    watched.page.click(".auth-btn-wrapper .btn-done")
    call = watched.page.locator("#operations-Locks-locks_acquire")
    call.locator(".opblock-summary").click()
    call.locator("button.try-out__btn").click()
    call.locator("textarea").fill('{"key": "from-swagger", "client": "a browser"}')
    call.locator("button.execute").click()
    call.locator(".live-responses-table").wait_for()
    assert "fencing_token" in call.locator(".live-responses-table").inner_text()


def test_an_action_of_the_admin(watched: Watched, node: LocalNode) -> None:
    node.call("POST", "/lock/acquire", {"key": "to-be-released", "client": "a", "ttl_ms": 0}, headers=node.credentials)
    watched.open("/admin/dss_locks/lockrow/?q=to-be-released")
    page = watched.page
    page.click("#action-toggle")
    page.select_option("select[name=action]", "force_release")
    page.click("button[name=index]")
    page.fill("input[name=reason]", "a test")
    page.click("input[type=submit]")
    page.wait_for_selector(".messagelist")
    assert "1 released" in page.inner_text(".messagelist")


def pages_of_the_admin(visitor: Visitor) -> list[str]:
    """The paths of pages that differ: every list and form, the first row of each list, and one of each kind of refusal and redirection."""
    found: list[str] = []
    seen: set[tuple[int, bool]] = set()
    for path in [*PATHS, *rows_of(visitor)]:
        if not path.startswith("/admin/") or path in NOT_IN_BROWSER:
            continue
        answer = visitor.get(path)
        # An object that does not exist leads to the index; others lead to the page of a row.
        kind = answer.status, answer.headers.get("Location") == "/admin/"
        if answer.is_page and (answer.status == 200 or kind not in seen):
            seen.add(kind)
            found.append(path)
    return found


def test_a_page_with_faults_is_found_in_the_look_that_has_them(chromium: Any) -> None:
    """Also although the page is not loaded again."""
    script = axe_source()
    page = chromium.new_page()
    dark = "@media (prefers-color-scheme: dark) { p { color: #333; background: #222; transition: color 5s } }"
    head = f"<title>T</title><style>p {{ color: #000; background: #fff; min-width: 500px; transition: color 5s }} {dark}</style>"
    page.set_content(f'<html lang="en"><head>{head}</head><body><p>text</p></body></html>')
    found = [(width, scheme, rule) for width, scheme, rule, _ in faults_of_look(page, script, ALL_LOOKS)]
    page.close()
    contrast = [(1400, "dark", "color-contrast"), (390, "dark", "color-contrast")] if script else []
    assert sorted(found) == sorted([*contrast, (390, "light", "no horizontal scroll"), (390, "dark", "no horizontal scroll")])


def test_the_admin_fits_and_passes_axe(chromium: Any, node: LocalNode, visitor: Visitor) -> None:
    """Each page in each width and each scheme; the largest in all four combinations."""
    script = axe_source()
    # The styles that axe tries out are against the policy.
    context = chromium.new_context(bypass_csp=True)
    watched = Watched(context.new_page(), node.url, [])
    try:
        if script:
            watched.page.add_init_script(script)
        log_in(watched)
        paths = pages_of_the_admin(visitor)
        largest = {"/admin/", "/admin/dss_locks/lockrow/", "/admin/dss_cache/keyrow/"}
        assert len(paths) > 35
        assert largest < set(paths)
        for path in paths:
            watched.page.goto(watched.url + path)
            assert faults_of_look(watched.page, script, ALL_LOOKS if path in largest else TWO_LOOKS) == [], path
    finally:
        context.close()
    if not script:
        pytest.skip(AXE_MISSING)
