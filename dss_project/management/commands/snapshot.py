"""`manage.py snapshot`: save the state of a running cluster to a file, look at the file, and start a new cluster from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError, CommandParser

from dss_admin.cluster_command import ClusterCommand
from dss_api.errors import ForOperator
from dss_cli import snapshots
from dss_cli.backup import BackupInvalid
from dss_cli.cluster import Cluster
from dss_cli.find_cluster import URL_HELP
from dss_cli.terminal import Terminal
from dss_project import new_cluster
from dss_raft.core.messages import Member


class Command(ClusterCommand):
    help = "Save the state of a cluster to a file, or start a new cluster from it."

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
        except (BackupInvalid, ForOperator, ValueError) as error:
            raise CommandError(str(error)) from None
        except OSError as error:
            raise CommandError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from None

    def _save(self, options: dict[str, Any]) -> None:
        async def work(cluster: Cluster, terminal: Terminal) -> None:
            await snapshots.save(cluster, terminal, options["file"], local=options["local"])

        self.carry_out(options["url"], work)

    def _info(self, options: dict[str, Any]) -> None:
        snapshots.info(self.terminal(), options["file"])

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
    if not equals or not node_id or not url.startswith(("http://", "https://")):
        raise ValueError(f"--member must be like node-2=http://10.0.0.2:8102, not {text!r}")
    return Member(node_id, url)
