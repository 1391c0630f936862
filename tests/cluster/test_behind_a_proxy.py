"""Nodes behind a real nginx that ends TLS, with the configuration of docs/how-to/behind-a-proxy.md."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

from dss_dev.local_cluster import HOST, ROOT, LocalCluster, LocalNode, free_ports
from dss_dev.prepared_pages import ENVIRONMENT
from dss_dev.websocket import WebSocket, connect

GUIDE = (ROOT / "docs/how-to/behind-a-proxy.md").read_text()
NAME = "dss.example.org"
#: from where nginx connects to the nodes, so that it is not the same as its clients'
PROXY = "127.0.0.2"
CLIENT = "127.0.0.3"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(NGINX is None, reason="nginx not found: install the package `nginx` (apt install nginx)"),
]


def block(language: str) -> str:
    found = re.search(rf"^   ```{language}\n(.*?)^   ```$", GUIDE, flags=re.MULTILINE | re.DOTALL)
    assert found is not None
    return re.sub(r"^   ", "", found.group(1), flags=re.MULTILINE)


def settings_of_the_guide() -> dict[str, str]:
    settings = dict(line.split("=", 1) for line in block("sh").splitlines())
    # A proxy brings others to a node on loopback: without a token, it would be closed.
    return {**settings, "DSS_TRUSTED_PROXIES": PROXY, "DSS_OPEN": "true"}


@dataclass
class Front:
    """A node, and the port at which nginx serves it."""

    node: LocalNode
    port: int
    trust: ssl.SSLContext

    @property
    def host(self) -> str:
        return f"{NAME}:{self.port}"

    def call(self, method: str, path: str, body: bytes = b"", **headers: str) -> Any:
        connection = http.client.HTTPSConnection(HOST, self.port, timeout=60, context=self.trust, source_address=(CLIENT, 0))
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body or None, {"Host": self.host, **fields})
        answer = connection.getresponse()
        answer.content = answer.read()  # type: ignore[attr-defined]
        connection.close()
        return answer

    def websocket(self, origin: str) -> WebSocket:
        transport = socket.create_connection((HOST, self.port), timeout=60, source_address=(CLIENT, 0))
        url = f"wss://{self.host}/ws"
        return connect(url, sock=transport, ssl=self.trust, origin=Origin(origin))


def nginx_conf(directory: Path, fronts: dict[str, tuple[int, int]]) -> str:
    """The guide's file, once for each node: name -> nginx's port and the node's."""
    servers = []
    for name, (port, node_port) in fronts.items():
        text = block("nginx")
        text = re.sub(r"(    server 10\.0\.0\.\d:8101;\n)+", f"    server {HOST}:{node_port};\n", text)
        for old, new in {
            "listen 443 ssl": f"listen {HOST}:{port} ssl",
            "/etc/nginx/": f"{directory}/",
            "upstream dss ": f"upstream {name} ",
            "http://dss;": f"http://{name};\n        proxy_bind {PROXY};",
        }.items():
            assert old in text
            text = text.replace(old, new)
        servers.append(text if not servers else re.sub(r"^map .*?^}\n", "", text, flags=re.MULTILINE | re.DOTALL))
    paths = "".join(
        f"    {kind}_temp_path {directory}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"daemon off;\nuser root;\npid {directory}/nginx.pid;\nerror_log {directory}/error.log;\nevents {{}}\n"
        f"http {{\n    access_log off;\n{paths}{''.join(servers)}}}\n"
    )


@pytest.fixture(scope="module")
def fronts(tmp_path_factory: pytest.TempPathFactory, prepare_pages) -> Iterator[dict[str, Front]]:
    """A node on each server, behind one nginx."""
    directory = tmp_path_factory.mktemp("proxy")
    ports = free_ports(4)
    clusters = {}
    for server, port in zip(("daphne", "uvicorn"), ports[:2], strict=True):
        environment = {**ENVIRONMENT, **settings_of_the_guide(), "DSS_SERVER": server}
        clusters[server] = LocalCluster(directory / server, [port], environment)
        prepare_pages(clusters[server])
        clusters[server].start()
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -keyout dss.key -out dss.crt"
    names = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME},IP:{HOST}"]
    subprocess.run([*command.split(), *names], cwd=directory, check=True, capture_output=True)
    trust = ssl.create_default_context(cafile=str(directory / "dss.crt"))
    found = {
        server: Front(cluster.nodes[0], port, trust) for (server, cluster), port in zip(clusters.items(), ports[2:], strict=True)
    }
    (directory / "nginx.conf").write_text(nginx_conf(directory, {name: (one.port, one.node.port) for name, one in found.items()}))
    assert NGINX is not None
    nginx = subprocess.Popen([NGINX, "-p", str(directory), "-c", str(directory / "nginx.conf")])
    try:
        for cluster in clusters.values():
            cluster.wait_ready()
        yield found
    finally:
        nginx.terminate()
        nginx.wait()
        for cluster in clusters.values():
            cluster.stop()


@pytest.fixture(params=["daphne", "uvicorn"])
def front(fronts: dict[str, Front], request: pytest.FixtureRequest) -> Front:
    return fronts[request.param]


def test_a_browser_logs_in_to_the_admin(front: Front) -> None:
    page = front.call("GET", "/admin/login/")
    assert page.status == 200
    assert page.headers["Strict-Transport-Security"] == "max-age=31536000"
    for path in ("/raft/leader", "/nothing", "/metrics", "/static/dss_console/pages.css"):
        answer = front.call("GET", path)
        assert answer.headers.get_all("Strict-Transport-Security") == ["max-age=31536000"], path
        assert answer.headers.get_all("X-Content-Type-Options") == ["nosniff"], path
    cookie = page.headers["Set-Cookie"]
    assert "Secure" in cookie
    token = re.search(rb'csrfmiddlewaretoken" value="([^"]*)"', page.content)
    assert token is not None
    form = urlencode({"csrfmiddlewaretoken": token[1].decode(), "username": "admin", "password": "test"}).encode()
    fields = {"Cookie": cookie.partition(";")[0], "Content_Type": "application/x-www-form-urlencoded"}
    origin = f"https://{front.host}"
    done = front.call("POST", "/admin/login/?next=/admin/", form, Origin=origin, Referer=f"{origin}/admin/login/", **fields)
    assert done.status == 302
    assert all("Secure" in cookie for cookie in done.headers.get_all("Set-Cookie"))
    assert front.call("POST", "/admin/login/", form, Origin=f"http://{front.host}", **fields).status == 403, "another scheme"
    assert front.call("POST", "/admin/login/", form, Origin="https://evil.example", **fields).status == 403


def test_calls_know_their_client(front: Front) -> None:
    """Whatever the client writes into X-Forwarded-For, and also on the JSON fast path, pages and WebSockets."""
    request = json.dumps({"key": "k", "reason": "test"}).encode()
    for spoofed in ("6.6.6.6", "127.0.0.2", "garbage", ", ".join(["6.6.6.6"] * 100)):
        answer = front.call(
            "POST",
            "/lock/force_release",
            request,
            Content_Type="application/json",
            X_Forwarded_For=spoofed,
            Origin=f"https://{front.host}",
        )
        assert answer.status in (200, 404), answer.content
    with front.websocket(f"https://{front.host}") as client:
        client.send(json.dumps({"id": 1, "op": "locks.force_release", "request": {"key": "k", "reason": "test"}}))
        assert json.loads(client.recv(timeout=60))["id"] == 1
    records = front.node.call("GET", "/audit").json["records"]
    assert {record["address"] for record in records if record["operation"] == "locks.force_release"} == {CLIENT}
    assert {record["via"] for record in records} >= {"http", "websocket"}


def test_a_websocket_of_another_site_is_refused(front: Front) -> None:
    with pytest.raises(InvalidStatus) as refused:
        front.websocket("https://evil.example")
    assert refused.value.response.status_code == 403


def test_only_the_proxy_is_believed(front: Front) -> None:
    """A client that reaches the node past the proxy cannot name another address, scheme or host."""
    headers = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https", "X-Forwarded-Host": NAME}
    before = len(front.node.call("GET", "/audit").json["records"])
    front.node.call("POST", "/lock/force_release", {"key": "k", "reason": "test"}, headers=headers)
    records = front.node.call("GET", "/audit").json["records"]
    assert len(records) == before + 1
    assert HOST in {record["address"] for record in records}
    assert "6.6.6.6" not in {record["address"] for record in records}
    page = front.node.call("GET", "/admin/login/", headers=headers)
    assert "strict-transport-security" not in page.headers
    assert "strict-transport-security" not in front.node.call("GET", "/raft/leader", headers=headers).headers


def test_another_host_is_refused(front: Front) -> None:
    assert front.call("GET", "/ready", X_Forwarded_Host="evil.example").status == 200, "nginx sets that header itself"
    connection = http.client.HTTPSConnection(HOST, front.port, timeout=60, context=front.trust)
    connection.request("GET", "/ready", headers={"Host": "evil.example"})
    assert connection.getresponse().status == 400
    connection.close()
