"""How a command at a terminal finds its cluster.

In this order: the addresses given with `--url`; this node's address, if the environment sets it; the cluster that `make run` started in
this directory; this node's default address. `make run` writes a file to the cluster's data directory and removes it when it stops. A stale
file is ignored: no node answers, and the process that wrote it is gone.
"""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

#: where `make run` keeps its clusters, relative to the directory in which it was started
CLUSTERS = Path(".dss")
FILE_NAME = "cluster.json"
VERSION = 1
#: if one of these is set, the environment describes the node to use
ADDRESS_VARIABLES = ("DSS_URL", "RPC_HOST", "RPC_PORT", "PEERS")
ASK_TIMEOUT_S = 1.0
#: the same line is not printed again within this time
REPEAT_AFTER_S = 30.0

URL_HELP = "address of a node; repeat it, or separate several with commas (default: the cluster of `make run` in this directory)"

Say = Callable[[str], None]


class CannotChoose(Exception):
    """Several clusters run here (the text lists them), or one is run by a newer release."""


class LocalMember(msgspec.Struct, frozen=True):
    id: str
    url: str
    pid: int


class LocalClusterFile(msgspec.Struct, frozen=True):
    """A cluster of `make run`, as its file describes it."""

    version: int
    #: the process that started the nodes, follows their logs and stops them
    pid: int
    nodes: list[LocalMember]

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes]


class _Versioned(msgspec.Struct):
    """The part of the file that is read first."""

    version: int


class NodeAddress(Protocol):
    """The addresses in a node's settings."""

    @property
    def url(self) -> str: ...
    @property
    def peers(self) -> Sequence[Any]: ...


def write_file(directory: Path, nodes: Sequence[LocalMember]) -> None:
    """Describe the cluster that this process runs in `directory`."""
    described = LocalClusterFile(VERSION, os.getpid(), list(nodes))
    temporary = directory / f"{FILE_NAME}.new"
    temporary.write_bytes(msgspec.json.encode(described))
    temporary.replace(directory / FILE_NAME)


def remove_file(directory: Path) -> None:
    (directory / FILE_NAME).unlink(missing_ok=True)


def running_clusters(clusters: Path = CLUSTERS) -> dict[Path, LocalClusterFile]:
    """The clusters of `make run` in `clusters` that answer; if none does, those that are starting."""
    described = {path.parent: cluster for path in sorted(clusters.glob(f"*/{FILE_NAME}")) if (cluster := _read(path))}
    answering = {directory: cluster for directory, cluster in described.items() if any(map(_answers, cluster.urls))}
    return answering or {directory: cluster for directory, cluster in described.items() if _is_alive(cluster.pid)}


def without_repeats(say: Say) -> Say:
    """A `say` that suppresses repeated lines, from one client or from several."""
    said_at: dict[str, float] = {}

    def say_once(line: str) -> None:
        now = time.monotonic()
        if now - said_at.get(line, -REPEAT_AFTER_S) >= REPEAT_AFTER_S:
            said_at[line] = now
            say(line)

    return say_once


def cluster_urls(
    given: Sequence[str],
    node: NodeAddress,
    say: Say,
    clusters: Path = CLUSTERS,
    environ: Mapping[str, str] = os.environ,
) -> list[str]:
    """The addresses to try, in this order. `say` gets a line with the cluster and how it was found.

    Args:
        given: the values of `--url`.
        node: this node's settings.

    Raises:
        CannotChoose: several clusters run here.
    """
    if urls := [url.strip().rstrip("/") for text in given for url in text.split(",") if url.strip()]:
        say(f"cluster at {urls[0]}")
        return urls
    own = [node.url, *(peer.url for peer in node.peers)]
    if variables := [name for name in ADDRESS_VARIABLES if environ.get(name, "").strip()]:
        say(f"cluster at {own[0]} (from {variables[0]})")
        return own
    running = running_clusters(clusters)
    if len(running) > 1:
        listed = "".join(f"\n  --url {cluster.urls[0]}   {directory}" for directory, cluster in running.items())
        raise CannotChoose(f"Several clusters run here. Choose one:{listed}")
    for directory, cluster in running.items():
        say(f"cluster at {cluster.urls[0]} ({directory})")
        return cluster.urls
    say(f"cluster at {own[0]} (the default: no cluster of `make run` runs in {clusters.absolute()})")
    return own


def _read(path: Path) -> LocalClusterFile | None:
    """Raises:
    CannotChoose: a newer release wrote the file.
    """
    with suppress(OSError, msgspec.MsgspecError):
        data = path.read_bytes()
        version = msgspec.json.decode(data, type=_Versioned).version
        if version > VERSION:
            raise CannotChoose(
                f"{path} has format {version}, and this release reads formats up to {VERSION}: use the release that runs this cluster, "
                "or name an address with --url"
            )
        cluster = msgspec.json.decode(data, type=LocalClusterFile)
        return cluster if cluster.nodes else None
    return None


def _answers(url: str) -> bool:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ASK_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
