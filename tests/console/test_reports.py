"""What a node reports about itself while a page is open: twice a second, so only parts that can have changed are computed again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dss_console.live import reports
from dss_console.live.reports import FsyncQuantile, Reporter
from dss_queue.core.records import DeadLettered
from dss_queue.engine_service import SERVICE
from dss_raft import node_metrics


class Node(SimpleNamespace):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_"):
            return lambda *arguments: None
        raise AttributeError(name)


@pytest.fixture
def reporter() -> Reporter:
    core = SimpleNamespace(
        term=1, role=0, leader_id="b", commit_index=7, last_index=7, snapshot=SimpleNamespace(index=0), configuration=None
    )
    node: Any = Node(
        node_id="a", incarnation=1, core=core, applied_index=7, not_ready_reason="", pending_commands=(0, 0), peers=[]
    )
    node.services = {SERVICE: SimpleNamespace(state="none", detail="no URL is set")}
    cache: Any = SimpleNamespace(lines={}, hits=0, misses=0, write_back=SimpleNamespace(trouble=""))
    return Reporter(node, cache)


def test_histogram_memory_and_release_are_not_read_for_each_report(reporter: Reporter, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(FsyncQuantile, "take_ms", lambda self: read.append("fsync") or 2.0)
    monkeypatch.setattr(reports, "rss_bytes", lambda: read.append("rss") or 1000)
    node_metrics.release()
    monkeypatch.setattr(node_metrics, "version", lambda name: read.append("release") or "1")
    for _ in range(3):
        report = reporter.report(0, (), "")
        assert (report.fsync_ms, report.rss_bytes) == (2.0, 1000)
    assert sorted(read) == ["fsync", "rss"]
    reporter._node.core.last_index = 8
    reporter.report(0, (), "")
    assert sorted(read) == ["fsync", "fsync", "rss"], "there are new entries"


def test_what_every_node_records_by_itself_is_not_sent(reporter: Reporter) -> None:
    """Viewers show their own. Many of them would leave no room for the others in a frame."""
    reporter._node.event_at_ms = 1000
    for _ in range(300):
        reporter._dead_lettered(DeadLettered("orders", "billing", "rejected"), 7)
    report = reporter.report(0, (), "")
    assert [told.kind for told in report.events] == ["started"]
    (latest,) = reporter.recorder.since(300)
    assert (latest.kind, latest.at_ms) == ("dead_letter", 1000)
