"""The README tells the truth: its commands run as printed, its answers have the fields it shows, its tables are current."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from typing import Any

import pytest
from django.core.management import call_command

from dss_dev.local_cluster import ROOT, LocalCluster

README = (ROOT / "README.md").read_text()
#: as `make run` prints it in the README: the process that the tour kills
PID = re.search(r"^node-1 +(\d+) +leader", README, flags=re.MULTILINE)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def tour() -> list[tuple[str, str]]:
    """Commands and what is printed under each."""
    parts = re.split(r"^\$ ", "".join(blocks("console")), flags=re.MULTILINE)[1:]
    return [(command, shown.strip()) for command, _, shown in (part.partition("\n") for part in parts)]


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
    """An answer without what differs from run to run: numbers, and texts made of numbers."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    if isinstance(value, bool) or value is None:
        return value
    return re.sub(r"\d+", "0", str(value))


@pytest.mark.cluster
@pytest.mark.skipif(shutil.which("curl") is None, reason="the README's tour was not tested: there is no curl on this machine")
def test_the_tour(cluster: LocalCluster, wait_until) -> None:
    leader = cluster.nodes[0]
    wait_until(lambda: leader.call("POST", "/raft/transfer", {"to": leader.id}).status == 200, lambda: "node-1 cannot lead")
    assert len(tour()) >= 10
    assert PID is not None
    assert leader.process is not None
    real = {PID.group(1): str(leader.process.pid)}
    for node, port in zip(cluster.nodes, (8101, 8102, 8103), strict=True):
        real[f"localhost:{port}"] = f"localhost:{node.port}"
    for command, shown in tour():
        for printed, value in real.items():
            command = command.replace(printed, value)
        done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        if shown:
            answer, printed_answer = json.loads(done.stdout), json.loads(shown)
            assert shape(answer) == shape(printed_answer), f"{command} answers {done.stdout}"
            if "msg_id" in answer:
                real[printed_answer["msg_id"]] = answer["msg_id"]
