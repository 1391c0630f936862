"""Everything at once, as in production: three nodes with mutual TLS between them, HTTPS with certificates of clients on their service
ports, a token, and nginx in front, which ends TLS of the clients and encrypts again.

The Postman collection, Locust and the Python client go through nginx. The tests of the contract of locks, queues and the cache go through
nginx, and to the nodes themselves.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dss_client import Client
from dss_dev.local_cluster import HOST, ROOT, LocalCluster, LocalNode, free_ports
from dss_dev.local_tls import make_files
from dss_dev.prepared_pages import ENVIRONMENT

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
TOKEN = "token-of-the-encrypted-cluster"
#: from where nginx connects to the nodes
PROXY = "127.0.0.2"
PATIENCE_S = 60.0
NEWMAN = ["npx", "--yes", "newman@6"]
CONTRACT = [f"tests/{subsystem}/test_contract.py" for subsystem in ("queue", "locks", "cache")]
COLLECTION = ROOT / "postman/distributed-sync-system.postman_collection.json"

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(NGINX is None, reason="nginx not found: install the package `nginx` (apt install nginx)"),
]

SERVER = """
upstream {name} {{ server {host}:{node_port}; keepalive 16; }}
server {{
    listen {host}:{port} ssl;
    ssl_certificate {tls}/node.pem;
    ssl_certificate_key {tls}/node.key;
    client_max_body_size 4m;
    location / {{
        proxy_pass https://{name};
        proxy_bind {proxy};
        proxy_ssl_trusted_certificate {tls}/ca.pem;
        proxy_ssl_verify on;
        proxy_ssl_name localhost;
        proxy_ssl_certificate {tls}/client.pem;
        proxy_ssl_certificate_key {tls}/client.key;
        proxy_http_version 1.1;
        proxy_set_header Host $http_host;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-Forwarded-Host $http_host;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $connection_upgrade;
        proxy_read_timeout 120s;
    }}
}}
"""


@dataclass
class Encrypted:
    cluster: LocalCluster
    #: nginx's address for each node
    urls: list[str]
    ca: Path

    @property
    def environment(self) -> dict[str, str]:
        """Of programs that use the cluster through nginx. They have no certificate."""
        given = {name: value for name, value in os.environ.items() if not name.startswith(("DSS_", "PYTEST_"))}
        return {**given, "DSS_URLS": ",".join(self.urls), "DSS_CA_FILE": str(self.ca), "DSS_TOKEN": TOKEN}

    @property
    def direct_environment(self) -> dict[str, str]:
        """Of programs that use the nodes themselves."""
        certificate = {name: value for name, value in self.cluster.nodes[0].environment.items() if name.startswith("DSS_CLIENT_")}
        return {**self.environment, **certificate, "DSS_URLS": ",".join(node.url for node in self.cluster.nodes)}


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory, prepare_pages) -> Iterator[Encrypted]:
    directory = tmp_path_factory.mktemp("encrypted")
    tls = make_files(directory / "tls", for_clients=True)
    settings = {"DSS_API_TOKEN": TOKEN, "DSS_TRUSTED_PROXIES": PROXY, "DSS_HSTS_SECONDS": "3600"}
    # The contract has tests that look at values before they are written back.
    settings["DSS_CACHE_WRITE_BACK_MS"] = "3000"
    cluster = LocalCluster(directory / "nodes", free_ports(3), {**ENVIRONMENT, **tls, **settings})
    prepare_pages(cluster)
    cluster.start()
    ports = free_ports(3)
    servers = [
        SERVER.format(name=node.id, host=HOST, node_port=node.port, port=port, tls=directory / "tls", proxy=PROXY)
        for node, port in zip(cluster.nodes, ports, strict=True)
    ]
    temporary = "".join(
        f"{kind}_temp_path {directory}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "nginx.conf").write_text(
        f"daemon off;\nuser root;\npid {directory}/nginx.pid;\nerror_log {directory}/error.log;\nevents {{}}\nhttp {{\naccess_log off;\n"
        f'{temporary}map $http_upgrade $connection_upgrade {{ default upgrade; "" ""; }}\n{"".join(servers)}}}\n'
    )
    assert NGINX is not None
    nginx = subprocess.Popen([NGINX, "-p", str(directory), "-c", str(directory / "nginx.conf")])
    try:
        cluster.wait_ready()
        found = Encrypted(cluster, [f"https://{HOST}:{port}" for port in ports], directory / "tls/ca.pem")
        wait_for_nginx(found, ports[-1])
        yield found
    finally:
        nginx.terminate()
        nginx.wait()
        cluster.stop()


def wait_for_nginx(found: Encrypted, port: int) -> None:
    context = ssl.create_default_context(cafile=str(found.ca))
    deadline = time.monotonic() + PATIENCE_S
    while True:
        connection = http.client.HTTPSConnection(HOST, port, timeout=10, context=context)
        try:
            connection.request("GET", "/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            assert time.monotonic() < deadline
        finally:
            connection.close()
        time.sleep(0.05)


def test_every_way_in_is_encrypted(encrypted: Encrypted) -> None:
    node = encrypted.cluster.nodes[0]
    assert node.status() is not None
    stranger = http.client.HTTPSConnection(HOST, node.port, context=ssl.create_default_context(cafile=str(encrypted.ca)))
    stranger.connect()
    with pytest.raises((ssl.SSLError, ConnectionError)):  # past nginx, without a certificate; TLS 1.3 says it at the first read
        stranger.sock.recv(1)
    for node in encrypted.cluster.nodes:
        assert node.call("GET", "/lock/status?key=k").status == 401
        links = json.loads(node.call("GET", "/raft/status", headers=node.credentials).body)["members"]
        assert all(member["up"] and member["url"].startswith("https://") for member in links)


@pytest.mark.parametrize("transport", ["websocket", "http"])
def test_the_python_client(encrypted: Encrypted, transport: str) -> None:
    context = ssl.create_default_context(cafile=str(encrypted.ca))
    with Client(encrypted.urls, TOKEN, transport=transport, tls=context) as dss:  # type: ignore[arg-type]
        with dss.lock(f"encrypted-{transport}"):
            dss.cache.put("encrypted", transport)
        assert dss.cache.get("encrypted") == transport


def run_contract(environment: dict[str, str], directory: Path, *arguments: str) -> None:
    """Run tests of the contract at the nodes of `DSS_URLS`, in a process that is forked with the libraries loaded."""
    command = [
        str(Path(pytest.__file__).with_name("__main__.py")),
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "log_cli=false",
        f"--basetemp={directory}/contract",
    ]
    environment = {**environment, "TEST_CLUSTER_URLS": environment["DSS_URLS"]}
    assert LocalNode.pool is not None
    done = LocalNode.pool.run([*command, *arguments], ROOT, environment, 900)
    assert done.returncode == 0, done.stdout + done.stderr


def test_calls_of_the_contract(encrypted: Encrypted, tmp_path: Path) -> None:
    """That the contract can be tested at a real cluster. `make encrypted` tests all of it."""
    run_contract(encrypted.environment, tmp_path, *CONTRACT, "-k", "test_publish or test_release or test_compare_and_set")


@pytest.mark.skipif("TEST_ENCRYPTED" not in os.environ, reason="`make encrypted` runs it")
@pytest.mark.parametrize("way", ["nginx", "nodes"])
def test_the_whole_contract(encrypted: Encrypted, tmp_path: Path, way: str) -> None:
    run_contract(encrypted.environment if way == "nginx" else encrypted.direct_environment, tmp_path, *CONTRACT)


@pytest.mark.skipif("TEST_ENCRYPTED" not in os.environ, reason="`make encrypted` runs it")
def test_the_postman_collection(encrypted: Encrypted, tmp_path: Path) -> None:
    if shutil.which("npx") is None:
        pytest.skip("the Postman collection was not run: there is no npx on this machine; install Node.js")
    if subprocess.run([*NEWMAN, "--version"], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("the Postman collection was not run: npx cannot get newman")
    report = tmp_path / "newman.json"
    command = [*NEWMAN, "run", str(COLLECTION), "-e", str(ROOT / "postman/local.postman_environment.json")]
    for number, url in enumerate(encrypted.urls, 1):
        command += ["--env-var", f"baseUrlNode{number}={url}"]
    command += ["--env-var", f"apiToken={TOKEN}", "--ssl-extra-ca-certs", str(encrypted.ca)]
    command += ["--reporters", "json", "--reporter-json-export", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert report.exists(), done.stdout + done.stderr
    run = json.loads(report.read_text())["run"]
    failures = [f"{one['source'].get('name')}: {one['error']['test']}: {one['error']['message']}" for one in run["failures"]]
    assert not failures, "\n".join(failures)
    assert done.returncode == 0


def test_locust(encrypted: Encrypted, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        str(ROOT / "benchmarks/load_test_scenarios.py"),
        "--headless",
        "--only-summary",
    ]
    command += ["-u", os.environ.get("TEST_LOCUST_USERS", "12"), "-r", "12", "--host", ",".join(encrypted.urls)]
    calls = 0
    # On a busy machine, the first one may end before the first call.
    for duration in (os.environ.get("TEST_LOCUST_TIME", "8s"), "60s"):
        if not calls:
            run = [*command, "-t", duration, "--csv", str(tmp_path / "locust")]
            done = subprocess.run(
                run, cwd=ROOT, env=encrypted.environment, capture_output=True, text=True, timeout=600, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            total = (tmp_path / "locust_stats.csv").read_text().splitlines()[-1].split(",")
            assert total[0:2] == ["", "Aggregated"]
            assert int(total[3]) == 0, "failures"
            calls = int(total[2])
    assert calls > 0
