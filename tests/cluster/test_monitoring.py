"""`deploy/prometheus` and `deploy/grafana`: promtool accepts them, every metric exists, and alerts fire on a real cluster."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from dss_dev.local_cluster import HOST, PEER_PORT_OFFSET, ROOT, LocalCluster, free_ports

PROMETHEUS = ROOT / "deploy/prometheus"
GRAFANA = ROOT / "deploy/grafana"
RULES = yaml.safe_load((PROMETHEUS / "dss.rules.yml").read_text())
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}
#: what Grafana puts in before it asks Prometheus
GRAFANA_VARIABLES = {"$__rate_interval": "1m", "$instance": ".*"}
MISSING = [tool for tool in ("promtool", "prometheus") if shutil.which(tool) is None]
needs_prometheus = pytest.mark.skipif(
    bool(MISSING), reason=f"{' and '.join(MISSING)} not found: install the package `prometheus` (apt install prometheus)"
)


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def queries() -> list[str]:
    """Every query of the rules and the dashboards."""
    found = [rule["expr"] for rule in ALERTS.values()]
    for dashboard in DASHBOARDS.values():
        for expression in (target["expr"] for panel in dashboard["panels"] for target in panel["targets"]):
            for variable, value in GRAFANA_VARIABLES.items():
                expression = expression.replace(variable, value)
            found.append(expression)
    return found


def names_in(query: str) -> set[str]:
    """The series that a query selects."""
    rest = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(by|without|on|ignoring) *\([^)]*\)", " ", query)
    return set(re.findall(r"\b[a-z]\w*\b(?! *\()", rest)) - {"bool", "by", "on", "or"}


def test_there_is_a_dashboard_for_each_subsystem() -> None:
    assert set(DASHBOARDS) == {"cluster", "locks", "queues", "cache"}
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS)
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    for dashboard in DASHBOARDS.values():
        assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}


@needs_prometheus
def test_promtool_accepts_every_query(tmp_path: Path) -> None:
    promtool("check", "config", "prometheus.yml")
    rules = [{"record": f"query_{number}", "expr": query} for number, query in enumerate(queries())]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(path))


@needs_prometheus
def test_each_alert_fires_alone() -> None:
    promtool("test", "rules", "dss.rules.test.yml")
    cases = {case["name"] for case in yaml.safe_load((PROMETHEUS / "dss.rules.test.yml").read_text())["tests"]}
    assert cases == {*ALERTS, "nothing is wrong"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, prepare_pages) -> Iterator[LocalCluster]:
    """Its backing store is a Redis server that does not exist."""
    directory = tmp_path_factory.mktemp("monitored")
    found = LocalCluster(directory, free_ports(3), {"REDIS_URL": f"redis://{HOST}:{free_ports(1)[0]}/0"})
    found.start()
    try:
        found.wait_ready()
        yield found
    finally:
        found.stop()


@pytest.mark.cluster
def test_every_metric_is_on_a_running_node(cluster: LocalCluster) -> None:
    leader = cluster.leader()
    assert leader.call("POST", "/queue/publish", {"topic": "monitored", "value": 1}).status == 200
    families = text_string_to_metric_families(leader.call("GET", "/metrics").body.decode())
    series = {sample.name for family in families for sample in family.samples}
    wanted = {name for query in queries() for name in names_in(query)}
    assert len(wanted) > 40
    assert wanted - series == {"up"}, "Prometheus makes that one"


@pytest.fixture
def firing(cluster: LocalCluster, tmp_path: Path, wait_until) -> Iterator[Callable[[], set[str]]]:
    """A Prometheus that scrapes the cluster every second; its alerts do not wait. Returns the names of those that fire.

    It has scraped each node, so that counters that rise now are seen to rise.
    """
    port = free_ports(1)[0]
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"{HOST}:{node.port}" for node in cluster.nodes]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    rules = json.loads(json.dumps(RULES))
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule.pop("for", None)
    (tmp_path / "dss.rules.yml").write_text(yaml.safe_dump(rules))
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address={HOST}:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ask(path: str) -> dict[str, Any]:
        try:
            with urlopen(f"http://{HOST}:{port}/api/v1/{path}", timeout=10) as answer:
                data: dict[str, Any] = json.load(answer)["data"]
                return data
        except OSError:
            return {}

    def names() -> set[str]:
        return {alert["labels"]["alertname"] for alert in ask("alerts").get("alerts", []) if alert["state"] == "firing"}

    def scraped() -> int:
        return len(ask(f"query?query={quote('count by (instance) (raft_peer_refused_total)')}").get("result", []))

    wait_until(lambda: scraped() == len(cluster.nodes), lambda: f"only {scraped()} nodes were scraped")
    yield names
    process.terminate()
    process.wait()


@needs_prometheus
@pytest.mark.cluster
def test_alerts_fire_on_a_real_cluster(cluster: LocalCluster, firing, wait_until) -> None:
    leader, follower, other = cluster.leader(), *cluster.followers()

    def wait_for(*names: str) -> None:
        wait_until(lambda: firing() >= set(names), lambda: f"of {names}, only {firing()} fire")

    # All counters have been scraped before they rise: the cache's alert is there after a scrape.
    assert leader.call("POST", "/cache/put", {"key": "k", "value": 1}).status == 200
    wait_for("DssBackingStoreDown")
    # On a busy machine, a scrape may take too long.
    too_soon = {"DssNodeDown", "DssNoLeader", "DssPeersRefused", "DssDeadLetters", "DssLimitNear"}
    wait_until(lambda: not firing() & too_soon, lambda: f"{firing() & too_soon} fire")
    place = {"topic": "monitored", "group": "g"}
    leader.call("POST", "/queue/publish", {"topic": "monitored", "value": 1})
    got = leader.call("POST", "/queue/consume", place).json
    assert leader.call("POST", "/queue/nack", {**place, "msg_id": got["msg_id"], "dead": True}).status == 200
    with socket.create_connection((HOST, leader.port + PEER_PORT_OFFSET), timeout=10) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
    wait_for("DssDeadLetters", "DssPeersRefused")
    other.kill()
    wait_for("DssNodeDown", "DssPeerDown")
    follower.kill()
    wait_for("DssNoLeader", "DssNotReady")
