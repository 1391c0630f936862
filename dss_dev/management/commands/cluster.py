"""`manage.py cluster`: a cluster on this machine, for trying things out. `make run` calls it."""

from __future__ import annotations

import os
import re
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from dss_api.find_cluster import CLUSTERS, LocalMember, remove_file, write_file
from dss_dev.local_cluster import PORTS_OF_ONE, PORTS_OF_THREE, LocalCluster, NotReady, ports_in_use
from dss_project import secret_files
from dss_project.first_user import PASSWORD_BYTES, USERNAME
from dss_project.management.commands.status import table

FOLLOW_S = 0.2
#: colours in a log line; they are removed
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


class Command(BaseCommand):
    help = "Start a cluster on this machine and follow its logs until Ctrl-C."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--nodes", type=int, default=3, help="number of nodes, 1 to 9: one on port 8201, several on the ports from 8101"
        )
        parser.add_argument("--directory", type=Path, default=CLUSTERS, help="where data, logs and secrets are kept")

    def handle(self, *args: Any, **options: Any) -> None:
        ports = _ports(options["nodes"])
        taken = ports_in_use(ports)
        if taken:
            sys.exit(
                f"Nothing was started: {', '.join(f'port {port}' for port in taken)} already in use on 127.0.0.1.\n"
                "If a cluster runs in another terminal, stop it there with Ctrl-C."
            )
        directory: Path = options["directory"].absolute()
        environment = secrets_of(directory)
        cluster = LocalCluster(directory / f"cluster-of-{len(ports)}", ports, environment)
        stopping = Stopping()
        self.stdout.write(f"Starting {len(ports)} node{'s' if len(ports) > 1 else ''} …")
        try:
            cluster.start()
            write_file(cluster.directory, [LocalMember(node.id, node.url, node.pid) for node in cluster.nodes])
            cluster.wait_ready()
            if not stopping.asked:
                self._introduce(cluster, environment["DSS_ADMIN_PASSWORD"])
                self._follow(cluster, stopping)
        except NotReady as error:
            self.stderr.write(f"{error}\n")
            sys.exit(1)
        except OSError:
            # The terminal was closed, or the process that read the pipe has ended.
            write_to_nowhere()
        finally:
            self._stop(cluster)
            remove_file(cluster.directory)
        if not stopping.asked:
            sys.exit(1)

    def _introduce(self, cluster: LocalCluster, password: str) -> None:
        leader = cluster.leader()
        rows = [[node.id, str(node.pid), "leader" if node is leader else "follower", node.url] for node in cluster.nodes]
        url = cluster.nodes[0].url
        self.stdout.write("\n" + table(["NODE", "PID", "ROLE", "API"], rows))
        self.stdout.write(f"\nAdmin:    {url}/admin/     {USERNAME} / {password}")
        self.stdout.write(f"API docs: {url}/api/docs")
        self.stdout.write(f"Metrics:  {url}/metrics")
        self.stdout.write(f"Data:     {shown(cluster.directory)}     Stop: Ctrl-C\n")
        self.stdout.flush()

    def _follow(self, cluster: LocalCluster, stopping: Stopping) -> None:
        """Print what the nodes log from now on, and report when one ends."""
        logs = [(node, node.log_path.open(errors="replace")) for node in cluster.nodes]
        for _, log in logs:
            log.seek(0, os.SEEK_END)
        running = {node.id for node in cluster.nodes}
        while not stopping.asked and running:
            for node, log in logs:
                for line in log:
                    self.stdout.write(f"{node.id} │ {_ESCAPES.sub('', line.rstrip())}")
                if node.id in running and not node.is_running:
                    running.discard(node.id)
                    code = node.process.returncode if node.process else None
                    self.stdout.write(
                        f"{node.id} │ has ended (exit code {code}). The cluster works while a majority of its nodes is running"
                    )
            self.stdout.flush()
            time.sleep(FOLLOW_S)

    def _stop(self, cluster: LocalCluster) -> None:
        try:
            self.stdout.write("\nStopping …")
            self.stdout.flush()
        except OSError:
            write_to_nowhere()
        stubborn = cluster.stop()
        for node_id in stubborn:
            self.stdout.write(f"{node_id} did not stop in time and was killed; everything that it answered is on its disk")
        if not stubborn:
            self.stdout.write("Stopped. The data are kept for the next start.")


class Stopping:
    """Records Ctrl-C or a signal, so that the nodes are stopped in order and not in the middle of a start."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def _ports(nodes: int) -> Sequence[int]:
    if nodes < 1 or nodes > 9:
        sys.exit(f"--nodes must be 1 to 9, not {nodes}")
    if nodes == 1:
        return PORTS_OF_ONE
    return range(PORTS_OF_THREE[0], PORTS_OF_THREE[0] + nodes)


def shown(directory: Path) -> Path:
    """Relative to the current directory, if that is shorter."""
    here = Path.cwd()
    return directory.relative_to(here) if directory.is_relative_to(here) else directory


def write_to_nowhere() -> None:
    """Discard all further output, so that writing cannot fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def secrets_of(directory: Path) -> dict[str, str]:
    """The secrets that the nodes of this machine share: from the environment, or from files created at the first start."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = {
        "DSS_CLUSTER_SECRET": ("cluster-secret", secrets.token_urlsafe()),
        "DSS_SECRET_KEY": ("secret-key", secrets.token_urlsafe(50)),
        "DSS_ADMIN_PASSWORD": ("admin-password", secrets.token_urlsafe(PASSWORD_BYTES)),
    }
    return {variable: os.environ.get(variable) or _kept(directory / name, secret) for variable, (name, secret) in new.items()}


def _kept(path: Path, new: str) -> str:
    """The secret in `path`; `new` is written there if the file does not exist."""
    secret_files.keep(path, new)
    return secret_files.read_or_make(path)
