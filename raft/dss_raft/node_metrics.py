"""Gauges of this member: its place in the cluster, its log, its peers and its disk. They are computed when Prometheus reads them."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from dss_raft.node import Node

DISTRIBUTION = "distributed-sync-system"

_node: Node | None = None


def attach(node: Node) -> None:
    """Show this node; a process has only one."""
    global _node
    _node = node


@cache
def release() -> str:
    """The version of the package that this process has loaded; "unknown" if it runs without an installation."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"


_RELEASE, _PYTHON = release(), platform.python_version()


class NodeCollector(Collector):
    """The gauges of the running node; zeros if none runs. Must be collected in the node's event loop."""

    def collect(self) -> Iterator[Any]:
        node = _node if _node is not None and _node.is_running else None
        build = GaugeMetricFamily("dss_build_info", "Always 1; the labels say what runs", labels=["version", "python", "node"])
        build.add_metric([_RELEASE, _PYTHON, "" if _node is None else _node.node_id], 1)
        yield build
        for name, text, value in (*_of_raft(node), *_of_disk(node)):
            yield GaugeMetricFamily(name, text, value)
        yield from _of_peers(node)


def _of_raft(node: Node | None) -> Iterator[tuple[str, str, float]]:
    core = None if node is None else node.core
    in_flight, waiting = (0, 0) if node is None else node.pending_commands
    yield "dss_ready", "1 when a write would be answered now, as GET /ready", int(node is not None and node.is_ready)
    yield "raft_leader_known", "1 while this node knows the leader of its term", int(core is not None and core.leader_id != "")
    yield "raft_term", "The term of this node", 0 if core is None else core.term
    yield "raft_last_index", "The last entry in the log of this node", 0 if core is None else core.last_index
    yield "raft_commit_index", "The last entry that this node knows to be committed", 0 if core is None else core.commit_index
    yield "raft_applied_index", "The last entry that this node has applied", 0 if node is None else node.applied_index
    yield "raft_log_entries", "Entries of the log in memory", 0 if core is None else len(core.log)
    yield "raft_log_bytes", "Payload of these entries", 0 if core is None else core.log.size(core.log.base_index, core.last_index)
    yield "raft_pending_commands", "Commands of this node's callers that are not applied yet", in_flight
    yield "raft_waiting_commands", "Commands of this node's callers that wait for a lock or a message", waiting


def _of_disk(node: Node | None) -> Iterator[tuple[str, str, float]]:
    index = age_s = size = free = total = used = 0.0
    if node is not None:
        index = node.core.snapshot.index
        with suppress(OSError):  # the directory is gone: the next write stops the node
            disk = os.statvfs(node.config.data_dir)
            free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
            used = node.store_bytes()
        path = node.snapshot_path
        if path is not None:
            with suppress(OSError):  # a newer snapshot is replacing it
                file = path.stat()
                age_s, size = max(0.0, time.time() - file.st_mtime), file.st_size
    yield "raft_snapshot_index", "The last entry that the snapshot of this node contains; 0 without a snapshot", index
    yield "raft_snapshot_age_seconds", "Time since the snapshot was written; 0 without a snapshot", age_s
    yield "raft_snapshot_bytes", "Size of the snapshot; 0 without a snapshot", size
    yield "raft_store_bytes", "Size of the log store's database files", used
    yield "dss_disk_free_bytes", "Free space on the file system of the data directory", free
    yield "dss_disk_size_bytes", "Size of that file system", total


def _of_peers(node: Node | None) -> Iterator[GaugeMetricFamily]:
    up = GaugeMetricFamily("raft_peer_up", "1 while the link to this member works", labels=["peer"])
    lag = GaugeMetricFamily(
        "raft_peer_lag_entries", "Entries that this member has not confirmed; the leader knows", labels=["peer"]
    )
    contact = GaugeMetricFamily(
        "raft_peer_contact_seconds", "Time since this member's last answer; the leader knows", labels=["peer"]
    )
    if node is not None:
        core, tick_s = node.core, node.tick_s
        for peer in node.peers:
            up.add_metric([peer], int(node.is_linked(peer)))
        for status in core.status().peers:
            lag.add_metric([status.id], max(0, core.last_index - status.match))
            contact.add_metric([status.id], status.contact_ticks * tick_s)
    return iter((up, lag, contact))


REGISTRY.register(NodeCollector())
