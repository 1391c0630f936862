"""`manage.py join`: one more node for the cluster that `make run` started. `make join` is this."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser

from dss_dev.local_cluster import HOST, PORTS_OF_THREE, LocalCluster, LocalNode, NotReady, ports_in_use
from dss_dev.management.commands import cluster as cluster_command
from dss_project.management.commands.member import call
from dss_project.management.commands.status import ask

START_S = 60.0


class Command(cluster_command.Command):
    help = "Start one more node and add it to the cluster that runs on this machine; follow its log until Ctrl-C."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--number", type=int, default=0, help="4 is node-4 on port 8104; the next free one by default")
        parser.add_argument("--url", default=f"http://{HOST}:{PORTS_OF_THREE[0]}", help="a node of the running cluster")
        parser.add_argument("--directory", type=Path, default=Path(".dss"), help="where the cluster's data and secrets are kept")

    def handle(self, *args: Any, **options: Any) -> None:
        url: str = options["url"]
        try:
            members = ask(url)["members"]
        except (OSError, ValueError) as error:
            sys.exit(f"No cluster answers at {url}: {error}. Start it with `make run`.")
        base = PORTS_OF_THREE[0] - 1
        number = options["number"] or _next_number(base)
        node_id, port = f"node-{number}", base + number
        if taken := ports_in_use([port]):
            sys.exit(f"Nothing was started: port {taken[0]} is already in use on {HOST}.")
        joined = self._cluster_of_one(options["directory"].absolute(), node_id, port, members)
        stopping = cluster_command._Stopping()
        self.stdout.write(f"Starting {node_id} …")
        try:
            joined.start()
            self._add(joined.nodes[0], url, members)
            joined.wait_ready(START_S)
            node = joined.nodes[0]
            self.stdout.write(
                f"\n{node_id} at {node.url} belongs to the cluster. Data and logs: {joined.directory}     Stop: Ctrl-C"
            )
            self.stdout.write(f"To take it out for good: manage.py member --url {url} remove {node_id}\n")
            self.stdout.flush()
            self._follow(joined, stopping)
        except (NotReady, ValueError) as error:
            self.stderr.write(f"{error}\n")
            sys.exit(1)
        except OSError:
            cluster_command.write_to_nowhere()
        finally:
            self._stop(joined)
        if not stopping.asked:
            sys.exit(1)

    def _cluster_of_one(self, directory: Path, node_id: str, port: int, members: list[dict[str, Any]]) -> LocalCluster:
        environment = cluster_command.secrets_of(directory)
        joined = LocalCluster(directory / "joined", [port], environment)
        node = joined.nodes[0]
        node.id = node_id
        node.log_path = joined.directory / "logs" / f"{node_id}.log"
        others = [member for member in members if member["id"] != node_id]
        node.environment |= {
            "NODE_ID": node_id,
            "PEERS": ",".join(f"{member['url']}/{member['id']}" for member in others),
            "DSS_DATA_DIR": str(joined.directory / node_id),
            "DSS_JOIN": "true",
        }
        return joined

    def _add(self, node: LocalNode, url: str, members: list[dict[str, Any]]) -> None:
        """Add the node unless it is a member since an earlier start."""
        node.wait_alive(START_S)
        if node.id in [member["id"] for member in members]:
            return
        try:
            call(url, "POST", "/raft/members", {"id": node.id, "url": node.url})
        except OSError as error:
            raise NotReady(f"{url} does not answer any more: {error}") from None


def _next_number(base: int) -> int:
    """The first number from 4 on whose ports are free."""
    for number in range(len(PORTS_OF_THREE) + 1, 10):
        if not ports_in_use([base + number]):
            return number
    sys.exit("Ports 8104 to 8109 are all in use.")
