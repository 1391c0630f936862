"""`manage.py status`: the members of a cluster, the leader, and the progress of each node."""

from __future__ import annotations

from typing import Any

from dss_admin.cluster_command import ClusterCommand
from dss_cli.status import status


class Command(ClusterCommand):
    help = "Print the members of the cluster, the leader, and the progress of each node."
    hint = ". Is the cluster running? Start one with `make run`."

    def handle(self, *args: Any, **options: Any) -> None:
        self.carry_out(options["url"], status)
