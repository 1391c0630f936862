"""`manage.py` and `dss-node`: help, and commands that are not used here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dss_project.config import settings_table

ROOT = Path(__file__).parents[2]
DSS_NODE = "from dss_project.command_line import dss_node; dss_node()"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)


def test_help_lists_our_commands_first_with_a_line_each() -> None:
    ours, _, rest = run("manage.py", "help").stdout.partition("Commands of Django")
    rows = [line.split(None, 1) for line in ours.splitlines() if line.startswith("    ")]
    names = [name for name, *_ in rows]
    assert names == sorted(names)
    assert {
        "node",
        "cluster",
        "join",
        "status",
        "member",
        "log",
        "restart",
        "recover",
        "snapshot",
        "token",
        "audit",
        "certificate",
        "publish",
        "consume",
        "mesi",
        "settings_table",
        "user",
        "createsuperuser",
        "changepassword",
    } == set(names)
    assert all(len(row) == 2 for row in rows), "each has a summary"
    assert max(map(len, ours.splitlines())) <= 100
    assert "[contenttypes]" in rest
    assert "    migrate" in rest.splitlines()


def test_runserver_says_what_to_use_instead() -> None:
    done = run("manage.py", "runserver", "--noreload", "0.0.0.0:8000")
    assert done.returncode == 1
    assert done.stdout == ""
    for expected in ("make run", "manage.py node"):
        assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_the_help_of_dss_node_lists_the_settings() -> None:
    done = run("-c", DSS_NODE, "--help")
    assert done.returncode == 0
    for row in settings_table():
        assert row.variable in done.stdout
    assert "`" not in done.stdout.partition("Settings")[2]


def test_dss_node_runs_the_other_commands() -> None:
    assert run("-c", DSS_NODE, "settings_table").stdout.startswith("| variable |")
