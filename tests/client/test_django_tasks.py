"""`dss_django.tasks` on a real node: the tests in tasks_suite/, with Django 5.2 and django-tasks, and with Django 6 on Python 3.12."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dss_dev.django_6 import libraries_for_django_6
from dss_dev.local_cluster import ROOT, LocalCluster

pytestmark = pytest.mark.cluster

SUITE = Path(__file__).parent / "tasks_suite"
TESTS_MIN = 55


@pytest.mark.parametrize("series", ["5.2", "6"])
def test_tasks(request: pytest.FixtureRequest, real_node: LocalCluster, token: str, series: str) -> None:
    python, path = (sys.executable, []) if series == "5.2" else libraries_for_django_6(request.config)
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "suite_settings",
        "DSS_URLS": real_node.nodes[0].url,
        "DSS_TOKEN": token,
        "DSS_NAMESPACE": f"tasks-{series}",
        "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT / "client", SUITE])),
        # Warnings that name a future version of Django, whichever that is.
        "PYTHONWARNINGS": "ignore",
    }
    command = [python, "-m", "django", "test", "--pattern=suite.py", str(SUITE)]
    if series != "5.2":
        # Slow ones that are not about Django.
        command.append("--exclude-tag=once")
    run = subprocess.run(command, cwd=SUITE, env=environment, capture_output=True, text=True)
    ran = re.search(r"^Ran (\d+) tests", run.stderr, re.MULTILINE)
    assert ran is not None, run.stderr[-3000:]
    assert run.returncode == 0, run.stderr[-5000:]
    assert int(ran.group(1)) >= TESTS_MIN, run.stderr[-3000:]
