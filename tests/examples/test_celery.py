"""`examples/celery` runs by one command, and loses no task when the leader is killed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dss_dev.local_cluster import ROOT

pytestmark = pytest.mark.cluster


def test_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("celery", reason="Celery is not installed")
    monkeypatch.delenv("DSS_URLS", raising=False)
    command = [sys.executable, str(ROOT / "examples/celery/run.py"), "--own-nodes", "--tasks=50"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stdout + run.stderr[-5000:]
    lines = dict(line.split(":", 1) for line in run.stdout.splitlines() if ":" in line)
    lines = {name: text.strip() for name, text in lines.items()}
    assert lines["a chord"] == "100"
    assert lines["a retry"] == "{'paid': 100, 'attempts': 3}"
    assert lines["in order"] == "[0, 1, 2, 3, 4]"
    assert lines["urgent"] == "70"
    assert lines["50 tasks"].startswith("0 lost")
    assert lines["the worker"].startswith("celery@")
