"""`manage.py log`: look at an entry of the log, and skip one that cannot be applied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from django.conf import settings
from django.core.management.base import CommandError, CommandParser

from dss_admin.cluster_command import ClusterCommand
from dss_api.errors import ForOperator
from dss_cli import replicated_log
from dss_cli.cluster import Cluster
from dss_cli.terminal import Terminal
from dss_raft import log_view
from dss_raft.disk.store import LogStore


class Command(ClusterCommand):
    help = "Show an entry of the log, or skip one that no node can apply."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        action = parser.add_subparsers(dest="action", required=True, metavar="show | skip")
        show = action.add_parser("show", help="print one entry as a node stores it")
        show.add_argument("index", type=int)
        show.add_argument("--offline", action="store_true", help="read the data directory of this node, which must not run")
        skip = action.add_parser("skip", help="have every node give the entry no effect; its calls are refused")
        skip.add_argument("index", type=int)
        skip.add_argument("--reason", required=True, help="for the log")

    def handle(self, *args: Any, **options: Any) -> None:
        index = options["index"]
        if options["action"] == "show" and options["offline"]:
            try:
                replicated_log.show_entry(_from_directory(index), self.terminal())
            except (OSError, ValueError, ForOperator) as error:
                raise CommandError(str(error)) from None
            return

        async def work(cluster: Cluster, terminal: Terminal) -> None:
            if options["action"] == "skip":
                await replicated_log.skip(cluster, terminal, index, options["reason"])
            else:
                await replicated_log.show(cluster, terminal, index)

        self.carry_out(options["url"], work)


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
