"""Clusters with interfaces of their own do not disturb browsers."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from dss_dev.local_partitions import PartitionedCluster, why_not
from dss_dev.network_changes import no_changes


def interfaces() -> set[str]:
    """The names of this machine's network interfaces."""
    listed = subprocess.run(["ip", "-brief", "link"], check=True, capture_output=True, text=True).stdout
    return {line.partition(" ")[0].partition("@")[0] for line in listed.splitlines()}


@pytest.fixture
def cluster(tmp_path: Path) -> PartitionedCluster:
    if reason := why_not():
        pytest.skip(reason)
    return PartitionedCluster(tmp_path)


def test_its_interfaces_are_gone_when_it_ends(cluster: PartitionedCluster) -> None:
    """At once: while a namespace that was deleted removes them, a browser might have started."""
    with cluster:
        own = {name for name in interfaces() if name.startswith(cluster.bridge)}
        assert len(own) == 4
    assert not own & interfaces()


def test_it_waits_until_no_browser_runs(cluster: PartitionedCluster) -> None:
    made = threading.Event()

    def make() -> None:
        with cluster:
            made.set()

    thread = threading.Thread(target=make)
    with no_changes(), no_changes():
        thread.start()
        assert not made.wait(0.5)
        assert not any(name.startswith(cluster.bridge) for name in interfaces())
    assert made.wait(60)
    thread.join(60)
