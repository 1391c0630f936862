"""`manage.py mesi KEY`: runs a demonstration on a running cluster and shows the key's line on every node after each step."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

DEFAULT_URLS = "http://127.0.0.1:8101,http://127.0.0.1:8102,http://127.0.0.1:8103"
CALL_TIMEOUT_S = 15
WRITE_BACK_TIMEOUT_S = 15


class Cluster:
    """The nodes' HTTP addresses."""

    def __init__(self, urls: list[str], token: str) -> None:
        self.urls = urls
        self._token = token

    def call(self, number: int, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call node `number`, counted from 1. Returns the answer.

        Raises:
            CommandError: the call was refused, or the node did not answer.
        """
        url = self.urls[(number - 1) % len(self.urls)] + path
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=CALL_TIMEOUT_S) as reply:
                answer: dict[str, Any] = json.load(reply)
                return answer
        except urllib.error.HTTPError as error:
            raise CommandError(f"{url}: {error.code} {error.read().decode(errors='replace')}") from None
        except OSError as error:
            raise CommandError(f"{url}: {error}; is the cluster running? (make run)") from None


class Command(BaseCommand):
    """The command."""

    help = "Run a demonstration on a running cluster: show the line of KEY on every node after each step. Overwrites the value of KEY."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("key")
        parser.add_argument(
            "--urls", default=DEFAULT_URLS, help=f"base URLs of the nodes, separated by commas (default: {DEFAULT_URLS})"
        )
        parser.add_argument("--token", default=settings.NODE.api_token, help="the API token, if one is set")

    def handle(self, *args: Any, **options: Any) -> None:
        key = options["key"]
        cluster = Cluster([url.strip().rstrip("/") for url in options["urls"].split(",") if url.strip()], options["token"])
        if not cluster.urls:
            raise CommandError("--urls contains no URL")

        def get(number: int) -> Callable[[], str]:
            def step() -> str:
                answer = cluster.call(number, "/cache/get", {"key": key})
                where = "hit" if answer["hit"] else "miss"
                return f"{json.dumps(answer['value'])}, {where}"

            return step

        def put(number: int, value: str) -> Callable[[], str]:
            def step() -> str:
                answer = cluster.call(number, "/cache/put", {"key": key, "value": value})
                return f"version {answer['version']}"

            return step

        def evict(number: int) -> Callable[[], str]:
            def step() -> str:
                return "written back first" if cluster.call(number, "/cache/evict", {"key": key})["written_back"] else "silently"

            return step

        def delete() -> str:
            return "deleted" if cluster.call(1, "/cache/delete", {"key": key})["deleted"] else "there was no value"

        def wait_for_write_back() -> str:
            deadline = time.monotonic() + WRITE_BACK_TIMEOUT_S
            while any(row["state"] == "M" for row in cluster.call(1, f"/cache/lines?key={quoted}")["lines"]):
                if time.monotonic() > deadline:
                    return "not yet: is the backing store available?"
                time.sleep(0.05)
            return "the backing store has the value"

        quoted = quote(key, safe="")
        second, third = min(2, len(cluster.urls)), min(3, len(cluster.urls))
        steps: list[tuple[str, Callable[[], str]]] = [
            ("start: delete it", delete),
            ("put on 1", put(1, "first")),
            ("read on 1", get(1)),
            ("write-back", wait_for_write_back),
            (f"read on {second}", get(second)),
            (f"read on {second} again", get(second)),
            (f"write on {third}", put(third, "second")),
            ("read on 1", get(1)),
            ("read on 1 again", get(1)),
            ("evict on 1", evict(1)),
            (f"evict on {third}", evict(third)),
        ]
        names = sorted(row["node"] for row in cluster.call(1, f"/cache/lines?key={quoted}")["lines"])
        width = max(8, *(len(name) for name in names))
        self.stdout.write(f"{'step':20}" + "".join(f"{name:>{width + 2}}" for name in names) + "   result")
        for title, step in steps:
            result = step()
            rows = {row["node"]: row for row in cluster.call(1, f"/cache/lines?key={quoted}")["lines"]}
            states = "".join(f"{rows[name]['state'] if name in rows else '?':>{width + 2}}" for name in names)
            self.stdout.write(f"{title:20}{states}   {result}")
        self.stdout.write(
            "\nM: written here, not yet in the backing store.  E: only here.  S: other nodes may have it.  I: no line."
        )
