"""Upgrades three nodes under load from an older release to this one, one at a time, then back, and forward again (`make upgrade`).

The older release is the commit in `dss_dev/kept_release`, checked out to another directory. Without that file, it is a copy of this
checkout that supports one cluster version less. Its nodes use the Python and the dependencies of this checkout.

Every write that was answered is checked at the end: each lock has its holder and its fencing token, each message is there, each key
has the last value that was answered, or one that was sent after it without an answer.
"""

from __future__ import annotations

import argparse
import compileall
import http.client
import itertools
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from dss_dev.checkouts import ROOT, Checkout, checkout_at
from dss_dev.local_cluster import POLL_S, LocalCluster, LocalNode, Reply, free_ports
from dss_raft.versions import LATEST, MIN, Supported

KEPT_RELEASE = Path(__file__).with_name("kept_release")
#: What a node does not need to run. Bytecode is copied and stays valid, because files keep their times. `*.pyc.*` is bytecode that another
#: process is still writing.
NOT_COPIED = (".*", "*.pyc.*", "tests", "docs", "benchmarks", "build", "dist", "report")
HELD = "DSS_CLUSTER_VERSION_MAX"
#: Every second, so that the states are compared soon after the version has risen: `HashState` is a command of the newer release.
ENVIRONMENT = {"DSS_CLUSTER_SECRET": "upgrade", "DSS_ADMIN_PASSWORD": "upgrade", "DSS_STATE_HASH_INTERVAL_S": "1"}
PATIENCE_S = 60.0
#: answered writes between two steps
WRITES_PER_STEP = 30
#: Pause of each client between two calls, so that the nodes and this process share the machine.
THINK_S = 0.05
KEYS = 20
TOPIC = "upgrade"
CONSUME = {"topic": TOPIC, "group": "check", "timeout_ms": 0, "max_messages": 100}


class Failed(Exception):
    """The upgrade did not go as expected. The text says what was expected."""


def older_release(directory: Path) -> tuple[Checkout, str]:
    """A checkout of the older release in `directory`, and its name."""
    commit = KEPT_RELEASE.read_text().strip() if KEPT_RELEASE.exists() else ""
    if commit:
        packed = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
        with tarfile.open(fileobj=BytesIO(packed)) as archive:
            archive.extractall(directory, filter="data")
    else:
        shutil.copytree(ROOT, directory, ignore=shutil.ignore_patterns(*NOT_COPIED), dirs_exist_ok=True)
        versions = directory / "raft" / "dss_raft" / "versions.py"
        text, count = re.subn(r"^LATEST: Final = \d+$", f"LATEST: Final = {LATEST - 1}", versions.read_text(), flags=re.MULTILINE)
        if count != 1:
            raise Failed(f"{versions} has no line with LATEST")
        versions.write_text(text)
    # Otherwise each of its nodes compiles it, at least the first three at the same time.
    compileall.compile_dir(directory, quiet=2)
    return checkout_at(directory, Path(sys.executable)), commit or f"this one with LATEST = {LATEST - 1}"


# ------------------------------------------------------------------ the load


@dataclass
class Load:
    """Clients that write while the nodes are restarted, to any node but the one that is restarted now."""

    nodes: Sequence[LocalNode]
    #: out of rotation, as behind a load balancer
    restarting: LocalNode | None = None
    answered: int = 0
    unanswered: int = 0
    #: the longest time without an answered write
    gap_s: float = 0.0
    #: key of a lock -> fencing token
    locks: dict[str, int] = field(default_factory=dict)
    messages: set[int] = field(default_factory=set)
    #: key -> the value that was answered last, and those that were sent after it
    values: dict[str, tuple[int, set[int]]] = field(default_factory=dict)
    #: of each call
    headers: dict[str, str] = field(default_factory=dict)
    #: answers that an upgrade must not cause
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        self._stopping = threading.Event()
        self._guard = threading.Lock()
        self._last_s = time.monotonic()
        clients = (self._lock, self._publish, self._put)
        self._threads = [threading.Thread(target=self._run, args=(client,), daemon=True) for client in clients]

    def start(self) -> None:
        self._last_s = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def take_gap_s(self) -> float:
        """The longest time without an answered write since the last call."""
        with self._guard:
            gap_s, self.gap_s = max(self.gap_s, time.monotonic() - self._last_s), 0.0
        return gap_s

    def wait_for_writes(self, count: int) -> None:
        """Wait until so many more writes were answered."""
        wanted = self.answered + count
        wait_until(lambda: self.answered >= wanted, f"{count} more writes are answered")

    def _run(self, client: Callable[[int], bool]) -> None:
        while not self._stopping.is_set():
            is_answered = client(next(self._numbers))
            with self._guard:
                if is_answered:
                    now_s = time.monotonic()
                    self.gap_s, self._last_s = max(self.gap_s, now_s - self._last_s), now_s
                    self.answered += 1
                else:
                    self.unanswered += 1
            time.sleep(THINK_S)

    def _post(self, path: str, body: dict[str, Any]) -> Reply | None:
        """The answer of any node in rotation; None if the outcome is not known."""
        node = random.choice([node for node in self.nodes if node is not self.restarting])
        try:
            reply = node.call("POST", path, body, timeout_s=10.0, headers=self.headers)
        except (OSError, http.client.HTTPException):
            return None
        if reply.status == 200:
            return reply
        if reply.status not in (429, 503):
            self.faults.append(f"{path} on {node.id}: {reply.status} {reply.body.decode()[:200]}")
        return None

    def _lock(self, number: int) -> bool:
        reply = self._post("/lock/acquire", {"key": f"upgrade/{number}", "client": "upgrade", "ttl_ms": 0})
        if reply is not None:
            self.locks[f"upgrade/{number}"] = reply.json["fencing_token"]
        return reply is not None

    def _publish(self, number: int) -> bool:
        reply = self._post("/queue/publish", {"topic": TOPIC, "value": number})
        if reply is not None:
            self.messages.add(number)
        return reply is not None

    def _put(self, number: int) -> bool:
        key = f"upgrade/{number % KEYS}"
        known, sent = self.values.get(key, (0, set()))
        reply = self._post("/cache/put", {"key": key, "value": number})
        self.values[key] = (known, sent | {number}) if reply is None else (number, set())
        return reply is not None

    # ---- at the end

    def check(self) -> None:
        """Raises:
        Failed: an answered write is not there.
        """
        node = self.nodes[0]
        lost = [f"lock {key}" for key, token in self.locks.items() if self._token(node, key) != token]
        missing = self.messages - self._consumed(node)
        lost += [f"message {number}" for number in sorted(missing)]
        for key, (known, sent) in self.values.items():
            value = node.call("GET", f"/cache/get?key={key}", headers=self.headers).json["value"] or 0
            if value not in {known, *sent}:
                lost.append(f"{key}: {value} instead of {known}")
        if lost or self.faults:
            raise Failed("\n".join([f"{len(lost)} answered writes are not there: {', '.join(lost[:10])}", *self.faults[:10]]))

    def _token(self, node: LocalNode, key: str) -> int:
        holders = node.call("GET", f"/lock/status?key={key}", headers=self.headers).json["holders"]
        return int(holders[0]["fencing_token"]) if holders else 0

    def _consumed(self, node: LocalNode) -> set[int]:
        found: set[int] = set()
        while True:
            messages = node.call("POST", "/queue/consume", CONSUME, headers=self.headers).json["messages"]
            if not messages:
                return found
            found |= {message["value"] for message in messages}
            ids = [message["msg_id"] for message in messages]
            node.call("POST", "/queue/ack", {"topic": TOPIC, "group": "check", "msg_ids": ids}, headers=self.headers)


# ---------------------------------------------------------------- the upgrade


class Upgrade:
    """Three nodes, and the releases that they are started with.

    Args:
        say: gets a line of progress for each step.
    """

    def __init__(self, directory: Path, old: Checkout, say: Callable[[str], None]) -> None:
        self.old = old
        self.new = checkout_at(ROOT, Path(sys.executable))
        self.cluster = LocalCluster(directory, free_ports(3), ENVIRONMENT, checkout=old)
        self.load = Load(self.cluster.nodes)
        self.rows: list[tuple[str, ...]] = []
        self._say = say
        #: the cluster version of the older release
        self.old_version = 0

    def start(self) -> None:
        """Form a cluster of the older release."""
        self.cluster.start()
        self.cluster.wait_ready(PATIENCE_S)
        # Its latest version: it is in force when all members are linked, a moment after they are ready.
        self.old_version = self._status(self.cluster.nodes[0])["supported_versions"]["max"]
        self.require_version(self.old_version)
        self.cluster.nodes[0].call("POST", "/queue/consume", CONSUME)  # the group gets everything that is published from now on
        self.load.start()
        self.load.wait_for_writes(WRITES_PER_STEP)
        self._say(f"three nodes of the older release, cluster version {self.old_version}")

    def roll(self, what: str, checkout: Checkout, nodes: Sequence[LocalNode], held: bool) -> None:
        """Restart the nodes with this release, one at a time, while the clients continue."""
        for node in nodes:
            self.load.take_gap_s()
            before, began_s = self.load.answered, time.monotonic()
            self.load.restarting = node
            if node.stop() != 0:
                raise Failed(f"{node.id} did not stop cleanly:\n{node.log_tail()}")
            self._use(node, checkout, held)
            node.start()
            self.cluster.wait_ready(PATIENCE_S, [node])
            self.load.restarting = None
            seconds = time.monotonic() - began_s
            self.load.wait_for_writes(WRITES_PER_STEP)
            row = (what, node.id, f"{seconds:.1f}", str(self.load.answered - before), f"{self.load.take_gap_s():.2f}")
            self.rows.append(row)
            versions = ", ".join(map(str, self._versions()))
            self._say(f"{what}: {node.id} is ready after {row[2]} s; {row[3]} writes answered; versions {versions}")

    def require_version(self, version: int) -> None:
        """Wait until all nodes have applied this version."""
        wait_until(lambda: set(self._versions()) == {version}, f"all nodes have version {version}, not {self._versions()}")

    def require_old_version(self) -> None:
        """Check that the version has not risen, so that the nodes can go back."""
        if set(self._versions()) != {self.old_version}:
            raise Failed(f"the version has risen: {self._versions()}")

    def require_newer_commands(self) -> None:
        """Check that a command of the newer release works: each node opens a request session."""
        wait_until(
            lambda: all(node.call("POST", "/request/session", {}).status == 200 for node in self.cluster.nodes),
            "request sessions are opened",
        )
        self._say("the newer command works on all nodes")

    def require_refusal(self, what: str, node: LocalNode, checkout: Checkout, held: bool, line: str) -> None:
        """Check that a node that goes back ends with this line. Then start it with this release again."""
        self._use(node, checkout, held)
        self.load.restarting = node
        node.stop()
        size = node.log_path.stat().st_size
        node.start()
        wait_until(lambda: not node.is_running, f"{node.id} ends")
        log = node.log_path.read_bytes()[size:].decode()
        code = node.process.returncode if node.process is not None else 0
        if code == 0 or line not in log or "Traceback" in log:
            raise Failed(f"{node.id} ended with {code}, and not with {line!r}:\n{log}")
        self._say(f"{what}: {node.id} ended with exit code {code}: {line}")
        self._use(node, self.new, held=False)
        node.start()
        self.cluster.wait_ready(PATIENCE_S, [node])
        self.load.restarting = None

    def _use(self, node: LocalNode, checkout: Checkout, held: bool) -> None:
        node.checkout = checkout
        node.environment.pop(HELD, None)
        if held:
            node.environment[HELD] = str(self.old_version)

    def _versions(self) -> list[int]:
        return [self._status(node)["cluster_version"] for node in self.cluster.nodes]

    @staticmethod
    def _status(node: LocalNode) -> dict[str, Any]:
        status = node.status()
        if status is None:
            raise Failed(f"{node.id} does not answer:\n{node.log_tail()}")
        return status


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Raises:
    Failed: it did not become true in time.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"not within {PATIENCE_S:.0f} s: {what}")
        time.sleep(POLL_S)


def run(
    directory: Path,
    say: Callable[[str], None],
    is_short: bool = False,
    prepare: Callable[[LocalCluster], None] = lambda cluster: None,
) -> Upgrade:
    """The whole upgrade, in a new directory.

    Args:
        prepare: gets the cluster before its first start.
        is_short: only one node is held and goes back, for tests.

    Raises:
        Failed: something was not as expected.
        NotReady: a node did not start.
    """
    old, name = older_release(directory / "older")
    say(f"the older release is {name}")
    upgrade = Upgrade(directory / "cluster", old, say)
    nodes = upgrade.cluster.nodes
    prepare(upgrade.cluster)
    some = nodes[:1] if is_short else nodes
    try:
        upgrade.start()
        upgrade.roll("forward, held", upgrade.new, some, held=True)
        upgrade.require_old_version()
        upgrade.roll("back", old, some, held=False)
        upgrade.require_old_version()
        upgrade.roll("forward", upgrade.new, nodes, held=False)
        upgrade.require_version(LATEST)
        say(f"the cluster's version is {LATEST}")
        upgrade.require_newer_commands()
        supported = Supported(MIN, upgrade.old_version)
        line = f"the cluster's version is {LATEST}; this release supports {supported}: start a newer release"
        upgrade.require_refusal("too late to go back", nodes[2], old, held=False, line=line)
        if not is_short:
            line = f"the cluster's version is {LATEST}; {HELD} is {upgrade.old_version}: remove this setting"
            upgrade.require_refusal("too late to hold", nodes[1], upgrade.new, held=True, line=line)
        upgrade.load.wait_for_writes(WRITES_PER_STEP)
        upgrade.load.stop()
        upgrade.load.check()
    finally:
        upgrade.load.stop()
        upgrade.cluster.stop()
    return upgrade


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--short", action="store_true", help="only one node is held and goes back")
    options = parser.parse_args()
    began_s = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began_s:6.1f} s  {line}", flush=True)

    with tempfile.TemporaryDirectory(prefix="dss-upgrade-") as directory:
        try:
            done = run(Path(directory), say, options.short)
        except Exception as error:
            sys.exit(f"FAILED: {error}")
    print()
    print("\n".join(table([("step", "node", "seconds", "writes", "longest gap in s"), *done.rows])))
    load = done.load
    print(
        f"\n{load.answered} writes were answered, and all are there: {len(load.locks)} locks, {len(load.messages)} messages, "
        f"{len(load.values)} keys. {load.unanswered} were refused or not answered."
    )


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


if __name__ == "__main__":
    main()
