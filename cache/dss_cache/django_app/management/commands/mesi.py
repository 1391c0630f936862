"""`manage.py mesi KEY`: runs a demonstration on a running cluster and shows the key's line on every node after each step."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from dss_api.client import CallFailed, Client
from dss_api.find_cluster import URL_HELP, CannotChoose, cluster_urls, without_repeats

WRITE_BACK_TIMEOUT_S = 15


class Cluster:
    """The nodes' HTTP addresses."""

    def __init__(self, urls: Sequence[str], token: str) -> None:
        self.clients = [Client([url], token) for url in urls]

    def call(self, number: int, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call node `number`, counted from 1. Returns the answer.

        Raises:
            CommandError: the call was refused, or the node did not answer.
        """
        client = self.clients[(number - 1) % len(self.clients)]
        try:
            answer: dict[str, Any] = client.call("GET" if body is None else "POST", path, body, patience_s=0)
            return answer
        except CallFailed as error:
            raise CommandError(f"{client.url}{path}: {error}") from None
        except OSError as error:
            raise CommandError(f"{error}. Is the cluster running? Start one with `make run`.") from None


class Command(BaseCommand):
    """The command."""

    help = "Show the cache line of KEY on every node while it is read and written. Overwrites the value of KEY."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("key")
        parser.add_argument("--url", "--urls", action="append", default=[], help=URL_HELP)
        parser.add_argument("--token", default="", help="a token (default: the one of the settings)")

    def handle(self, *args: Any, **options: Any) -> None:
        key = options["key"]
        say = without_repeats(partial(self.stderr.write, style_func=str))
        try:
            cluster = Cluster(cluster_urls(options["url"], settings.NODE, say), options["token"] or settings.NODE.command_token)
        except (CannotChoose, ValueError) as error:
            raise CommandError(str(error)) from None

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
        second, third = min(2, len(cluster.clients)), min(3, len(cluster.clients))
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
