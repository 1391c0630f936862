"""`manage.py join`: add one more node to the cluster that `make run` started. `make join` calls it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser

from dss_admin.cluster_command import ClusterCommand
from dss_cli.cluster import Cluster
from dss_cli.find_cluster import CLUSTERS, URL_HELP
from dss_cli.terminal import Terminal
from dss_client import DssError
from dss_dev import local_tls
from dss_dev.local_cluster import HOST, PORTS_OF_THREE, LocalCluster, LocalNode, NotReady, member_node, ports_in_use
from dss_dev.local_members import JOINED
from dss_dev.management.commands import cluster as cluster_command
from dss_dev.preloaded import pool_here

START_S = 60.0


class Command(cluster_command.Command, ClusterCommand):
    hint = ". Is the cluster running? Start one with `make run`."
    help = "Start one more node and add it to the cluster that runs on this machine. Follow its log until Ctrl-C."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--number", type=int, default=0, help="4 means node-4 on port 8104 (default: the next free number)")
        parser.add_argument("--url", action="append", default=[], help=URL_HELP)
        parser.add_argument("--directory", type=Path, default=CLUSTERS, help="where the cluster's data and secrets are kept")

    def handle(self, *args: Any, **options: Any) -> None:
        directory: Path = options["directory"].absolute()
        cluster, members = self.carry_out(options["url"], _members, directory)
        base = PORTS_OF_THREE[0] - 1
        number = options["number"] or _next_number(base)
        node_id, port = f"node-{number}", base + number
        if any(member["id"] == node_id and member["up"] for member in members):
            self.stdout.write(f"{node_id} is a member and runs already. `make run` starts all members that have data here.")
            return
        if taken := ports_in_use([port]):
            sys.exit(f"Nothing was started: port {taken[0]} is already in use on {HOST}.")
        joined = self._cluster_of_one(directory, node_id, port, members)
        stopping = cluster_command.Stopping()
        self.stdout.write(f"Starting {node_id} …")
        LocalNode.pool = pool = pool_here()
        try:
            joined.start()
            self._add(joined.nodes[0], cluster, members)
            joined.wait_ready(START_S)
            node = joined.nodes[0]
            data = cluster_command.shown(joined.directory)
            self.stdout.write(f"\n{node_id} at {node.url} belongs to the cluster. Data: {data}     Stop: Ctrl-C")
            self.stdout.write(f"To remove it from the cluster: manage.py member --url {cluster.urls[0]} remove {node_id}\n")
            self.stdout.flush()
            self._follow(joined, stopping)
        except NotReady as error:
            self.stderr.write(f"{error}\n")
            sys.exit(1)
        except OSError:
            cluster_command.write_to_nowhere()
        finally:
            self._stop(joined)
            pool.close()
        if not stopping.asked:
            sys.exit(1)

    def _cluster_of_one(self, directory: Path, node_id: str, port: int, members: list[dict[str, Any]]) -> LocalCluster:
        environment = cluster_command.secrets_of(directory) | {"DSS_JOIN": "true"}
        if any(member["url"].startswith("https:") for member in members):
            environment |= local_tls.settings_of(directory / local_tls.DIRECTORY)
        others = {member["id"]: member["url"] for member in members if member["id"] != node_id}
        joined = LocalCluster(directory / JOINED, [])
        joined.nodes = [member_node(node_id, port, others, joined.directory, environment)]
        return joined

    def _add(self, node: LocalNode, found: Cluster, members: list[dict[str, Any]]) -> None:
        """Add the node, unless it has been a member since an earlier start."""
        node.wait_alive(START_S)
        if node.id in [member["id"] for member in members]:
            return

        async def add() -> None:
            async with Cluster(found.urls, found.token, self.terminal().say, START_S) as cluster:
                await cluster.call("raft.add_member", id=node.id, url=node.url)

        try:
            asyncio.run(add())
        except DssError as error:
            raise NotReady(str(error)) from None


async def _members(cluster: Cluster, terminal: Terminal) -> tuple[Cluster, list[dict[str, Any]]]:
    return cluster, (await cluster.any().call("raft.status"))["members"]


def _next_number(base: int) -> int:
    """The first number from 4 on whose ports are free."""
    for number in range(len(PORTS_OF_THREE) + 1, 10):
        if not ports_in_use([base + number]):
            return number
    sys.exit("Ports 8104 to 8109 are all in use.")
