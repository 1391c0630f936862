"""`manage.py member`: add or remove a member of a running cluster, or hand leadership over."""

from __future__ import annotations

from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from dss_api.client import CallFailed, Client
from dss_api.find_cluster import URL_HELP, CannotChoose, cluster_urls, without_repeats

#: how long to wait for a leader or for a node that answers
PATIENCE_S = 15.0


class Command(BaseCommand):
    help = "Add or remove a member of a running cluster, or hand leadership over. Any node can be asked."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--url", action="append", default=[], help=URL_HELP)
        what = parser.add_subparsers(dest="what", required=True, metavar="add | remove | transfer")
        add = what.add_parser("add", help="add a node that was started with DSS_JOIN=true")
        add.add_argument("id")
        add.add_argument("address", help="its service address, like http://127.0.0.1:8104")
        remove = what.add_parser("remove", help="remove a node; it stops, and returns only if it is added again")
        remove.add_argument("id")
        remove.add_argument("--force", action="store_true", help="remove it although no voter is to spare then; needs --reason")
        remove.add_argument("--reason", default="", help="why it is forced, for the log")
        transfer = what.add_parser("transfer", help="make another node the leader")
        transfer.add_argument("id")

    def handle(self, *args: Any, **options: Any) -> None:
        say = without_repeats(partial(self.stderr.write, style_func=str))
        node_id = options["id"]
        forced = f"?{urlencode({'force': 'true', 'reason': options['reason']})}" if options.get("force") else ""
        method, path, body = {
            "add": ("POST", "/raft/members", {"id": node_id, "url": options.get("address")}),
            "remove": ("DELETE", f"/raft/members/{quote(node_id, safe='')}{forced}", None),
            "transfer": ("POST", "/raft/transfer", {"to": node_id}),
        }[options["what"]]
        try:
            client = Client(cluster_urls(options["url"], settings.NODE, say), settings.NODE.api_token, say)
            answer = client.call(method, path, body, patience_s=PATIENCE_S, may_repeat=False)
        except (CallFailed, CannotChoose, OSError, ValueError) as error:
            raise CommandError(str(error)) from None
        if options["what"] == "transfer":
            self.stdout.write(f"{answer['leader_id']} leads")
            return
        for member in answer["members"]:
            self.stdout.write(f"{member['id']}  {member['url']}{'  (learner)' if member['learner'] else ''}")
