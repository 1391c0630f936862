"""`manage.py member`: add, remove or replace a member of a running cluster, or hand leadership over."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from dss_api.client import CallFailed, Client
from dss_api.find_cluster import URL_HELP, CannotChoose, cluster_urls, without_repeats

#: how long to wait for a leader or for a node that answers
PATIENCE_S = 15.0
#: time between two looks at a new member
POLL_S = 0.5


class Command(BaseCommand):
    help = "Add, remove or replace a member of a running cluster, or hand leadership over. Any node can be asked."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--url", action="append", default=[], help=URL_HELP)
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
        say = without_repeats(partial(self.stderr.write, style_func=str))
        node_id = options["id"]
        forced = f"?{urlencode({'force': 'true', 'reason': options['reason']})}" if options.get("force") else ""
        if options["what"] == "replace":
            self._replace(node_id, options, say)
            return
        method, path, body = {
            "add": ("POST", "/raft/members", {"id": node_id, "url": options.get("address")}),
            "remove": ("DELETE", f"/raft/members/{quote(node_id, safe='')}{forced}", None),
            "transfer": ("POST", "/raft/transfer", {"to": node_id}),
        }[options["what"]]
        try:
            client = Client(cluster_urls(options["url"], settings.NODE, say), settings.NODE.command_token, say)
            answer = client.call(method, path, body, patience_s=PATIENCE_S, may_repeat=False)
        except (CallFailed, CannotChoose, OSError, ValueError) as error:
            raise CommandError(str(error)) from None
        if options["what"] == "transfer":
            self.stdout.write(f"{answer['leader_id']} leads")
            return
        for member in answer["members"]:
            self.stdout.write(f"{member['id']}  {member['url']}{'  (learner)' if member['learner'] else ''}")

    def _replace(self, node_id: str, options: dict[str, Any], say: Callable[[str], None]) -> None:
        """Remove, add, and wait for the vote. Each step is left out when it is done, so the command can be repeated."""
        try:
            client = Client(cluster_urls(options["url"], settings.NODE, say), settings.NODE.command_token, say)
            address = options["address"]
            member = self._member(client, node_id)
            if member is not None and not member["learner"]:
                address = address or member["url"]
                client.call("DELETE", f"/raft/members/{quote(node_id, safe='')}", patience_s=PATIENCE_S, may_repeat=False)
                self.stdout.write(f"{node_id} is removed; its old data has no vote any longer")
                member = None
            if member is None:
                if not address:
                    raise CommandError(f"{node_id} is not a member now. Say where the new node is: --address http://HOST:PORT")
                body = {"id": node_id, "url": address}
                client.call("POST", "/raft/members", body, patience_s=PATIENCE_S, may_repeat=False)
                self.stdout.write(f"{node_id} is added as a learner at {address}; waiting until it has the log")
            while True:
                member = self._member(client, node_id)
                if member is not None and not member["learner"]:
                    break
                if member is not None and not member["up"]:
                    say(f"{node_id} is not there: start it with an empty data directory")
                elif member is not None and member["outdated"]:
                    say(f"{node_id} has an outdated data directory: stop it, and start it with an empty one")
                time.sleep(POLL_S)
        except (CallFailed, CannotChoose, OSError, ValueError) as error:
            raise CommandError(f"{error}\nRun the command again: it continues where it stopped") from None
        self.stdout.write(f"{node_id} is a voter again")

    def _member(self, client: Client, node_id: str) -> Any:
        """The member as the cluster sees it; None if it is not one."""
        members = client.call("GET", "/raft/status", patience_s=PATIENCE_S)["members"]
        if not members:
            raise CommandError(
                "the node that was asked is new and belongs to no cluster. Ask another one: --url http://HOST:PORT"
            )
        return next((member for member in members if member["id"] == node_id), None)
