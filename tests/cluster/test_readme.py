"""The README is correct: its commands run as printed, answers have the fields that it shows, and its tables are current."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from dss_dev.local_cluster import POLL_S, PORTS_OF_THREE, ROOT, ports_in_use

README = (ROOT / "README.md").read_text()
TOUR = README.partition("<!-- tour -->")[2].partition("<!-- end of tour -->")[0]
WIDTH = 100


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_the_first_commands() -> None:
    assert [line.split("#")[0].strip() for line in blocks("sh")[0].splitlines()] == ["make run", "make test"]


def test_the_table_of_settings() -> None:
    expected = io.StringIO()
    call_command("settings_table", stdout=expected)
    shown = re.search(r"<!-- settings: .*? -->\n(.*?)<!-- end of settings -->", README, flags=re.DOTALL)
    assert shown is not None
    assert shown.group(1).strip() == expected.getvalue().strip(), "put in what `manage.py settings_table` prints"


def test_every_link_leads_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len(targets) >= 5
    assert not [target for target in targets if not (ROOT / target).exists()]


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", "\n".join([*re.findall(r"`([^`\n]+)`", README), *blocks("sh")])))
    assert {"run", "test", "lint", "bench", "load", "postman"} <= named <= targets


def shape(value: Any) -> Any:
    """An answer without the parts that differ between runs: numbers, and texts made of numbers."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    if isinstance(value, bool) or value is None:
        return value
    return re.sub(r"\d+", "0", str(value))


def introduction_shape(text: str) -> list[str]:
    """The lines of `make run` without what differs from run to run: PIDs, the password, and which node leads."""
    shaped = re.sub(r"(admin / |#t=)\S+|\b\d{2,}(?=  )|\b(leader|follower)\b", r"\1…", text)
    return [re.sub(r" {2,}", "  ", line.rstrip()) for line in shaped.splitlines() if line.strip()]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A directory that looks like a fresh clone after its first `make run`."""
    (tmp_path / "manage.py").symlink_to(ROOT / "manage.py")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


@pytest.fixture
def introduction(checkout: Path) -> Iterator[str]:
    """`make run` in the checkout: its output before the logs."""
    if taken := ports_in_use(PORTS_OF_THREE):
        pytest.skip(f"the README's tour was not tested: ports {taken} of this machine are taken")
    log = checkout / "make_run.log"
    with log.open("w") as output:
        running = subprocess.Popen(
            [".venv/bin/python", "manage.py", "cluster", "--nodes", "3"], cwd=checkout, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        while "Ctrl-C" not in log.read_text():
            assert running.poll() is None, log.read_text()
            time.sleep(POLL_S)
        yield log.read_text().partition("Ctrl-C")[0] + "Ctrl-C\n"
    finally:
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 0
        assert not list(checkout.glob(".dss/*/cluster.json")), "the file that describes the running cluster is removed"


@pytest.mark.cluster
@pytest.mark.skipif(shutil.which("curl") is None, reason="the README's tour was not tested: there is no curl on this machine")
def test_the_tour(introduction: str, checkout: Path) -> None:
    """Paste the README's blocks into a shell, unchanged, and compare the answers with those that the README shows."""
    (printed,) = re.findall(r"^```\n(NODE .*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    assert introduction_shape(introduction.partition("\n")[2]) == introduction_shape(printed)
    assert max(map(len, introduction.splitlines())) <= WIDTH

    pasted = "".join(blocks("sh", TOUR))
    done = subprocess.run(["bash"], input=pasted, cwd=checkout, capture_output=True, text=True, timeout=120, check=False)
    shown = [json.loads(line) for line in "".join(blocks("json", TOUR)).splitlines()]
    assert len(shown) >= 13
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [shape(answer) for answer in answers] == [shape(answer) for answer in shown], done.stderr
    assert [line for line in done.stderr.splitlines() if "cluster at" not in line] == []
