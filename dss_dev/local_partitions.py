"""A cluster whose network can be cut: each node has its own network namespace, and all namespaces are on one bridge.

Needs Linux and root. Clients reach every node from the machine's own namespace, even if the nodes cannot reach each other.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from dss_dev.local_cluster import LocalCluster, LocalNode
from dss_dev.network_changes import changing

PORT = 8101
#: Networks of a worker of the tests, and workers that have some of their own.
NETWORKS = 16


def why_not() -> str:
    """Why this machine cannot run such a cluster; "" if it can."""
    if shutil.which("ip") is None:
        return "the command `ip` (iproute2) is not installed"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"dss-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"network namespaces cannot be created here: {made.stderr.strip()}"
    _ip("netns", "delete", name)
    return ""


class PartitionedCluster(LocalCluster):
    """A context manager: the namespaces exist inside the block and are removed with their nodes.

    Attributes:
        bridge: the interface that joins the nodes; the names of their interfaces on this machine begin with it.

    Args:
        directory, environment: as for `LocalCluster`.
    """

    def __init__(self, directory: Path, nodes: int = 3, environment: Mapping[str, str] | None = None) -> None:
        super().__init__(directory, [], environment)
        self._tag = f"{random.randrange(16**4):04x}"
        self.bridge = f"dss{self._tag}"
        # A block reserved for benchmarks (RFC 2544); it is not routed. Each worker of the tests has networks of its own.
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw15").removeprefix("gw"))
        self._net = f"198.18.{worker % NETWORKS * NETWORKS + random.randrange(NETWORKS)}"
        self._cuts: list[tuple[LocalNode, LocalNode]] = []
        addresses = {f"node-{number}": f"{self._net}.{number}" for number in range(1, nodes + 1)}
        peers = ",".join(f"http://{address}:{PORT}/{node_id}" for node_id, address in addresses.items())
        self.nodes = [
            LocalNode(
                node_id,
                PORT,
                {
                    **(environment or {}),
                    "NODE_ID": node_id,
                    "RPC_HOST": address,
                    # Its addresses are not loopback, but nothing else reaches them.
                    "DSS_OPEN": "true",
                    "DSS_CLUSTER_SECRET": "of a partitioned cluster",
                    "RPC_PORT": str(PORT),
                    "PEERS": peers,
                    "DSS_DATA_DIR": str(directory / node_id),
                },
                directory / "logs" / f"{node_id}.log",
                address,
                namespace=self._namespace(node_id),
            )
            for node_id, address in addresses.items()
        ]

    def __enter__(self) -> PartitionedCluster:
        with changing():
            self._add_interfaces()
        return self

    def _add_interfaces(self) -> None:
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("address", "add", f"{self._net}.254/24", "dev", self.bridge)
        self._set_up(self.bridge)
        for node, outside in zip(self.nodes, self._ports, strict=True):
            namespace = self._namespace(node.id)
            _ip("netns", "add", namespace)
            _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            self._set_up(outside, "master", self.bridge)
            for arguments in (
                ("address", "add", f"{node.host}/24", "dev", "eth0"),
                ("link", "set", "eth0", "up"),
                ("link", "set", "lo", "up"),
            ):
                _ip("-n", namespace, *arguments)

    @staticmethod
    def _set_up(link: str, *arguments: str) -> None:
        """Without an IPv6 address, which the link would get some time later."""
        _ip("link", "set", link, "addrgenmode", "none")
        _ip("link", "set", link, *arguments, "up")

    def __exit__(self, *_: object) -> None:
        self.stop()
        with changing():
            # A namespace removes its interfaces some time after it was deleted.
            for link in (*self._ports, self.bridge):
                _ip("link", "delete", link)
        for node in self.nodes:
            _ip("netns", "delete", self._namespace(node.id))

    @property
    def _ports(self) -> list[str]:
        """The interfaces of the bridge, one for each node."""
        return [f"{self.bridge}-{number}" for number in range(1, len(self.nodes) + 1)]

    def cut(self, node: LocalNode, other: LocalNode) -> None:
        """Drop everything that `node` sends to `other`."""
        _ip("-n", self._namespace(node.id), "route", "add", "blackhole", f"{other.host}/32")
        self._cuts.append((node, other))

    def isolate(self, node: LocalNode) -> None:
        """Cut a node off from all others in both directions."""
        for other in self.nodes:
            if other is not node:
                self.cut(node, other)
                self.cut(other, node)

    def heal(self) -> None:
        """Let all nodes reach each other again."""
        for node, other in self._cuts:
            _ip("-n", self._namespace(node.id), "route", "delete", "blackhole", f"{other.host}/32")
        self._cuts.clear()

    def _namespace(self, node_id: str) -> str:
        return f"dss-{self._tag}-{node_id}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
