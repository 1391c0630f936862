"""`manage.py recover`: makes the last member of a lost majority the only member of a new cluster."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from dss_api.errors import ForOperator
from dss_project.new_cluster import Recovery


class Command(BaseCommand):
    help = "Make the survivor of a lost majority a new cluster. The node must not run. This is the last resort."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--force-new-cluster",
            action="store_true",
            required=True,
            help="this node becomes the only member of a new cluster, DSS_CLUSTER_ID, with what its disk has",
        )
        parser.add_argument("--yes", metavar="NAME", help="the name of the lost cluster, instead of a question at the terminal")
        parser.add_argument(
            "--raise-index-by", type=int, metavar="N", help="instead of a number computed from the age of the log"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            recovery = Recovery(settings.NODE)
            try:
                self._explain(recovery)
                self._confirm(recovery.survivor.cluster_id, options["yes"])
                recovery.migrate()
                index, previous = recovery.carry_out(options["raise_index_by"])
            finally:
                recovery.close()
        except (ForOperator, ValueError) as error:
            raise CommandError(str(error)) from None
        except OSError as error:
            raise CommandError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from None
        config = settings.NODE
        self.stdout.write(f"new cluster {config.cluster_id}: member {config.node_id}, begins at index {index}")
        self.stdout.write(f"the previous log is in {previous}: delete it when it is no longer needed")
        self.stdout.write("start this node, then add the others with empty data directories (`manage.py member add`)")

    def _explain(self, recovery: Recovery) -> None:
        survivor, replica, config = recovery.survivor, recovery.replica, settings.NODE
        at = datetime.fromtimestamp(replica.at_ms / 1000, UTC).isoformat(" ", "seconds")
        self.stdout.write(
            f"cluster {survivor.cluster_id}, {config.node_id}, {config.data_dir}\n"
            f"  last index {survivor.last_index}, term {survivor.last_term}; applied up to index {replica.applied_index}\n"
            f"  last change at {at}\n"
            f"Kept: everything up to index {survivor.last_index}, with entries that were not committed.\n"
            f"Lost: everything that the other members answered after index {survivor.last_index}. This node cannot know how much that is.\n"
            "The other members must never run again with their present data: they would go on as the old cluster."
        )

    def _confirm(self, cluster_id: str, given: str | None) -> None:
        """Raises:
        ValueError: the name is not the cluster's.
        """
        if given is None:
            if not sys.stdin.isatty():
                raise ValueError(f"confirm with --yes {cluster_id}, the name of the lost cluster")
            given = input(f"Type the name of the lost cluster ({cluster_id}) to go on: ").strip()
        if given != cluster_id:
            raise ValueError(f"{given!r} is not the name of the lost cluster; nothing was changed")
