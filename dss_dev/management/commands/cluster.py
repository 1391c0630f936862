"""`manage.py cluster`: a cluster on this machine, for trying things out. `make run` calls it."""

from __future__ import annotations

import os
import re
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from django.core.management.base import BaseCommand, CommandParser

from dss_cli.find_cluster import CLUSTERS, LocalMember, remove_file, write_file
from dss_cli.terminal import plain_table
from dss_dev import local_tls
from dss_dev.lab.desk import Desk
from dss_dev.lab.lab import ABSENCE_S, Lab
from dss_dev.lab.relays import NODES_MAX, Relays, listen
from dss_dev.lab.server import LabServer
from dss_dev.local_cluster import (
    POLL_S,
    PORTS_OF_ONE,
    PORTS_OF_THREE,
    PROBE_S,
    LocalCluster,
    LocalNode,
    NotReady,
    member_node,
    ports_in_use,
)
from dss_dev.local_members import LocalMembers, find_members, find_place
from dss_dev.preloaded import pool_here
from dss_dev.restart_requests import take_requests
from dss_project import secret_files
from dss_project.first_user import PASSWORD_BYTES, USERNAME

FOLLOW_S = 0.2
#: how long nodes may take to be ready
START_S = 60.0
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
        parser.add_argument("--tls", action="store_true", help="speak HTTPS, with certificates that are made for it")
        parser.add_argument("--port", type=int, default=0, help="of the first node of a new cluster, in place of 8201 or 8101")
        parser.add_argument("--no-lab", action="store_true", help="without the lab, and with direct links between the nodes")
        parser.add_argument(
            "--lab-absence",
            type=float,
            default=ABSENCE_S,
            metavar="SECONDS",
            help="paused nodes are resumed when no browser has had the lab open for this time (default: %(default)s)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        ports = _ports(options["nodes"], options["port"])
        directory: Path = options["directory"].absolute()
        environment = secrets_of(directory)
        name = f"cluster-of-{len(ports)}"
        if options["tls"]:
            # A cluster of its own: the members' addresses are others.
            name += "-tls"
            environment |= local_tls.make_files(directory / local_tls.DIRECTORY)
        cluster = LocalCluster(directory / name, ports, environment)
        members = find_members(cluster.directory)
        if members is not None:
            cluster.nodes = [
                member_node(place.id, place.port, members.urls, place.directory, environment) for place in members.places
            ]
        elsewhere = _without_those_that_run(cluster, members)
        stopping = Stopping()
        #: a browser has entered the lab, so there is a new link
        self._link_used = threading.Event()
        desk = Desk(cluster.nodes, lambda node: self._tell_started(cluster, node))
        lab = None if options["no_lab"] else self._make_lab(cluster, ports, desk, options["lab_absence"])
        count = len(cluster.nodes)
        self.stdout.write(f"Starting {count} node{'s' if count > 1 else ''} …")
        LocalNode.pool = pool = pool_here()
        try:
            if lab is not None:
                lab.start()
            cluster.start()
            describe(cluster)
            self._wait(cluster, stopping, members is None or members.have_quorum)
            if not stopping.asked:
                self._introduce(cluster, environment["DSS_ADMIN_PASSWORD"], lab)
                self._say_who_is_missing(members, elsewhere)
                self._follow(cluster, stopping, partial(self._serve_requests, cluster, environment, desk, lab), survives=True)
        except NotReady as error:
            self.stderr.write(f"{error}\n")
            sys.exit(1)
        except OSError:
            # The terminal was closed, or the process that read the pipe has ended.
            write_to_nowhere()
        finally:
            self._stop(cluster)
            if lab is not None:
                lab.stop()
            pool.close()
            remove_file(cluster.directory)
        if not stopping.asked:
            sys.exit(1)

    def _wait(self, cluster: LocalCluster, stopping: Stopping, may_be_ready: bool) -> None:
        """Wait until each node is ready or has ended. Report those that have.

        Args:
            may_be_ready: whether a majority of the voters was started; otherwise nodes only have to serve.

        Raises:
            NotReady: no node is ready.
        """
        deadline = time.monotonic() + START_S
        waiting = list(cluster.nodes)
        ready = 0
        while waiting and not stopping.asked and time.monotonic() < deadline:
            for node in list(waiting):
                if node.is_ready() if may_be_ready else node.status(PROBE_S) is not None:
                    ready += 1
                    waiting.remove(node)
                elif not node.is_running:
                    self.stderr.write(f"{node.id} has ended:\n{node.log_tail()}\n")
                    waiting.remove(node)
            time.sleep(POLL_S)
        if not ready and not stopping.asked:
            raise NotReady("\n".join(f"{node.id} is not ready after {START_S:.0f} s:\n{node.log_tail()}" for node in waiting))
        if not waiting and may_be_ready and not stopping.asked:
            cluster.wait_for_version(deadline)
        for node in waiting:
            if not stopping.asked:
                self.stderr.write(f"{node.id} is not ready yet; it is {shown(node.log_path)} that says why")
        if not may_be_ready:
            self.stdout.write("A majority of the voters is missing: the cluster refuses calls until enough of them are started.")

    def _say_who_is_missing(self, members: LocalMembers | None, elsewhere: list[str]) -> None:
        if members is None:
            return
        for node_id in elsewhere:
            self.stdout.write(f"{node_id} runs in another terminal ({members.urls[node_id]}).")
        for node_id in members.missing:
            self.stdout.write(f"{node_id} ({members.urls[node_id]}) is a member, but has no data here. It was not started.")
        for node_id, data in members.removed.items():
            self.stdout.write(f"{node_id} was removed from the cluster. It was not started; its data are in {shown(data)}.")
        self.stdout.flush()

    def _make_lab(self, cluster: LocalCluster, ports: Sequence[int], desk: Desk, absence_s: float) -> LabServer | None:
        """The lab, which listens one port below the nodes; None, with a reason: there is none. Nodes link directly then."""
        if len(ports) < 3 or len([node for node in cluster.nodes if ports[0] <= node.port < ports[0] + NODES_MAX]) < 3:
            return None
        try:
            listener = listen(ports[0] - 1)
        except OSError as error:
            self.stdout.write(f"There is no lab: {error.strerror}.")
            return None
        try:
            relays = Relays(ports[0], cluster.nodes)
        except OSError as error:
            listener.close()
            self.stdout.write(f"There is no lab: {error.strerror}.")
            return None
        server = LabServer(Lab(cluster.nodes, desk, relays, absence_s), listener, self._link_used.set)
        for node in cluster.nodes:
            node.environment["DSS_LAB_URL"] = server.url
        return server

    def _say_next_link(self, lab: LabServer | None) -> None:
        """In the main thread: a terminal that is stopped must not stop the loop of the lab."""
        if lab is not None and self._link_used.is_set():
            self._link_used.clear()
            self.stdout.write(f"The lab is open in a browser. For another one: {lab.link}")
            self.stdout.flush()

    def _tell_started(self, cluster: LocalCluster, node: LocalNode) -> None:
        self.stdout.write(f"{node.id} │ is started again")
        describe(cluster)

    def _serve_requests(self, cluster: LocalCluster, environment: Mapping[str, str], desk: Desk, lab: LabServer | None) -> None:
        """Start the nodes that `manage.py restart` asks for, and do what the lab asks for."""
        self._say_next_link(lab)
        for node_id in take_requests(cluster.directory):
            node = next((node for node in cluster.nodes if node.id == node_id), None)
            node = node or _joined_node(cluster, node_id, environment)
            if node is None or node.is_running:
                continue
            node.start()
            self._tell_started(cluster, node)
        desk.carry_out(FOLLOW_S)

    def _introduce(self, cluster: LocalCluster, password: str, lab: LabServer | None) -> None:
        rows = [[node.id, str(node.pid), _role(node), node.url] for node in cluster.nodes]
        url = cluster.nodes[0].url
        self.stdout.write("\n" + plain_table(["NODE", "PID", "ROLE", "API"], rows))
        self.stdout.write(f"\nCluster:  {url}/")
        if lab is not None:
            self.stdout.write(f"Lab:      {lab.link}")
        self.stdout.write(f"Admin:    {url}/admin/     {USERNAME} / {password}")
        self.stdout.write(f"API docs: {url}/api/docs")
        self.stdout.write(f"Metrics:  {url}/metrics")
        self.stdout.write(f"Data:     {shown(cluster.directory)}     Stop: Ctrl-C\n")
        self.stdout.flush()

    def _follow(
        self,
        cluster: LocalCluster,
        stopping: Stopping,
        each_time: Callable[[], None] = lambda: time.sleep(FOLLOW_S),
        survives: bool = False,
    ) -> None:
        """Print what the nodes log from now on, and report when one ends.

        Args:
            each_time: waits for a moment, and may start and end nodes.
            survives: go on when no node runs: one may be started again.
        """
        logs: dict[str, TextIO] = {}
        running = {node.id for node in cluster.nodes if node.is_running}
        while not stopping.asked and (running or survives):
            each_time()
            for node in cluster.nodes:
                if node.id not in logs:
                    logs[node.id] = node.log_path.open(errors="replace")
                    logs[node.id].seek(0, os.SEEK_END)
                for line in logs[node.id]:
                    self.stdout.write(f"{node.id} │ {_ESCAPES.sub('', line.rstrip())}")
                if node.is_running:
                    running.add(node.id)
                elif node.id in running:
                    running.discard(node.id)
                    code = node.process.returncode if node.process else None
                    self.stdout.write(
                        f"{node.id} │ has ended (exit code {code}). {_consequence(node.id, len(running), survives)}"
                    )
            self.stdout.flush()

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


def describe(cluster: LocalCluster) -> None:
    """Write the file by which commands find the cluster."""
    write_file(cluster.directory, [LocalMember(node.id, node.url, node.pid) for node in cluster.nodes])


def _without_those_that_run(cluster: LocalCluster, members: LocalMembers | None) -> list[str]:
    """Leave out the nodes that `make join` runs in another terminal. Returns their ids. Exits if other ports are in use."""
    joined = {place.id for place in members.places if place.has_joined} if members is not None else set()
    elsewhere = [node for node in cluster.nodes if node.id in joined and node.status(PROBE_S) is not None]
    cluster.nodes = [node for node in cluster.nodes if node not in elsewhere]
    if taken := ports_in_use([node.port for node in cluster.nodes]):
        sys.exit(
            f"Nothing was started: {', '.join(f'port {port}' for port in taken)} already in use on 127.0.0.1.\n"
            "If a cluster runs in another terminal, stop it there with Ctrl-C."
        )
    if not cluster.nodes:
        sys.exit("Nothing was started: no member of the cluster has data here.")
    return [node.id for node in elsewhere]


def _joined_node(cluster: LocalCluster, node_id: str, environment: Mapping[str, str]) -> LocalNode | None:
    """The node of a member that `make join` has added since the start, if its data are here."""
    status = next(filter(None, (node.status(PROBE_S) for node in cluster.nodes)), None)
    members = status["members"] if status is not None else []
    place = next((find_place(cluster.directory, member) for member in members if member["id"] == node_id), None)
    if place is None:
        return None
    urls = {member["id"]: member["url"] for member in members}
    node = member_node(node_id, place.port, urls, place.directory, environment)
    cluster.nodes.append(node)
    return node


def _consequence(node_id: str, running: int, survives: bool) -> str:
    works = "The cluster works while a majority of its nodes is running" if running else "No node is running"
    return f"{works}. `make restart NODE={node_id.removeprefix('node-')}` starts it again" if survives else works


def _role(node: LocalNode) -> str:
    if not node.is_running:
        return "ended"
    status = node.status(PROBE_S)
    if status is None or not status["leader_id"]:
        return "no leader"
    return str(status["state"]["name"]).lower()


def _ports(nodes: int, first: int) -> Sequence[int]:
    if nodes < 1 or nodes > 9:
        sys.exit(f"--nodes must be 1 to 9, not {nodes}")
    first = first or (PORTS_OF_ONE if nodes == 1 else PORTS_OF_THREE)[0]
    return range(first, first + nodes)


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
