"""`manage.py status`: a cluster at a glance, asked of one of its nodes."""

from __future__ import annotations

import http.client
import json
import sys
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser

TIMEOUT_S = 3.0


class Command(BaseCommand):
    help = "Print the members of the cluster, who leads, and how far everyone is."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--url", default="", help="a node's address; this node's by default")

    def handle(self, *args: Any, **options: Any) -> None:
        url = (options["url"] or settings.NODE.url).rstrip("/")
        try:
            first = ask(url)
        except (OSError, ValueError) as error:
            sys.exit(f"No answer from {url}: {error}")
        rows = []
        for member in first["members"]:
            try:
                status = first if member["id"] == first["node"] else ask(member["url"])
            except (OSError, ValueError) as error:
                rows.append([member["id"], member["url"], "no answer", "", "", "", str(error)])
                continue
            note = "learner" if member["learner"] else ""
            figures = [str(status[name]) for name in ("term", "commit_index", "last_applied")]
            rows.append([member["id"], member["url"], status["state"]["name"].lower(), *figures, note])
        self.stdout.write(table(["NODE", "ADDRESS", "STATE", "TERM", "COMMITTED", "APPLIED", ""], rows))
        self.stdout.write(f"leader: {first['leader_id'] or 'none known'}")


def ask(url: str) -> dict[str, Any]:
    """`GET /raft/status` of the node at `url`.

    Raises:
        OSError: it cannot be reached.
        ValueError: it answered something else than its status.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError("the address must be like http://127.0.0.1:8101")
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT_S)
    try:
        token = settings.NODE.api_token
        connection.request("GET", "/raft/status", headers={"Authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        body = response.read()
    except http.client.HTTPException:
        raise ValueError("what listens there does not speak HTTP") from None
    finally:
        connection.close()
    try:
        document = json.loads(body)
    except ValueError:
        raise ValueError(f"status {response.status}, and no JSON") from None
    if response.status != 200 or not isinstance(document, dict) or "members" not in document:
        raise ValueError(f"status {response.status}: {document.get('detail', '') if isinstance(document, dict) else document}")
    return document


def table(head: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as their widest cell."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
