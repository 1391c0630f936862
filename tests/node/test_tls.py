"""TLS on the service port, with each server: versions and ciphers, certificates of clients, and files that change while the node runs."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

from dss_api.tls import CannotUse, ServerTls, TlsFiles
from dss_client import Client, Unavailable, WrongServer
from dss_dev.local_cluster import HOST, POLL_S, LocalCluster, LocalNode, free_ports
from dss_dev.prepared_pages import ENVIRONMENT, prepare_pages
from dss_dev.websocket import connect
from dss_project.certificates import make_authority, make_certificate

PATIENCE_S = 60.0


class Pki:
    """An authority, certificates of it, and a list of those that it has revoked."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.authority = directory / "ca.pem", directory / "ca.key"
        make_authority(*self.authority)

    @property
    def ca(self) -> Path:
        return self.authority[0]

    def make(self, name: str, *names: str, days: float = 30, is_client: bool = False) -> tuple[Path, Path, x509.Certificate]:
        files = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        made = make_certificate(*files, self.authority, names or (name,), days=days, is_client=is_client)
        return *files, made

    def revoke(self, path: Path, *certificates: x509.Certificate, days: float = 30) -> None:
        """Write a revocation list with these certificates."""
        now = datetime.now(UTC)
        issuer = x509.load_pem_x509_certificate(self.ca.read_bytes())
        builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.subject).last_update(now - timedelta(hours=1))
        builder = builder.next_update(now + timedelta(days=days))
        for one in certificates:
            revoked = x509.RevokedCertificateBuilder().serial_number(one.serial_number).revocation_date(now - timedelta(hours=1))
            builder = builder.add_revoked_certificate(revoked.build())
        key = serialization.load_pem_private_key(self.authority[1].read_bytes(), None)
        part = path.with_suffix(".part")
        part.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))  # type: ignore[arg-type]
        part.replace(path)


@dataclass
class Served:
    """A node that speaks HTTPS."""

    node: LocalNode
    pki: Pki

    def context(self, certificate: str = "", pki: Pki | None = None) -> ssl.SSLContext:
        """For a client with this certificate."""
        context = ssl.create_default_context(cafile=str(self.pki.ca))
        if certificate:
            directory = (pki or self.pki).directory
            context.load_cert_chain(directory / f"{certificate}.pem", directory / f"{certificate}.key")
        return context

    def open(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        tcp = socket.create_connection((HOST, self.node.port), PATIENCE_S)
        return context.wrap_socket(tcp, server_hostname=HOST)

    def get(self, path: str, context: ssl.SSLContext | None = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPSConnection(HOST, self.node.port, timeout=PATIENCE_S, context=context or self.node.tls)
        connection.request("GET", path)
        return connection.getresponse()

    def metric(self, name: str) -> float:
        text = self.get("/metrics").read().decode()
        found = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        assert len(found) == 1, f"{name} in\n{text}"
        return float(found[0].split()[-1])

    def serial(self) -> int:
        """Of the certificate that a new connection gets."""
        with self.open(self.node.tls) as tls:  # type: ignore[arg-type]
            data = tls.getpeercert(binary_form=True)
        assert data is not None
        return x509.load_der_x509_certificate(data).serial_number


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(POLL_S)


def start(directory: Path, server: str, **settings: str) -> Iterator[Served]:
    pki = Pki(directory / "pki")
    # As certbot does it: the names are links to the files of the newest certificate.
    (directory / "1").mkdir()
    certificate, key, _ = pki.make("node", HOST, "localhost")
    shutil.copy(certificate, directory / "1/cert.pem")
    shutil.copy(key, directory / "1/key.pem")
    (directory / "live").symlink_to("1")
    environment = {
        **ENVIRONMENT,
        "DSS_SERVER": server,
        "DSS_TLS_CERT_FILE": str(directory / "live/cert.pem"),
        "DSS_TLS_KEY_FILE": str(directory / "live/key.pem"),
        "DSS_CA_FILE": str(pki.ca),
        "DSS_HSTS_SECONDS": "60",
        **settings,
    }
    if "DSS_TLS_CLIENT_CA_FILE" in settings:
        client, client_key, _ = pki.make("client", is_client=True)
        environment |= {"DSS_CLIENT_CERT_FILE": str(client), "DSS_CLIENT_KEY_FILE": str(client_key)}
    cluster = LocalCluster(directory / "data", free_ports(1), environment)
    prepare_pages(cluster)
    cluster.start()
    try:
        cluster.wait_ready()
        yield Served(cluster.nodes[0], pki)
    finally:
        cluster.stop()


@pytest.fixture(scope="module", params=["daphne", "uvicorn"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from start(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A node that wants certificates of its clients, and has a revocation list."""
    directory = tmp_path_factory.mktemp("guarded")
    pki = Pki(directory / "pki")
    pki.revoke(directory / "crl.pem")
    yield from start(
        directory, "uvicorn", DSS_TLS_CLIENT_CA_FILE=str(pki.ca), DSS_TLS_CRL_FILE=str(directory / "crl.pem"), DSS_OPEN="true"
    )


# ------------------------------------------------------------------ protocol


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("version", "is_accepted"), [("TLSv1", False), ("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)])
def test_versions(served: Served, version: str, is_accepted: bool) -> None:
    context = served.context()
    # OpenSSL's own rules would keep the client from trying the old versions.
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    if not is_accepted:
        before = served.metric('dss_tls_handshakes_total{result="protocol"}')
        with pytest.raises(ssl.SSLError, match=r"PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL|NO_PROTOCOLS"):
            served.open(context)
        assert served.metric('dss_tls_handshakes_total{result="protocol"}') >= before
        return
    with served.open(context) as tls:
        assert tls.version() == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version]


@pytest.mark.parametrize("cipher", ["aNULL", "eNULL", "AES128-SHA", "AES256-SHA256", "ECDHE-ECDSA-AES128-SHA", "PSK"])
def test_weak_ciphers_are_refused(served: Served, cipher: str) -> None:
    context = served.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.set_ciphers(f"{cipher}:@SECLEVEL=0")
    except ssl.SSLError:
        pytest.skip(f"this OpenSSL does not know {cipher}")
    with pytest.raises(ssl.SSLError, match=r"HANDSHAKE_FAILURE|NO_CIPHERS|NO_SHARED_CIPHER"):
        served.open(context)


def test_the_strong_ciphers_have_forward_secrecy(served: Served) -> None:
    context = served.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with served.open(context) as tls:
        name = tls.cipher()[0]  # type: ignore[index]
    assert name.startswith("ECDHE-")
    assert "GCM" in name or "CHACHA20" in name


def test_a_client_that_offers_http_2_gets_http_1_1(served: Served) -> None:
    context = served.context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with served.open(context) as tls:
        assert tls.selected_alpn_protocol() == "http/1.1"
        assert tls.compression() is None


def test_renegotiation_is_refused(served: Served) -> None:
    """A client could make the node compute without end."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl not found")
    import subprocess

    command = [openssl, "s_client", "-connect", f"{HOST}:{served.node.port}", "-tls1_2", "-CAfile", str(served.pki.ca)]
    done = subprocess.run(command, input=b"R\n", capture_output=True, timeout=PATIENCE_S, check=False)
    assert b"no renegotiation" in done.stderr or b"no renegotiation" in done.stdout, done.stderr


# ------------------------------------------------------------ calls and pages


def test_calls_and_pages(served: Served) -> None:
    reply = served.node.call("POST", "/lock/acquire", {"key": "tls", "client": "a"})
    assert reply.status == 200
    large = "x" * 250_000
    assert served.node.call("POST", "/cache/put", {"key": "large", "value": large}).status == 200
    assert served.node.call("GET", "/cache/get?key=large").json["value"] == large
    member = served.node.status()["members"][0]  # type: ignore[index]
    assert member["url"] == served.node.url
    assert served.node.url.startswith("https://")
    page = served.get("/admin/login/")
    assert page.status == 200
    assert "Secure" in page.headers["Set-Cookie"]
    assert b"openapi" in served.get("/api/schema").read()
    assert served.get("/static/admin/css/base.css").status == 200


def test_every_answer_tells_browsers_to_stay_with_https(served: Served) -> None:
    for path in ("/raft/leader", "/nothing", "/metrics", "/admin/login/", "/static/admin/css/base.css"):
        assert served.get(path).headers.get_all("Strict-Transport-Security") == ["max-age=60"], path


def test_the_admin_knows_that_the_connection_is_secure(served: Served) -> None:
    """Django compares the scheme of the browser's Origin with that of the request."""
    from urllib.parse import urlencode

    page = served.get("/admin/login/")
    text = page.read().decode()
    token = text.split('csrfmiddlewaretoken" value="')[1].split('"')[0]
    cookie = page.headers["Set-Cookie"].partition(";")[0]
    form = urlencode({"csrfmiddlewaretoken": token, "username": "admin", "password": "test"}).encode()
    statuses = {}
    for origin in (f"https://{HOST}:{served.node.port}", f"http://{HOST}:{served.node.port}"):
        headers = {"Cookie": cookie, "Content-Type": "application/x-www-form-urlencoded", "Origin": origin}
        statuses[origin.partition(":")[0]] = served.node.call("POST", "/admin/login/", form, headers=headers).status
    assert statuses == {"https": 302, "http": 403}


def test_a_websocket_and_its_origin(served: Served) -> None:
    url, host = served.node.websocket_url, f"{HOST}:{served.node.port}"
    assert url.startswith("wss://")
    with connect(url, ssl=served.node.tls, origin=Origin(f"https://{host}")) as client:
        client.send(json.dumps({"id": 1, "op": "raft.status"}))
        assert json.loads(client.recv(timeout=PATIENCE_S))["id"] == 1
    with pytest.raises(InvalidStatus), connect(url, ssl=served.node.tls, origin=Origin(f"http://{host}")):
        pass
    call = {"key": "tls", "client": "a"}
    assert served.node.call("POST", "/lock/acquire", call, headers={"Origin": f"http://{host}"}).status == 403
    assert served.node.call("POST", "/lock/acquire", call, headers={"Origin": f"https://{host}"}).status == 200


@pytest.mark.parametrize("transport", ["websocket", "http"])
def test_the_python_client(served: Served, transport: str) -> None:
    with Client(served.node.url, transport=transport, tls=served.node.tls) as dss:  # type: ignore[arg-type]
        with dss.lock(f"client-{transport}"):
            pass
        dss.cache.put("k", "x" * 250_000)
        assert dss.cache.get("k") == "x" * 250_000


@pytest.mark.parametrize("transport", ["websocket", "http"])
def test_the_python_client_trusts_no_other_authority(served: Served, transport: str) -> None:
    strange = ssl.create_default_context()
    refusal = pytest.raises(WrongServer, match=r"its certificate is not trusted.*DSS_CA_FILE")
    with Client(served.node.url, transport=transport, tls=strange) as dss, refusal:  # type: ignore[arg-type]
        dss.cache.get("k")


def test_plain_http_is_told_to_use_https(served: Served) -> None:
    connection = http.client.HTTPConnection(HOST, served.node.port, timeout=PATIENCE_S)
    connection.request("GET", "/health")
    answer = connection.getresponse()
    assert answer.status == 400
    assert "https" in json.loads(answer.read())["detail"]
    with socket.create_connection((HOST, served.node.port), PATIENCE_S) as noise:
        noise.sendall(b"\x16\x03\x01\x00\x05hello")
        # An alert and the end of the connection.
        while noise.recv(4096):
            pass
    assert "Traceback" not in served.node.log_path.read_text()


def test_a_client_that_hangs_up_gives_its_lock_back(served: Served) -> None:
    """With close_notify, and without."""
    for key, is_polite in (("polite", True), ("rude", False)):
        served.node.call("POST", "/lock/acquire", {"key": key, "client": "holder"})
        body = json.dumps({"key": key, "client": "waiter", "wait_ms": 20_000}).encode()
        tls = served.open(served.node.tls)  # type: ignore[arg-type]
        tls.sendall(b"POST /lock/acquire HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        tls.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))

        def waiters(key: str = key) -> int:
            return int(served.node.call("GET", f"/lock/status?key={key}").json["waiter_count"])

        wait_until(lambda: waiters() == 1)
        if is_polite:
            tls.settimeout(PATIENCE_S)
            # The answer that the call was cancelled comes before the node's own close_notify.
            with pytest.raises(ssl.SSLError, match="APPLICATION_DATA_AFTER_CLOSE_NOTIFY"):
                tls.unwrap()
        tls.close()
        wait_until(lambda: waiters() == 0)


# ------------------------------------------------------------------- reload


def test_a_certificate_is_replaced_while_connections_live(served: Served, tmp_path: Path) -> None:
    live = Path(served.node.environment["DSS_TLS_CERT_FILE"]).parent
    directory = live.parent
    url = served.node.websocket_url
    before = served.serial()
    with connect(url, ssl=served.node.tls) as client:
        certificate, key, made = served.pki.make("renewed", HOST, "localhost")
        (directory / "2").mkdir()
        shutil.copy(certificate, directory / "2/cert.pem")
        shutil.copy(key, directory / "2/key.pem")
        (directory / "new").symlink_to("2")
        (directory / "new").replace(live)
        wait_until(lambda: served.serial() == made.serial_number)
        assert made.serial_number != before
        client.send(json.dumps({"id": 1, "op": "raft.status"}))
        assert json.loads(client.recv(timeout=PATIENCE_S))["id"] == 1
    expiry = served.metric('dss_tls_expiry_timestamp_seconds{file="certificate"}')
    assert expiry == made.not_valid_after_utc.timestamp()

    # A pair that does not match is not used, and the log says why.
    failed = served.metric('dss_tls_reloads_total{result="failed"}')
    shutil.copy(served.pki.make("other", HOST)[1], live / "key.pem")
    wait_until(lambda: served.metric('dss_tls_reloads_total{result="failed"}') > failed)
    assert served.serial() == made.serial_number
    assert served.metric("dss_tls_files_up_to_date") == 0
    assert "the key belongs to another certificate" in served.node.log_path.read_text()
    shutil.copy(key, live / "key.pem")
    wait_until(lambda: served.metric("dss_tls_files_up_to_date") == 1)


def test_sighup_reads_the_files_again(served: Served) -> None:
    import signal

    before = served.metric('dss_tls_reloads_total{result="done"}')
    served.node.send_signal(signal.SIGHUP)
    wait_until(lambda: served.metric('dss_tls_reloads_total{result="done"}') > before)
    assert served.node.is_running


# ------------------------------------------------------ certificates of clients


def refused(served: Served, context: ssl.SSLContext) -> str:
    """Why a client gets no answer. With TLS 1.3 it learns that with the first read."""
    try:
        with served.open(context) as tls:
            tls.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = tls.recv(4096)
    except (ssl.SSLError, ConnectionError) as error:
        return getattr(error, "reason", None) or type(error).__name__
    return "" if answer else "closed"


def test_only_clients_with_a_valid_certificate_are_served(guarded: Served, tmp_path: Path) -> None:
    guarded.pki.make("expired", days=-1, is_client=True)
    foreign = Pki(tmp_path / "foreign")
    foreign.make("client", is_client=True)
    guarded.pki.make("server")
    assert refused(guarded, guarded.context("client")) == ""
    count = 'dss_tls_handshakes_total{result="client_certificate"}'
    before = guarded.metric(count)
    assert refused(guarded, guarded.context())
    assert refused(guarded, guarded.context("expired"))
    assert refused(guarded, guarded.context("client", foreign))
    assert refused(guarded, guarded.context("server")), "a certificate for servers"
    assert guarded.metric(count) == before + 4
    assert "Traceback" not in guarded.node.log_path.read_text()
    with (
        Client(guarded.node.url, tls=guarded.context(), timeout=3) as dss,
        pytest.raises(Unavailable, match="certificate required"),
    ):
        dss.cache.get("k")
    with Client(guarded.node.url, tls=guarded.node.tls) as dss:
        dss.cache.get("k")


def test_a_revoked_certificate_is_refused_and_its_connections_end(guarded: Served) -> None:
    crl = Path(guarded.node.environment["DSS_TLS_CRL_FILE"])
    _, _, lost = guarded.pki.make("lost", is_client=True)
    guarded.pki.make("kept", is_client=True)
    url = guarded.node.websocket_url
    # The same context: it could resume its session.
    context = guarded.context("lost")
    assert refused(guarded, context) == ""
    with connect(url, ssl=context) as revoked, connect(url, ssl=guarded.context("kept")) as other:
        guarded.pki.revoke(crl, lost)
        with pytest.raises(Exception, match=r"no close frame|reset|EOF|closed"):
            revoked.recv(timeout=PATIENCE_S)
        other.send(json.dumps({"id": 1, "op": "raft.status"}))
        assert json.loads(other.recv(timeout=PATIENCE_S))["id"] == 1
    assert refused(guarded, context)
    assert refused(guarded, guarded.context("lost"))
    assert refused(guarded, guarded.context("client")) == ""


# -------------------------------------------------------------- broken files


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    certificate, key, _ = pki.make("node")
    _, other_key, _ = pki.make("other")
    (tmp_path / "empty").write_text("")

    def why(**files: object) -> str:
        given = {"certificate": certificate, "key": key, **files}
        with pytest.raises(CannotUse) as error:
            ServerTls(TlsFiles(**{name: str(path) for name, path in given.items()}))
        return str(error.value)

    assert "another certificate" in why(key=other_key)
    assert "No such file" in why(certificate=tmp_path / "missing")
    assert "not PEM" in why(certificate=tmp_path / "empty")
    assert "client CA" in why(client_ca=tmp_path / "empty")
    assert "revocation list" in why(client_ca=pki.ca, crl=tmp_path / "empty")
    encrypted = tmp_path / "encrypted.key"
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    encrypted.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
        )
    )
    assert "the key is encrypted" in why(key=encrypted)
    assert os.stat(key).st_mode & 0o077 == 0
