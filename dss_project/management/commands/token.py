"""`manage.py token`: make, list, rotate and revoke the tokens of a cluster."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from dss_admin.cluster_command import ClusterCommand
from dss_api.rights import FORMS
from dss_cli import tokens
from dss_cli.cluster import Cluster
from dss_cli.terminal import Terminal


class Command(ClusterCommand):
    help = (
        "Make, list, rotate and revoke tokens. On a node's machine, with its settings, it needs no token: it proves that it has the"
        " cluster's secret."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        what = parser.add_subparsers(dest="what", required=True, metavar="create | ls | rotate | revoke")
        create = what.add_parser("create", help="make a token, and print it once")
        create.add_argument("name", help="for people: who or what uses it")
        create.add_argument(
            "--scope", action="append", required=True, help=f"what it may do; repeat it. {FORMS}".replace("`", "")
        )
        create.add_argument(
            "--expires", default="", metavar="TIME", help="when it ends: 90d, 12h or 30m from now (default: never)"
        )
        what.add_parser("ls", help="list the tokens, without their secrets")
        rotate = what.add_parser("rotate", help="give a token another secret, and print it once")
        rotate.add_argument("id")
        rotate.add_argument(
            "--overlap", default="", metavar="TIME", help="how long the present secret stays valid: 1h (default: not)"
        )
        revoke = what.add_parser("revoke", help="end a token now, on every node")
        revoke.add_argument("id")

    def handle(self, *args: Any, **options: Any) -> None:
        async def work(cluster: Cluster, terminal: Terminal) -> None:
            match options["what"]:
                case "create":
                    await tokens.create(cluster, terminal, options["name"], options["scope"], options["expires"])
                case "ls":
                    await tokens.ls(cluster, terminal)
                case "rotate":
                    await tokens.rotate(cluster, terminal, options["id"], options["overlap"])
                case "revoke":
                    await tokens.revoke(cluster, terminal, options["id"])

        self.carry_out(options["url"], work)
