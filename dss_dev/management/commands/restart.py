"""`manage.py restart`: start one stopped node of the cluster of `make run` again. `make restart NODE=3` calls it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from dss_cli.find_cluster import CLUSTERS, LocalClusterFile, LocalMember, running_clusters
from dss_dev import local_tls, restart_requests
from dss_dev.local_cluster import HOST, PROBE_S, LocalNode
from dss_dev.local_members import find_place

POLL_S = 0.1
START_S = 60.0


class Command(BaseCommand):
    help = "Start a stopped node of the cluster on this machine again, with its data."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("node", help="its name or number: node-3 or 3")
        parser.add_argument("--directory", type=Path, default=CLUSTERS, help="where the cluster's data are kept")

    def handle(self, *args: Any, **options: Any) -> None:
        node_id = f"node-{options['node']}" if options["node"].isdigit() else options["node"]
        directory, cluster = _cluster_of(node_id, options["directory"].absolute())
        known = _described(cluster, node_id)
        if known is not None and _is_alive(known.pid):
            raise CommandError(f"{node_id} is running (process {known.pid})")
        restart_requests.request(directory, node_id)
        started, is_ready = self._wait(directory, node_id, known.pid if known is not None else 0)
        word = "is ready" if is_ready else "runs, and refuses calls until a majority of the nodes runs,"
        self.stdout.write(f"{node_id} {word} at {started.url} (process {started.pid})")

    def _wait(self, directory: Path, node_id: str, old_pid: int) -> tuple[LocalMember, bool]:
        """Wait until the node is ready; until it serves, if it cannot be ready, because the nodes that run here are no majority.

        Raises:
            CommandError: it has ended, or is not ready in time.
        """
        deadline = time.monotonic() + START_S
        started: LocalMember | None = None
        while time.monotonic() < deadline:
            cluster = running_clusters(directory.parent).get(directory)
            if cluster is None:
                break
            started = _described(cluster, node_id)
            if started is not None and started.pid != old_pid:
                if not _is_alive(started.pid):
                    raise CommandError(f"{node_id} has ended again; the terminal of `make run` shows why")
                node = _local(started, directory.parent)
                if node.is_ready():
                    return started, True
                running = sum(_is_alive(each.pid) for each in cluster.nodes)
                if 2 * running <= len(cluster.nodes) and node.status(PROBE_S) is not None:
                    return started, False
            time.sleep(POLL_S)
        restart_requests.withdraw(directory, node_id)
        raise CommandError(f"{node_id} is not ready after {START_S:.0f} s; the terminal of `make run` shows why")


def _cluster_of(node_id: str, clusters: Path) -> tuple[Path, LocalClusterFile]:
    """The running cluster to which the node belongs.

    Raises:
        CommandError: there is none, or several.
    """
    running = running_clusters(clusters)
    if not running:
        raise CommandError("No cluster runs here. `make run` starts one, with all its nodes.")
    found = [
        directory
        for directory, cluster in running.items()
        if _described(cluster, node_id) or _has_data(directory, cluster, node_id)
    ]
    if len(found) != 1:
        listed = ", ".join(str(directory) for directory in found or running)
        raise CommandError(f"{node_id} is {'in several clusters' if found else 'not a member with data here'}: {listed}")
    return found[0], running[found[0]]


def _has_data(directory: Path, cluster: LocalClusterFile, node_id: str) -> bool:
    """Whether the node is a member that `make join` has added, with its data on this disk."""
    members: list[dict[str, Any]] = next(
        (status["members"] for node in cluster.nodes if (status := _local(node, directory.parent).status(PROBE_S)) is not None),
        [],
    )
    return any(find_place(directory, member) is not None for member in members if member["id"] == node_id)


def _local(member: LocalMember, clusters: Path) -> LocalNode:
    tls = local_tls.settings_of(clusters / local_tls.DIRECTORY) if member.url.startswith("https:") else {}
    return LocalNode(member.id, int(member.url.rpartition(":")[2]), tls, Path(), HOST)


def _described(cluster: LocalClusterFile, node_id: str) -> LocalMember | None:
    return next((node for node in cluster.nodes if node.id == node_id), None)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
