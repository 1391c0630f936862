"""`manage.py mesi KEY`: runs a demonstration on a running cluster and shows the key's line on every node after each step."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from dss_admin.cluster_command import ClusterCommand
from dss_cli import caches
from dss_cli.cluster import Cluster
from dss_cli.find_cluster import URL_HELP
from dss_cli.terminal import Terminal


class Command(ClusterCommand):
    """The command."""

    help = "Show the cache line of KEY on every node while it is read and written. Overwrites the value of KEY."
    hint = ". Is the cluster running? Start one with `make run`."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("key")
        parser.add_argument("--url", "--urls", action="append", default=[], help=URL_HELP)
        parser.add_argument("--token", default="", help="the API token, if one is set")

    def handle(self, *args: Any, **options: Any) -> None:
        async def work(cluster: Cluster, terminal: Terminal) -> None:
            await caches.demo(cluster, terminal, options["key"])

        self.carry_out(options["url"], work, token=options["token"])
