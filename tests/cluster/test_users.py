"""Users on real clusters: made once, one login for all nodes, and sessions that end on all of them."""

from __future__ import annotations

import http.client
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from django.contrib.auth.hashers import PBKDF2PasswordHasher

from dss_dev.browser import headless_chromium
from dss_dev.local_cluster import POLL_S, ROOT, LocalCluster, LocalNode, free_ports, manage
from dss_dev.prepared_pages import ENVIRONMENT, prepare_pages

pytestmark = pytest.mark.cluster

PATIENCE_S = 60
PASSWORDS = {"node-1": "the first one", "node-2": "the second one", "node-3": "the third one"}
PHRASE = "correct horse battery"


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(POLL_S)


class Browser:
    """Cookies that every node gets, as from a browser: it knows hosts, and no ports."""

    def __init__(self) -> None:
        self.cookies: dict[str, str] = {}

    def open(self, node: LocalNode, path: str, form: dict[str, str] | None = None) -> tuple[int, str, str]:
        """Status, Location and body."""
        connection = http.client.HTTPConnection(node.host, node.port, timeout=PATIENCE_S)
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items()), "Accept": "text/html"}
        body = None
        if form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            token = next((value for name, value in self.cookies.items() if "csrf" in name), "")
            body = urlencode({"csrfmiddlewaretoken": token, **form})
        connection.request("GET" if form is None else "POST", path, body, headers)
        response = connection.getresponse()
        text = response.read().decode()
        for cookie in response.headers.get_all("Set-Cookie", ()):
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
        connection.close()
        return response.status, response.headers.get("Location", ""), text

    def log_in(self, node: LocalNode, name: str, password: str) -> bool:
        self.open(node, "/admin/login/")
        status, _, _ = self.open(node, "/admin/login/?next=/admin/", {"username": name, "password": password})
        return status == 302

    def is_logged_in(self, node: LocalNode) -> bool:
        return self.open(node, "/admin/")[0] == 200


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Three nodes with three values of DSS_ADMIN_PASSWORD."""
    cluster = LocalCluster(tmp_path_factory.mktemp("users"), free_ports(3), ENVIRONMENT)
    for node in cluster.nodes:
        node.environment["DSS_ADMIN_PASSWORD"] = PASSWORDS[node.id]
    prepare_pages(cluster)
    cluster.start()
    try:
        cluster.wait_ready()
        yield cluster
    finally:
        cluster.stop()


def users(node: LocalNode) -> list[dict[str, Any]]:
    reply = node.call("GET", "/users", headers=node.credentials)
    return reply.json["users"] if reply.status == 200 else []


def events(node: LocalNode, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in node.log_path.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


def call(node: LocalNode, path: str, **fields: Any) -> None:
    method = "POST" if fields else "DELETE"
    reply = node.call(method, path, fields or None, headers=node.credentials)
    assert reply.status == 200, reply.body


def test_three_values_of_the_setting_make_one_admin(three: LocalCluster) -> None:
    one = three.nodes[0]
    until(lambda: users(one))
    (admin,) = users(one)
    assert (admin["name"], admin["group"], admin["generation"]) == ("admin", "admin", 1)
    maker = next(node for node in three.nodes if node.id == admin["created_by"])
    for node in three.nodes:
        # Each node has said which value counts, and whether it is its own.
        until(lambda node=node: events(node, "node.first_user"))
        assert events(node, "node.first_user")[0]["made_by"] == maker.id
        until(lambda node=node: bool(events(node, "node.admin_password_not_used")) == (node is not maker))
    assert Browser().log_in(one, "admin", PASSWORDS[maker.id])
    assert not Browser().log_in(one, "admin", next(PASSWORDS[node.id] for node in three.nodes if node is not maker))


def test_one_login_for_all_nodes_until_it_ends_on_all(three: LocalCluster) -> None:
    one, two, _ = three.nodes
    call(two, "/users", name="alice", group="viewer", password=PHRASE)
    browser = Browser()
    until(lambda: browser.log_in(one, "alice", PHRASE))
    assert {name.partition("_")[2].partition("_")[0] for name in browser.cookies} == {"csrf", "session"}
    assert len(browser.cookies) == 2, "one name for all nodes"
    # The others may not have applied yet that she is a user.
    until(lambda: all(browser.is_logged_in(node) for node in three.nodes))
    for path, fields in (("/users/sign_out", {}), ("/users/change", {"group": "operator"})):
        cookies = dict(browser.cookies)
        call(two, path, name="alice", **fields)
        for node in three.nodes:
            until(lambda node=node: not browser.is_logged_in(node))
            browser.cookies = dict(cookies)
        until(lambda: browser.log_in(two, "alice", PHRASE))
    call(one, "/users/change", name="alice", password="another long phrase")
    until(lambda: not browser.is_logged_in(two))
    assert browser.log_in(two, "alice", "another long phrase")
    call(one, "/users/alice")
    until(lambda: not browser.is_logged_in(two))
    assert not browser.log_in(two, "alice", "another long phrase")


def test_the_command(three: LocalCluster) -> None:
    """It needs no token where the cluster's secret is, and takes the password from the standard input."""
    one, two, _ = three.nodes
    secret = {"DSS_CLUSTER_SECRET": one.environment["DSS_CLUSTER_SECRET"]}

    def run(*arguments: str, given: str = "") -> str:
        whole = ["user", "--url", two.url, *arguments]
        if not given:
            done = manage(*whole, environment=secret)
        else:
            command, environment = [sys.executable, "manage.py", *whole], {**os.environ, **secret}
            done = subprocess.run(command, cwd=ROOT, env=environment, input=given, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    assert "carol is in the group viewer" in run("create", "carol", "--group", "viewer", given=f"{PHRASE}\n")
    assert "too common" in run("password", "carol", given="password\n")
    assert re.search(r"^carol +viewer +active ", run("ls"), re.MULTILINE)
    until(lambda: Browser().log_in(one, "carol", PHRASE))


def test_a_login_on_one_node_in_a_browser_is_one_on_all(three: LocalCluster) -> None:
    """In headless Chromium: log in on node 1, use nodes 2 and 3, make a user there, and sign out everywhere."""
    one, two, last = three.nodes
    with headless_chromium() as browser:
        call(one, "/users", name="root", group="admin", password=PHRASE)
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_S * 1000)
        page.goto(f"{one.url}/admin/")
        page.fill("input[name=username]", "root")
        page.fill("input[name=password]", PHRASE)
        page.click("input[type=submit]")
        page.wait_for_url(f"{one.url}/admin/")
        page.goto(f"{two.url}/admin/dss_raft/userrow/add/")
        page.fill("input[name=name]", "bob")
        page.select_option("select[name=group]", "operator")
        page.fill("input[name=password]", PHRASE)
        page.click("input[name=_save]")
        page.wait_for_selector("text=was added successfully")
        page.goto(f"{last.url}/admin/dss_raft/userrow/")
        until(lambda: page.reload() and page.locator("th.field-name >> text=bob").count())
        page.goto(f"{two.url}/admin/password_change/")
        assert page.locator("input[name=old_password]").count() == 1
        call(two, "/users/sign_out", name="root")
        until(lambda: "/admin/login/" in (page.goto(f"{last.url}/admin/") and page.url))
        page.goto(f"{one.url}/admin/")
        assert "/admin/login/" in page.url


def test_without_a_majority_one_can_log_in_and_not_change(three: LocalCluster) -> None:
    leader = three.leader()
    for node in three.nodes:
        if node is not leader:
            node.stop()
    browser = Browser()
    maker = events(leader, "node.first_user")[0]["made_by"]
    assert browser.log_in(leader, "admin", PASSWORDS[maker])
    form = {"group": "viewer", "active": "on", "password": ""}
    _, location, _ = browser.open(leader, "/admin/dss_raft/userrow/admin/change/", form)
    assert re.search("Not saved: .*(leader|majority|quorum|outcome)", browser.open(leader, location)[2])
    for node in three.nodes:
        if node is not leader:
            node.start()
    three.wait_ready()


def test_users_of_an_older_release_are_taken_over(tmp_path: Path) -> None:
    """Below cluster version 5, they log in as before. The version makes them users of the cluster, with their passwords."""
    cluster = LocalCluster(tmp_path, free_ports(1), {**ENVIRONMENT, "DSS_CLUSTER_VERSION_MAX": "4"})
    (node,) = cluster.nodes
    prepare_pages(cluster)
    with sqlite3.connect(Path(node.environment["DSS_DATA_DIR"]) / "django.sqlite3") as database:
        database.execute(
            "INSERT INTO auth_user (id, password, is_superuser, username, first_name, last_name, email, is_staff, is_active, date_joined)"
            " VALUES (1, ?, 1, 'chief', '', '', '', 1, 1, '2026-01-01')",
            [PBKDF2PasswordHasher().encode(PHRASE, "salt", 1)],
        )
    database.close()
    try:
        cluster.start()
        cluster.wait_ready()
        browser = Browser()
        assert browser.log_in(node, "chief", PHRASE)
        assert browser.is_logged_in(node)
        assert (
            node.call("POST", "/users", {"name": "a", "group": "viewer", "password": PHRASE}).json["code"] == "not_supported_yet"
        )
        node.stop()
        del node.environment["DSS_CLUSTER_VERSION_MAX"]
        node.start()
        cluster.wait_ready()
        until(lambda: users(node))
        assert [(user["name"], user["group"]) for user in users(node)] == [("chief", "admin")]
        until(lambda: not browser.is_logged_in(node))
        assert browser.log_in(node, "chief", PHRASE)
        until(lambda: events(node, "node.local_user_ended"))
    finally:
        cluster.stop()
