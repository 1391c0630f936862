"""`manage.py member`: who belongs to a running cluster, and who leads it."""

from __future__ import annotations

import http.client
import json
import sys
from typing import Any
from urllib.parse import quote, urlsplit

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser

TIMEOUT_S = 15.0


class Command(BaseCommand):
    help = "Add or remove a member of a running cluster, or hand leadership over. Any node can be asked."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--url", default="", help="address of a node of the cluster; this node's by default")
        what = parser.add_subparsers(dest="what", required=True, metavar="add | remove | transfer")
        add = what.add_parser("add", help="bring in a node that was started with DSS_JOIN=true")
        add.add_argument("id")
        add.add_argument("address", help="its service address, like http://127.0.0.1:8104")
        remove = what.add_parser("remove", help="take a node out for good; its data directory is of no use afterwards")
        remove.add_argument("id")
        transfer = what.add_parser("transfer", help="have another node lead")
        transfer.add_argument("id")

    def handle(self, *args: Any, **options: Any) -> None:
        url = options["url"] or settings.NODE.url
        try:
            if options["what"] == "add":
                answer = call(url, "POST", "/raft/members", {"id": options["id"], "url": options["address"]})
            elif options["what"] == "remove":
                answer = call(url, "DELETE", f"/raft/members/{quote(options['id'], safe='')}")
            else:
                answer = call(url, "POST", "/raft/transfer", {"to": options["id"]})
                self.stdout.write(f"{answer['leader_id']} leads")
                return
        except (OSError, ValueError) as error:
            sys.exit(f"{url}: {error}")
        for member in answer["members"]:
            self.stdout.write(f"{member['id']}  {member['url']}{'  (learner)' if member['learner'] else ''}")


def call(url: str, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One call of the API.

    Raises:
        OSError: the node cannot be reached.
        ValueError: it refused; the text is its reason.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError("the address must be like http://127.0.0.1:8101")
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if settings.NODE.api_token:
        headers["Authorization"] = f"Bearer {settings.NODE.api_token}"
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, json.dumps(body or {}), headers)
        response = connection.getresponse()
        document: dict[str, Any] = json.loads(response.read())
    except http.client.HTTPException:
        raise ValueError("what listens there does not speak HTTP") from None
    finally:
        connection.close()
    if response.status != 200:
        raise ValueError(f"{document.get('code')}: {document.get('detail')}")
    return document
