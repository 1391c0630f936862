"""The Postman collection under newman, as `make postman` runs it, against three nodes and against one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dss_dev.local_cluster import ROOT
from dss_project.registry import operations

pytestmark = pytest.mark.cluster

COLLECTION = ROOT / "postman" / "distributed-sync-system.postman_collection.json"
FOLDERS = ["Health & Metrics", "Raft", "Lock Manager", "Queue", "Cache (MESI)"]
#: prints where newman is, which is fetched if necessary: starting it with npx takes half as long as a run
FIND_NEWMAN = ["npx", "--yes", "--package", "newman@6", "--call", "command -v newman"]


@pytest.fixture(scope="module")
def newman() -> str:
    """The program. Without it, the test is skipped, and pytest's summary says so."""
    if shutil.which("npx") is None:
        pytest.skip("the Postman collection was not run: there is no npx on this machine; install Node.js")
    found = subprocess.run(FIND_NEWMAN, cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        pytest.skip(f"the Postman collection was not run: npx cannot get newman: {found.stderr.strip()[-300:]}")
    return found.stdout.strip()


def test_every_request_has_tests() -> None:
    collection = json.loads(COLLECTION.read_text())
    assert collection["info"]["schema"].endswith("/v2.1.0/collection.json")
    assert [folder["name"] for folder in collection["item"]] == FOLDERS
    for folder in collection["item"]:
        for item in folder["item"]:
            code = "\n".join(line for event in item["event"] if event["listen"] == "test" for line in event["script"]["exec"])
            assert code.count("pm.test(") >= 1, f"{folder['name']} / {item['name']} tests nothing"


def test_every_operation_is_called() -> None:
    called = set()
    for folder in json.loads(COLLECTION.read_text())["item"]:
        for item in folder["item"]:
            path = re.sub(r"/postman-{{\w+}}$", "/{id}", item["request"]["url"]["raw"].split("}}", 1)[1].split("?")[0])
            path = re.sub(r"^/raft/log/{{\w+}}$", "/raft/log/{index}", path)
            path = re.sub(r"^/raft/snapshot/{{\w+}}$", "/raft/snapshot/{id}", path)
            path = re.sub(r"^/tokens/{{\w+}}$", "/tokens/{id}", path)
            path = re.sub(r"^/users/{{\w+}}$", "/users/{name}", path)
            called.add((item["request"]["method"], path))
    missing = {(operation.method, operation.path) for operation in operations()} - called
    assert not missing, f"no request for {sorted(missing)}"


@pytest.mark.parametrize(("nodes", "environment"), [(3, "local"), (1, "single")])
def test_the_collection_passes(newman, make_cluster, tmp_path: Path, nodes: int, environment: str) -> None:
    cluster = make_cluster(nodes)
    given = json.loads((ROOT / "postman" / f"{environment}.postman_environment.json").read_text())
    variables = {variable["key"]: variable["value"] for variable in given["values"]}
    assert set(variables) == {"baseUrlNode1", "baseUrlNode2", "baseUrlNode3", "timeoutMs"}
    assert variables["timeoutMs"] == "1000", "a string, as Postman's variables are"
    # The same environment, with the ports of this test's nodes.
    overrides = [f"baseUrlNode{number}={cluster.nodes[(number - 1) % nodes].url}" for number in (1, 2, 3)]
    report = tmp_path / "newman.json"
    command = [newman, "run", str(COLLECTION), "-e", str(ROOT / "postman" / f"{environment}.postman_environment.json")]
    command += [part for override in overrides for part in ("--env-var", override)]
    command += ["--reporters", "json", "--reporter-json-export", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert report.exists(), done.stdout + done.stderr
    run = json.loads(report.read_text())["run"]
    failures = [f"{one['source'].get('name')}: {one['error']['test']}: {one['error']['message']}" for one in run["failures"]]
    assert not failures, "\n".join(failures)
    assert run["stats"]["assertions"]["total"] > 150
    assert done.returncode == 0
