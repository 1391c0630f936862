"""`manage.py status`: the members of a cluster, the leader, and the progress of each node."""

from __future__ import annotations

from functools import partial
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from dss_api.client import CallFailed, Client
from dss_api.find_cluster import URL_HELP, CannotChoose, cluster_urls, running_clusters, without_repeats


class Command(BaseCommand):
    help = "Print the members of the cluster, the leader, and the progress of each node."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--url", action="append", default=[], help=URL_HELP)

    def handle(self, *args: Any, **options: Any) -> None:
        say = without_repeats(partial(self.stderr.write, style_func=str))
        try:
            client = Client(cluster_urls(options["url"], settings.NODE, say), settings.NODE.command_token, say)
            first = client.call("GET", "/raft/status", patience_s=0)
        except (CallFailed, CannotChoose, ValueError) as error:
            raise CommandError(str(error)) from None
        except OSError as error:
            raise CommandError(f"{error}. Is the cluster running? Start one with `make run`.") from None
        pids = {node.url: str(node.pid) for cluster in running_clusters().values() for node in cluster.nodes}
        is_local = any(member["url"] in pids for member in first["members"])
        rows = []
        for member in first["members"]:
            pid = [pids.get(member["url"], "")] if is_local else []
            state, figures, note = _state_of(member, first)
            rows.append([member["id"], state, *pid, member["url"], *figures, note])
        head = ["NODE", "STATE", *(["PID"] if is_local else []), "ADDRESS", "TERM", "COMMITTED", "APPLIED", ""]
        self.stdout.write(table(head, rows))
        self.stdout.write(f"leader: {first['leader_id'] or 'none known'}")


def _state_of(member: dict[str, Any], first: dict[str, Any]) -> tuple[str, list[str], str]:
    """A member's state, term and indexes, and a remark. `first` is the status of the node that was asked first."""
    status = first
    if member["id"] != first["node"]:
        client = Client([member["url"]], settings.NODE.command_token)
        try:
            status = client.call("GET", "/raft/status", patience_s=0)
        except (CallFailed, OSError, ValueError) as error:
            return "no answer", ["", "", ""], str(error).rpartition(": ")[2]
    figures = [str(status[name]) for name in ("term", "commit_index", "last_applied")]
    notes = ["learner"] if member["learner"] else []
    if member["outdated"]:
        notes.append(f"its disk is outdated, so it has no vote: manage.py member replace {member['id']}")
    if differing := status["state_hash"]["differing"]:
        notes.append(f"its state differs from that of {', '.join(differing)}: see docs/how-to/state-differs.md")
    return status["state"]["name"].lower(), figures, "; ".join(notes)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as their widest cell."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
