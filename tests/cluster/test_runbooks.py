"""The runbooks are correct: their commands run as printed, on a cluster of real processes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dss_dev import upgrade
from dss_dev.local_cluster import HOST, ROOT, LocalCluster, LocalNode, free_ports, manage
from dss_dev.prepared_pages import prepare_pages
from dss_raft.versions import LATEST, MIN

pytestmark = pytest.mark.cluster

PRINTED_PORTS = ("8101", "8102", "8103")


class Machine:
    """A directory that looks like a checkout, in which the commands of a page are run. A `manage.py node` runs in the background."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "manage.py").symlink_to(ROOT / "manage.py")
        (directory / ".venv").symlink_to(sys.prefix)
        self.ports = dict(zip(PRINTED_PORTS, map(str, free_ports(3)), strict=True))
        self.nodes: list[LocalNode] = []
        self.environment = {**os.environ, "DSS_CLUSTER_SECRET": "test", "DSS_ADMIN_PASSWORD": "test"}

    def commands(self, page: str) -> list[str]:
        """The commands in a page's `sh` blocks, with the ports of this test."""
        text = (ROOT / "docs" / "how-to" / page).read_text()
        for printed, port in self.ports.items():
            text = text.replace(printed, port)
        blocks = re.findall(r"^( *)```sh\n(.*?)^\1```$", text, flags=re.MULTILINE | re.DOTALL)
        joined = "\n".join(block for _, block in blocks).replace("\\\n", " ")
        return [line.strip() for line in joined.splitlines() if line.strip()]

    def run(self, command: str) -> str:
        """Run a line. `NAME=value .venv/bin/python manage.py …` is forked, which saves half of the time."""
        assignments, python, rest = command.partition(".venv/bin/python manage.py ")
        if not python or "|" in command:
            return self._run_in_shell(command)
        settings = dict(word.split("=", 1) for word in shlex.split(assignments))
        arguments = shlex.split(rest)
        if arguments == ["node"]:
            self._start_node(settings)
            return ""
        run = manage(*arguments, environment={**self.environment, **settings}, folder=self.directory)
        assert run.returncode == 0, f"{command}\n{run.stdout}{run.stderr}"
        return run.stdout

    def _run_in_shell(self, command: str) -> str:
        run = subprocess.run(
            ["sh", "-c", command],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert run.returncode == 0, f"{command}\n{run.stdout}{run.stderr}"
        return run.stdout

    def _start_node(self, settings: dict[str, str]) -> None:
        log = self.directory / f"{settings['NODE_ID']}.log"
        environment = {**self.environment, **settings, "DSS_DATA_DIR": str(self.directory / settings["DSS_DATA_DIR"])}
        node = LocalNode(settings["NODE_ID"], int(settings["RPC_PORT"]), environment, log)
        node.start()
        self.nodes.append(node)
        node.wait_alive(60)
        if "DSS_JOIN" not in settings:
            LocalCluster.wait_ready(self, 60, [node])  # type: ignore[arg-type]

    def url(self, printed: str) -> str:
        return f"http://{HOST}:{self.ports[printed]}"

    def node(self, number: int) -> LocalNode:
        """A node to be called."""
        return LocalNode(f"node-{number}", int(self.ports[f"810{number}"]), {}, self.directory / f"node-{number}.log")

    def stop(self) -> None:
        for node in self.nodes:
            node.send_signal(signal.SIGTERM)
        for node in self.nodes:
            node.stop(60)
        self.nodes.clear()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.stop()


def old_cluster(machine: Machine) -> LocalCluster:
    """Three nodes in `data/`, with a lock and a value."""
    cluster = LocalCluster(machine.directory / "data", [int(port) for port in machine.ports.values()], machine.environment)
    prepare_pages(cluster)
    cluster.start()
    cluster.wait_ready()
    assert cluster.nodes[0].call("POST", "/lock/acquire", {"key": "a", "client": "alice", "ttl_ms": 0}).status == 200
    assert cluster.nodes[1].call("POST", "/cache/put", {"key": "a", "value": 1}).status == 200
    # The first node may be the one of three that does not have the value yet, and it is the only one that survives.
    assert cluster.nodes[0].call("GET", "/cache/get?key=a").json["value"] == 1
    return cluster


def check_new_cluster(machine: Machine) -> None:
    first, second = machine.node(1), machine.node(2)
    upgrade.wait_until(second.is_ready, "node-2 is ready")
    for node in (first, second):
        assert node.call("GET", "/lock/status?key=a").json["holders"][0]["client"] == "alice"
        assert node.call("GET", "/cache/get?key=a").json["value"] == 1
    status = first.status()
    assert status is not None
    assert [member["id"] for member in status["members"]] == ["node-1", "node-2"]


def test_back_up_and_restore(machine: Machine) -> None:
    save, info, *restore = machine.commands("backup-and-restore.md")
    cluster = old_cluster(machine)
    try:
        assert "cluster dss at index" in machine.run(save)
        assert "(correct)" in machine.run(info)
    finally:
        cluster.stop()
    assert [shlex.split(command)[-1] for command in restore] == [
        "--new-cluster", "node", "node", machine.url("8102"),
    ]  # fmt: skip
    for command in restore:
        machine.run(command)
    check_new_cluster(machine)


def test_recover_from_a_lost_majority(machine: Machine) -> None:
    cluster = old_cluster(machine)
    for node in cluster.nodes:
        node.kill()
    for node in cluster.nodes[1:]:
        shutil.rmtree(node.environment["DSS_DATA_DIR"])
    recover, *others, save = machine.commands("lost-majority.md")
    assert "Lost: everything" in machine.run(recover)
    for command in others:
        machine.run(command)
    check_new_cluster(machine)
    machine.run(save)


def test_upgrade(machine: Machine) -> None:
    """From the older release to this one, on the same ports and data."""
    old, _ = upgrade.older_release(machine.directory / "older")
    ports = [int(port) for port in machine.ports.values()]
    cluster = LocalCluster(machine.directory / "data", ports, machine.environment, checkout=old)
    look, save, *commands, version = machine.commands("upgrade.md")
    starts, held = [each for each in commands if each.endswith("manage.py node")], f"DSS_CLUSTER_VERSION_MAX={LATEST - 1}"
    assert [held in start for start in starts] == [True] * 3 + [False] * 3
    assert starts == commands
    try:
        cluster.start()
        cluster.wait_ready()
        assert cluster.nodes[0].call("POST", "/lock/acquire", {"key": "a", "client": "alice", "ttl_ms": 0}).status == 200
        upgrade.wait_until(lambda: machine.run(version).strip() == str(LATEST - 1), "the older release has its latest version")
        seen = json.loads(machine.run(look))
        assert (seen["cluster_version"], seen["members"][0]["supported_versions"]) == (
            LATEST - 1,
            {"min": MIN, "max": LATEST - 1},
        )
        machine.run(save)
        for node, start in zip(cluster.nodes, starts, strict=False):
            assert node.stop() == 0
            machine.run(start)
        assert machine.run(version).strip() == str(LATEST - 1)
        for running, start in zip(tuple(machine.nodes), starts[3:], strict=True):
            assert running.stop(60) == 0
            machine.nodes.remove(running)
            machine.run(start)
        upgrade.wait_until(lambda: machine.run(version).strip() == str(LATEST), "the version rises")
        assert machine.node(2).call("GET", "/lock/status?key=a").json["holders"][0]["client"] == "alice"
    finally:
        cluster.stop()
