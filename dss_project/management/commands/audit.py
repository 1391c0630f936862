"""`manage.py audit`: the audit trail as JSON lines."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from dss_admin.cluster_command import ClusterCommand
from dss_cli import audit
from dss_cli.cluster import Cluster
from dss_cli.terminal import Terminal


class Command(ClusterCommand):
    help = "Print the audit trail as JSON lines. It says what operators did, who they were, and from where; oldest first."
    is_json = True

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--after", type=int, default=0, metavar="INDEX", help="only records behind this one, to continue an export"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        async def work(cluster: Cluster, terminal: Terminal) -> None:
            await audit.ls(cluster, terminal, options["after"])

        self.carry_out(options["url"], work)
