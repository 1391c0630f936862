"""`manage.py cluster`: a cluster on this machine, for people to look at and to break. `make run` is this."""

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

from dss_dev.local_cluster import PORTS_OF_ONE, PORTS_OF_THREE, LocalCluster, NotReady, ports_in_use
from dss_project import secret_files
from dss_project.first_user import PASSWORD_BYTES, USERNAME
from dss_project.management.commands.status import table

FOLLOW_S = 0.2
#: Escape sequences that a log line may carry must not reach the terminal.
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


class Command(BaseCommand):
    help = "Start a cluster on this machine and follow its logs until Ctrl-C."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--nodes", type=int, default=3, help="3 (ports 8101 to 8103), 1 (port 8201), or another number from 8101"
        )
        parser.add_argument("--directory", type=Path, default=Path(".dss"), help="where data, logs and secrets are kept")

    def handle(self, *args: Any, **options: Any) -> None:
        ports = _ports(options["nodes"])
        taken = ports_in_use(ports)
        if taken:
            sys.exit(
                f"Nothing was started: {', '.join(f'port {port}' for port in taken)} already in use on 127.0.0.1.\n"
                "Perhaps a cluster runs in another terminal; stop it there with Ctrl-C."
            )
        directory: Path = options["directory"].absolute()
        environment = secrets_of(directory)
        cluster = LocalCluster(directory / f"cluster-of-{len(ports)}", ports, environment)
        stopping = _Stopping()
        self.stdout.write(f"Starting {len(ports)} node{'s' if len(ports) > 1 else ''} …")
        try:
            cluster.start()
            cluster.wait_ready()
            if not stopping.asked:
                self._introduce(cluster, environment["DSS_ADMIN_PASSWORD"])
                self._follow(cluster, stopping)
        except NotReady as error:
            self.stderr.write(f"{error}\n")
            sys.exit(1)
        except OSError:
            # Nobody reads any more: the terminal was closed, or a pipe's reader has gone.
            write_to_nowhere()
        finally:
            self._stop(cluster)
        if not stopping.asked:
            sys.exit(1)

    def _introduce(self, cluster: LocalCluster, password: str) -> None:
        leader = cluster.leader()
        rows = [
            [
                node.id,
                str(node.process.pid if node.process else ""),
                "leader" if node is leader else "follower",
                node.url,
                f"{node.url}/api/docs",
                f"{node.url}/admin/",
                f"{node.url}/metrics",
            ]
            for node in cluster.nodes
        ]
        self.stdout.write("\n" + table(["NODE", "PID", "ROLE", "API", "API DOCS", "ADMIN", "METRICS"], rows))
        self.stdout.write(f"\nLeader: {leader.id}     Admin login: {USERNAME} / {password}")
        self.stdout.write(f"Data and logs: {cluster.directory}     Stop: Ctrl-C\n")
        self.stdout.flush()

    def _follow(self, cluster: LocalCluster, stopping: _Stopping) -> None:
        """Print what the nodes log from now on, and say when one ends."""
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
                    self.stdout.write(f"{node.id} │ has ended (exit code {code}); the others go on if they are a majority")
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
            self.stdout.write(f"{node_id} did not stop in time and was killed; what it answered is on its disk")
        if not stubborn:
            self.stdout.write("Stopped. The data are kept; the next start finds them.")


class _Stopping:
    """Remembers that Ctrl-C or a signal came, so that the nodes are stopped in order and not in the middle of a start."""

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


def write_to_nowhere() -> None:
    """From now on nothing that is written can fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def secrets_of(directory: Path) -> dict[str, str]:
    """What the nodes of this machine share: from the environment, else from files made at the first start."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = {
        "DSS_CLUSTER_SECRET": ("cluster-secret", secrets.token_urlsafe()),
        "DSS_SECRET_KEY": ("secret-key", secrets.token_urlsafe(50)),
        "DSS_ADMIN_PASSWORD": ("admin-password", secrets.token_urlsafe(PASSWORD_BYTES)),
    }
    return {variable: os.environ.get(variable) or _kept(directory / name, secret) for variable, (name, secret) in new.items()}


def _kept(path: Path, new: str) -> str:
    """The secret in `path`; `new` is written there when there is none."""
    secret_files.keep(path, new)
    return secret_files.read_or_make(path)
