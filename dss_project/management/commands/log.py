"""`manage.py log`: look at an entry of the log, and skip one that cannot be applied."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from dss_api.client import CallFailed, Client
from dss_api.errors import ForOperator
from dss_api.find_cluster import URL_HELP, CannotChoose, cluster_urls, without_repeats
from dss_raft import log_view
from dss_raft.disk.store import LogStore

#: how long to wait for a leader or for a node that answers
PATIENCE_S = 15.0


class Command(BaseCommand):
    help = "Show an entry of the log, or skip one that no node can apply."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--url", action="append", default=[], help=URL_HELP)
        action = parser.add_subparsers(dest="action", required=True, metavar="show | skip")
        show = action.add_parser("show", help="print one entry as a node stores it")
        show.add_argument("index", type=int)
        show.add_argument("--offline", action="store_true", help="read the data directory of this node, which must not run")
        skip = action.add_parser("skip", help="have every node give the entry no effect; its calls are refused")
        skip.add_argument("index", type=int)
        skip.add_argument("--reason", required=True, help="for the log")

    def handle(self, *args: Any, **options: Any) -> None:
        index = options["index"]
        try:
            if options["action"] == "skip":
                body = {"index": index, "reason": options["reason"]}
                answer = self._call(options["url"], "POST", "/raft/skip", body)
                self.stdout.write(f"entry {answer['skipped']} is skipped, by entry {answer['index']}")
                return
            shown = _from_directory(index) if options["offline"] else self._call(options["url"], "GET", f"/raft/log/{index}")
        except (CallFailed, CannotChoose, OSError, ValueError, ForOperator) as error:
            raise CommandError(str(error)) from None
        shown.pop("ok", None)
        self.stdout.write(json.dumps(shown, indent=2, ensure_ascii=False))

    def _call(self, urls: list[str], method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        say = without_repeats(partial(self.stderr.write, style_func=str))
        client = Client(cluster_urls(urls, settings.NODE, say), settings.NODE.command_token, say)
        answer: dict[str, Any] = client.call(method, path, body, patience_s=PATIENCE_S, may_repeat=method == "GET")
        return answer


def _from_directory(index: int) -> dict[str, Any]:
    """The entry in the data directory of a node that does not run.

    Raises:
        ValueError: it is not there.
        StoreError: the directory cannot be used, for example because a node uses it.
    """
    config = settings.NODE
    directory = Path(config.data_dir) / "raft"
    if not directory.is_dir():
        raise ValueError(f"there is no log in {config.data_dir}")
    store = LogStore(directory, config.node_id, config.cluster_id)
    try:
        found = [] if store.is_new else [entry for entry in store.load().entries if entry.index == index]
    finally:
        store.close()
    if not found:
        raise ValueError(f"entry {index} is not in the log of {config.data_dir}")
    view = log_view.show(found[0], committed=None, applied=None, skipped=None)
    shown: dict[str, Any] = msgspec.to_builtins(view)
    return shown
