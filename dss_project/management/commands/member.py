"""`manage.py member`: add, remove or replace a member of a running cluster, or hand leadership over."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from dss_admin.cluster_command import ClusterCommand
from dss_cli import members
from dss_cli.cluster import Cluster
from dss_cli.terminal import Terminal


class Command(ClusterCommand):
    help = "Add, remove or replace a member of a running cluster, or hand leadership over. Any node can be asked."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        what = parser.add_subparsers(dest="what", required=True, metavar="add | remove | replace | transfer")
        add = what.add_parser("add", help="add a node that was started with DSS_JOIN=true")
        add.add_argument("id")
        add.add_argument("address", help="its service address, like http://127.0.0.1:8104")
        remove = what.add_parser("remove", help="remove a node; it stops. For a lost disk, use replace")
        remove.add_argument("id")
        remove.add_argument("--force", action="store_true", help="remove it even if no spare voter is left then; needs --reason")
        remove.add_argument("--reason", default="", help="why it is forced, for the log")
        replace = what.add_parser("replace", help="remove a node whose data is lost, and add the empty one that takes its place")
        replace.add_argument("id")
        replace.add_argument("--address", default="", help="the service address of the new node, if it is another one")
        transfer = what.add_parser("transfer", help="make another node the leader")
        transfer.add_argument("id")

    def handle(self, *args: Any, **options: Any) -> None:
        async def work(cluster: Cluster, terminal: Terminal) -> None:
            node_id = options["id"]
            match options["what"]:
                case "add":
                    await members.add(cluster, terminal, node_id, options["address"])
                case "remove":
                    await members.remove(cluster, terminal, node_id, force=options["force"], reason=options["reason"])
                case "replace":
                    await members.replace(cluster, terminal, node_id, options["address"])
                case "transfer":
                    await members.transfer(cluster, terminal, node_id)

        self.carry_out(options["url"], work)
