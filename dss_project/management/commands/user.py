"""`manage.py user`: make, list, change, sign out and delete the users of a cluster."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from dss_admin.cluster_command import ClusterCommand
from dss_cli import users
from dss_cli.cluster import Cluster
from dss_cli.terminal import Terminal
from dss_client import WrongUse


class Command(ClusterCommand):
    help = (
        "Make, list, change, sign out and delete the users of the pages and the admin. On a node's machine, with its settings, it needs no"
        " token: it proves that it has the cluster's secret."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        what = parser.add_subparsers(dest="what", required=True, metavar="create | ls | change | password | sign-out | rm")
        create = what.add_parser("create", help="make a user; asks for the password, or reads it from the standard input")
        create.add_argument("name")
        create.add_argument("--group", choices=users.GROUPS, required=True, help="what the user may do")
        what.add_parser("ls", help="list the users")
        change = what.add_parser("change", help="change the group, or whether the user may log in; ends all sessions")
        change.add_argument("name")
        change.add_argument("--group", choices=users.GROUPS, default=None)
        active = change.add_mutually_exclusive_group()
        active.add_argument("--disable", dest="active", action="store_false", default=None, help="allow no login")
        active.add_argument("--enable", dest="active", action="store_true", default=None, help="allow logins again")
        password = what.add_parser("password", help="give a user another password; ends all sessions")
        password.add_argument("name")
        for parser_of_password in (create, password):
            parser_of_password.add_argument("--generate", action="store_true", help="make a random password, and print it once")
        sign_out = what.add_parser("sign-out", help="end all sessions of a user, on every node")
        sign_out.add_argument("name")
        rm = what.add_parser("rm", help="delete a user")
        rm.add_argument("name")

    def handle(self, *args: Any, **options: Any) -> None:
        what, name, generate = options["what"], options.get("name", ""), options.get("generate", False)
        try:
            password = users.new_password(generate) if what in ("create", "password") else ""
        except WrongUse as error:
            raise CommandError(str(error)) from None

        async def work(cluster: Cluster, terminal: Terminal) -> None:
            match what:
                case "create":
                    await users.create(cluster, terminal, name, options["group"], password, generate)
                case "ls":
                    await users.ls(cluster, terminal)
                case "change":
                    await users.change(cluster, terminal, name, options["group"], options["active"])
                case "password":
                    await users.password(cluster, terminal, name, password, generate)
                case "sign-out":
                    await users.sign_out(cluster, terminal, name)
                case "rm":
                    await users.rm(cluster, terminal, name)

        self.carry_out(options["url"], work)
