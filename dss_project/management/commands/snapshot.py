"""`manage.py snapshot`: save the state of a running cluster to a file, look at the file, and start a new cluster from it."""

from __future__ import annotations

from base64 import b64decode
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from dss_api.client import CallFailed, Client
from dss_api.errors import ForOperator
from dss_api.find_cluster import URL_HELP, CannotChoose, cluster_urls, without_repeats
from dss_project import new_cluster
from dss_project.management.commands.status import table
from dss_raft.core.messages import Member
from dss_raft.disk import backup

#: how long to wait for a leader or for a node that answers
PATIENCE_S = 15.0
#: how long a node may take for the snapshot itself
SNAPSHOT_MS = 600_000


class Command(BaseCommand):
    help = "Save the state of a cluster to a file, or start a new cluster from it."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        action = parser.add_subparsers(dest="action", required=True, metavar="save | info | restore")
        save = action.add_parser("save", help="save the state of a running cluster; any node can be asked")
        save.add_argument("file", type=Path)
        save.add_argument("--url", action="append", default=[], help=URL_HELP)
        save.add_argument("--local", action="store_true", help="what the node has applied, also without a majority")
        info = action.add_parser("info", help="check a file, and print what it contains")
        info.add_argument("file", type=Path)
        restore = action.add_parser("restore", help="fill the empty data directory of this node, which must not run")
        restore.add_argument("file", type=Path)
        restore.add_argument(
            "--new-cluster", action="store_true", required=True, help="the node becomes a member of a new cluster, DSS_CLUSTER_ID"
        )
        restore.add_argument(
            "--member",
            action="append",
            default=[],
            metavar="ID=URL",
            help="a member of the new cluster; repeat it (default: this node alone, to which others are added later)",
        )
        restore.add_argument("--raise-index-by", type=int, metavar="N", help="instead of a number computed from the file's age")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            {"save": self._save, "info": self._info, "restore": self._restore}[options["action"]](options)
        except (CallFailed, CannotChoose, ForOperator, ValueError) as error:
            raise CommandError(str(error)) from None
        except OSError as error:
            raise CommandError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from None

    # ---------------------------------------------------------------------- save

    def _save(self, options: dict[str, Any]) -> None:
        file: Path = options["file"]
        if file.exists():
            raise ValueError(f"{file} exists: choose another name, or delete it first")
        say = without_repeats(partial(self.stderr.write, style_func=str))
        urls = cluster_urls(options["url"], settings.NODE, say)
        client = Client(urls, settings.NODE.command_token, say)
        body = {"consistency": "local" if options["local"] else "linearizable"}
        begun = client.call("POST", "/raft/snapshot", body, wait_ms=SNAPSHOT_MS, patience_s=PATIENCE_S)
        header = backup.Header(
            cluster=begun["cluster"],
            node=begun["node"],
            index=begun["snapshot_index"],
            term=begun["snapshot_term"],
            members=tuple(backup.BackupMember(**member) for member in begun["members"]),
            saved_at_ms=begun["saved_at_ms"],
            bytes=begun["bytes"],
            sha256=begun["sha256"],
        )
        # Only this node has the snapshot open.
        node = Client([client.url], settings.NODE.command_token, say)
        path = f"/raft/snapshot/{begun['id']}?offset="
        with backup.BackupWriter(file, header) as writer:
            data = b" "
            while data and writer.written < header.bytes:
                data = b64decode(node.call("GET", f"{path}{writer.written}", patience_s=PATIENCE_S)["data"])
                writer.write(data)
            writer.finish()
        with suppress(CallFailed, OSError):  # close it on the node
            node.call("GET", f"{path}{header.bytes}", patience_s=0)
        self.stdout.write(f"{file}: cluster {header.cluster} at index {header.index}, {header.bytes} bytes, from {header.node}")

    # ---------------------------------------------------------------------- info

    def _info(self, options: dict[str, Any]) -> None:
        file: Path = options["file"]
        header = backup.check(file)
        saved_at = datetime.fromtimestamp(header.saved_at_ms / 1000, UTC)
        rows = [
            ["cluster", header.cluster],
            ["index", str(header.index)],
            ["term", str(header.term)],
            ["saved at", saved_at.isoformat(" ", "seconds")],
            ["saved by", header.node],
            *(["member", f"{one.id}  {one.url}{'  (learner)' if one.learner else ''}"] for one in header.members),
            ["bytes", str(header.bytes)],
            ["SHA-256", f"{header.sha256}  (correct)"],
        ]
        self.stdout.write(table(["FILE", str(file)], rows))

    # ------------------------------------------------------------------- restore

    def _restore(self, options: dict[str, Any]) -> None:
        config = settings.NODE
        members = [_member(text) for text in options["member"]]
        header, index = new_cluster.restore(options["file"], config, members, options["raise_index_by"])
        self.stdout.write(
            f"{config.data_dir} has the state of cluster {header.cluster} at index {header.index}\n"
            f"new cluster {config.cluster_id}: member {config.node_id}, begins at index {index}"
        )
        if len(members) < 2:
            self.stdout.write("start this node, then add the others with empty data directories (`manage.py member add`)")
        else:
            self.stdout.write("restore the same file on the other members, then start them")


def _member(text: str) -> Member:
    node_id, equals, url = text.partition("=")
    if not equals or not node_id or not url.startswith("http://"):
        raise ValueError(f"--member must be like node-2=http://10.0.0.2:8102, not {text!r}")
    return Member(node_id, url)
