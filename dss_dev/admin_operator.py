"""A user of the admin, for tests: their browser has no scripts."""

from __future__ import annotations

import http.client
import re
from html import unescape
from typing import Any
from urllib.parse import urlencode

from dss_dev.local_cluster import HOST, LocalNode


class Operator:
    """A user who is logged in to the admin of one node."""

    def __init__(self, node: LocalNode, name: str, password: str) -> None:
        self.node = node
        self.cookies: dict[str, str] = {}
        self.token = ""
        self.send("GET", "/admin/login/")
        status, _ = self.send("POST", "/admin/login/?next=/admin/", {"username": name, "password": password})
        assert status == 302, f"{name} cannot log in"
        self.send("GET", "/admin/password_change/")

    def send(self, method: str, path: str, form: dict[str, Any] | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection(HOST, self.node.port, timeout=60)
        cookies = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        body = urlencode({"csrfmiddlewaretoken": self.token, **form}, doseq=True) if form is not None else None
        kind = {"Content-Type": "application/x-www-form-urlencoded"} if body else {}
        connection.request(method, path, body, {"Accept": "text/html", "Cookie": cookies, **kind})
        reply = connection.getresponse()
        text = reply.read().decode("utf-8", "replace")
        for cookie in reply.headers.get_all("Set-Cookie", ()):
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
        connection.close()
        if found := re.search(r'csrfmiddlewaretoken" value="([^"]*)"', text):
            self.token = found[1]
        return reply.status, text

    def act(self, name: str, rows: list[str], given: dict[str, Any]) -> str:
        """Confirm an action. Returns what the page says afterwards, with the kind of each message."""
        form = {**given, "confirmed": "1", "reason": "a test"}
        if rows:
            form |= {"action": name.partition(" ")[2], "_selected_action": rows}
        status, page = self.send("POST", path_of(name), form)
        if status == 302:
            status, page = self.send("GET", "/admin/")
        return f"{status} {messages(page)}"


def messages(page: str) -> str:
    found = re.findall(r'<li class="(success|warning|error)">(.*?)</li>', page, re.DOTALL)
    return unescape("; ".join(f"{kind}: {text}" for kind, text in found))


def path_of(name: str) -> str:
    label, _, action = name.partition(" ")
    path = f"/admin/{label.replace('.', '/')}/"
    return f"{path}{action}/" if action.startswith("do/") else path


def rows_in(page: str) -> list[str]:
    return [unescape(pk) for pk in re.findall(r'name="_selected_action" value="([^"]*)"', page)]
