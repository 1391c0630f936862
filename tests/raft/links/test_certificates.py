"""Certificates made from the secret, the change of the secret, and certificates of an operator's own authority."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import itertools
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from dss_raft.net import certificates
from dss_raft.net.certificates import (
    CertificateFiles,
    CredentialsUnusable,
    FileCredentials,
    SecretCredentials,
    authority,
    opaque_name,
)
from dss_raft.net.wire import Reason, WireError

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


REVOKED = "its certificate is revoked, or that of an authority between"
KNOWN_POINT = "8c930379d978c68acda77d4d34d1b292"
KNOWN_NAME = "dss:5f24045a1e163f86f48c8690803ae52f330b79acc1e48510e9ab8a2f90b37fe5"


# ------------------------------------------------------------ of the secret


def test_every_release_computes_the_same_authority_and_names():
    """Nodes of two releases could not link otherwise."""
    made = authority("a secret for this test")
    point = made.key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    assert hashlib.sha256(point).hexdigest()[:32] == KNOWN_POINT
    assert made.subject.rfc4514_string() == f"CN=dss {KNOWN_POINT[:16]}"
    assert opaque_name(made, "dss", "node-1") == KNOWN_NAME


def test_these_certificates_are_valid_whatever_time_a_clock_shows(ends):
    dialer, acceptor = ends.tls("a", dials="b"), ends.tls("b")
    ends.shake(dialer, acceptor)
    for found in (authority("x").certificate, x509.load_der_x509_certificate(acceptor._pipe.verified_chain()[0])):
        assert (found.not_valid_before_utc.year, found.not_valid_after_utc.year) == (1970, 9999)


def test_the_key_is_in_no_file_afterwards(tmp_path):
    SecretCredentials("s", "c", "a", directory=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


OLD, NEW = ("old", ""), ("new", "")
BOTH = ("new", "old")


@pytest.mark.parametrize(("dials", "accepts"), list(itertools.product((OLD, BOTH, NEW), repeat=2)))
def test_during_a_change_of_the_secret_nodes_with_both_link_with_all_others(ends, dials, accepts):
    def side(node_id: str, secrets: tuple[str, str], dials: str | None = None):
        return ends.tls(node_id, dials, credentials=SecretCredentials(secrets[0], "c", node_id, previous=secrets[1]))

    dialer, acceptor = side("a", dials, "b"), side("b", accepts)
    if {dials, accepts} == {OLD, NEW}:
        with pytest.raises(WireError) as caught:
            ends.shake(dialer, acceptor)
        assert caught.value.reason is Reason.WRONG_SECRET
        return
    ends.shake(dialer, acceptor)
    assert dialer.is_proven
    assert acceptor.is_proven


# ------------------------------------------------------------ of an operator's authority


@dataclass
class Issued:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class Operator:
    """A certificate authority."""

    def __init__(self, name: str = "operator") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.own = self.issue(None, is_ca=True)

    def issue(self, uri: str | None, *, begins=NOW - DAY, ends=NOW + 365 * DAY, is_ca: bool = False) -> Issued:
        key = self.key if is_ca else ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name if is_ca else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "member")]))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        if uri is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        return Issued(builder.sign(self.key, hashes.SHA256()), key)

    def subordinate(self, name: str) -> Operator:
        """An authority that this one has certified."""
        made = Operator(name)
        made.own = Issued(
            x509.CertificateBuilder()
            .subject_name(made.name)
            .issuer_name(self.name)
            .public_key(made.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - DAY)
            .not_valid_after(NOW + 365 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256()),
            made.key,
        )
        return made

    def revoke(self, *issued: Issued, ends=NOW + DAY) -> bytes:
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.name).last_update(NOW - 2 * DAY).next_update(ends)
        for one in issued:
            revoked = x509.RevokedCertificateBuilder().serial_number(one.certificate.serial_number).revocation_date(NOW)
            builder = builder.add_revoked_certificate(revoked.build())
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.fixture(scope="module")
def operator() -> Operator:
    return Operator()


class Files:
    """The files of one node."""

    def __init__(self, directory: Path, node_id: str, ca: Operator, issued: Issued | None = None) -> None:
        self.directory = directory / node_id
        self.directory.mkdir()
        self.node_id = node_id
        self.issued = issued or ca.issue(f"dss://c/{node_id}")
        self.write("certificate", self.issued.pem())
        self.write("key", self.issued.key_pem())
        self.write("ca", ca.own.pem())
        self.write("crl", ca.revoke())

    def write(self, name: str, data: bytes) -> None:
        """Replace a file as tools do: atomically, with another inode."""
        part = self.directory / "part"
        part.write_bytes(data)
        os.replace(part, self.directory / name)

    def load(self) -> FileCredentials:
        paths = [str(self.directory / name) for name in ("certificate", "key", "ca", "crl")]
        return FileCredentials(CertificateFiles(*paths), "c", self.node_id)


@pytest.fixture
def files(tmp_path, operator):
    """`files("a")` writes the files of a node, and `files("a", issued)` with this certificate."""
    return lambda node_id, issued=None, ca=operator: Files(tmp_path, node_id, ca, issued)


def link(ends, a: FileCredentials, b: FileCredentials) -> None:
    """Raises WireError when one of the sides refuses the other."""
    dialer, acceptor = ends.tls("a", dials="b", credentials=a), ends.tls("b", credentials=b)
    ends.shake(dialer, acceptor)
    assert dialer.is_proven
    assert acceptor.is_proven


def refused(ends, a: FileCredentials, b: FileCredentials) -> WireError:
    with pytest.raises(WireError) as caught:
        link(ends, a, b)
    return caught.value


def test_members_of_one_authority_link(ends, files):
    link(ends, files("a").load(), files("b").load())


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ({"begins": NOW - 3 * DAY, "ends": NOW - 2 * DAY}, "expired"),
        ({"begins": NOW + 2 * DAY, "ends": NOW + 3 * DAY}, "not yet valid"),
    ],
)
def test_a_certificate_out_of_its_time_is_refused_by_both_sides(ends, files, operator, times, words):
    issued = operator.issue("dss://c/b", **times)
    with capture_logs() as logs:
        a, b = files("a").load(), files("b", issued).load()
    assert [line["event"] for line in logs] == ["raft.certificate_ends"]
    error = refused(ends, a, b)
    assert error.reason is Reason.CERTIFICATE
    assert words in error.detail
    dialer, acceptor = ends.tls("b", dials="a", credentials=b), ends.tls("a", credentials=a)
    with pytest.raises(WireError) as caught:
        ends.shake(dialer, acceptor)
    assert caught.value.reason is Reason.CERTIFICATE


def test_a_certificate_of_another_authority_is_refused(ends, files):
    foreign = files("b", ca=Operator())
    error = refused(ends, files("a").load(), foreign.load())
    assert error.reason is Reason.CERTIFICATE
    assert "DSS_PEER_CA_FILE" in error.detail


def test_one_with_the_name_of_the_authority_and_another_key_is_refused(ends, files):
    foreign = files("b", ca=Operator("operator"))
    assert refused(ends, files("a").load(), foreign.load()).reason is Reason.CERTIFICATE


def test_a_member_with_a_certificate_of_the_secret_is_refused_and_refuses(ends, files):
    assert refused(ends, files("a").load(), ends.credentials("b")).reason is Reason.CERTIFICATE
    assert refused(ends, ends.credentials("a"), files("b").load()).reason is Reason.WRONG_SECRET


@pytest.mark.parametrize("revoked", ["a", "b"])
def test_a_revoked_certificate_is_refused(ends, files, operator, revoked):
    sides = {"a": files("a"), "b": files("b")}
    (other,) = set(sides) - {revoked}
    sides[other].write("crl", operator.revoke(sides[revoked].issued))
    error = refused(ends, sides["a"].load(), sides["b"].load())
    assert (error.reason, error.detail) == (Reason.CERTIFICATE, REVOKED)


@pytest.mark.parametrize("dials", ["a", "b"])
def test_a_revoked_authority_between_is_refused(ends, files, operator, dials):
    """Each list must be of an authority in DSS_PEER_CA_FILE: the one between, too, if it has a list."""
    between = operator.subordinate("between")
    a, b = files("a"), files("b", between.issue("dss://c/b"))
    b.write("certificate", b.issued.pem() + between.own.pem())

    def shake() -> None:
        of = {"a": a.load(), "b": b.load()}
        (accepts,) = set(of) - {dials}
        ends.shake(ends.tls(dials, dials=accepts, credentials=of[dials]), ends.tls(accepts, credentials=of[accepts]))

    shake()
    a.write("crl", operator.revoke(between.own))
    with pytest.raises(WireError) as caught:
        shake()
    assert caught.value.detail == REVOKED
    a.write("ca", operator.own.pem() + between.own.pem())
    a.write("crl", operator.revoke() + between.revoke())
    shake()
    a.write("crl", operator.revoke() + between.revoke(b.issued))
    with pytest.raises(WireError) as caught:
        shake()
    assert caught.value.detail == REVOKED


def test_a_list_that_is_out_of_date_still_counts_and_is_reported(ends, files, operator):
    a, b = files("a"), files("b")
    a.write("crl", operator.revoke(b.issued, ends=NOW - DAY))
    with capture_logs() as logs:
        credentials = a.load()
    assert [line["event"] for line in logs] == ["raft.revocation_list_out_of_date"]
    assert refused(ends, credentials, b.load()).reason is Reason.CERTIFICATE


def expiry(file: str) -> datetime.datetime:
    found = REGISTRY.get_sample_value("raft_peer_tls_expiry_timestamp_seconds", {"file": file})
    return datetime.datetime.fromtimestamp(found or 0, datetime.UTC)


async def test_what_expires_is_shown_and_reported_each_day(files, operator, monkeypatch):
    a = files("a", operator.issue("dss://c/a", ends=NOW + 20 * DAY))
    a.write("crl", operator.revoke(ends=NOW + 2 * DAY))
    with capture_logs() as logs:
        credentials = a.load()
        assert not await credentials.refresh()
        assert logs == []
        assert [expiry(file) - NOW.replace(microsecond=0) for file in ("certificate", "ca", "crl")] == [
            20 * DAY,
            365 * DAY,
            2 * DAY,
        ]
        monkeypatch.setattr(certificates, "_now", lambda: NOW + 7 * DAY)
        for _ in range(3):
            assert not await credentials.refresh()
    assert [line["event"] for line in logs] == ["raft.certificate_ends", "raft.revocation_list_out_of_date"]
    a.write("certificate", a.issued.pem() + operator.subordinate("between").own.pem() + Operator("old").own.pem())
    monkeypatch.setattr(certificates, "_now", lambda: NOW)
    assert await credentials.refresh()


@pytest.mark.parametrize("uri", [None, "dss://c/a", "dss://other/b", "spiffe://c/b"])
def test_a_certificate_that_names_another_node_cannot_be_used(files, operator, uri):
    with pytest.raises(CredentialsUnusable, match="it has no URI dss://c/b"):
        files("b", operator.issue(uri)).load()


def test_a_node_that_uses_the_certificate_of_another_one_is_refused(ends, files, operator):
    a = files("a").load()
    thief = files("d").load()
    error = refused(ends, a, thief)
    assert error.reason is Reason.CERTIFICATE
    assert "it has no URI dss://c/b" in error.detail


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("certificate", b"nothing", "DSS_PEER_CERTIFICATE_FILE"),
        ("key", b"nothing", "DSS_PEER_KEY_FILE"),
        ("ca", b"nothing", "DSS_PEER_CA_FILE"),
        ("crl", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", "DSS_PEER_CRL_FILE"),
        ("crl", Operator("operator").revoke(), "no authority in DSS_PEER_CA_FILE has signed it"),
    ],
)
async def test_files_that_cannot_be_used_are_refused_in_one_line_and_a_node_continues_with_those_that_it_has(
    ends, files, name, data, words
):
    a, b = files("a"), files("b").load()
    credentials = a.load()
    a.write(name, data)
    with pytest.raises(CredentialsUnusable, match=words) as caught:
        a.load()
    assert "\n" not in str(caught.value)
    with capture_logs() as logs:
        assert not await credentials.refresh()
        assert not await credentials.refresh()
    assert [line["event"] for line in logs] == ["raft.certificates_not_loaded"]
    link(ends, credentials, b)


def test_a_missing_file_and_an_encrypted_key_are_refused(files):
    a = files("a")
    (a.directory / "ca").unlink()
    with pytest.raises(CredentialsUnusable, match="No such file"):
        a.load()


async def test_changed_files_are_read_again(ends, files, operator):
    a, b = files("a"), files("b")
    of_a, of_b = a.load(), b.load()
    assert not await of_a.refresh()
    link(ends, of_a, of_b)
    a.write("crl", operator.revoke(b.issued))
    assert await of_a.refresh()
    assert refused(ends, of_a, of_b).reason is Reason.CERTIFICATE
    renewed = operator.issue("dss://c/b")
    b.write("key", renewed.key_pem())
    with capture_logs():
        assert not await of_b.refresh(), "the key does not fit the certificate yet"
    b.write("certificate", renewed.pem())
    assert await of_b.refresh()
    link(ends, of_a, of_b)


async def test_changed_files_are_read_in_a_thread_and_count_when_all_are_read(ends, files, operator, monkeypatch):
    a, b = files("a"), files("b")
    of_a, of_b = a.load(), b.load()
    a.write("crl", operator.revoke(b.issued))
    may_read, read_files = threading.Event(), of_a._read

    def read():
        assert may_read.wait(60), "the loop waits"
        return read_files()

    monkeypatch.setattr(of_a, "_read", read)
    refreshing = asyncio.create_task(of_a.refresh())
    await asyncio.sleep(0.05)
    link(ends, of_a, of_b)
    may_read.set()
    assert await refreshing
    assert refused(ends, of_a, of_b).detail == REVOKED


def test_each_list_counts_for_its_own_authority(ends, files, operator):
    new = Operator("new")
    a, b, d = files("a"), files("b"), operator.issue("dss://c/b")
    a.write("ca", operator.own.pem() + new.own.pem())
    a.write("crl", operator.revoke(d) + new.revoke(b.issued) + operator.revoke())
    link(ends, a.load(), b.load())
    a.write("crl", operator.revoke(d) + new.revoke() + operator.revoke(b.issued))
    assert refused(ends, a.load(), b.load()).detail == REVOKED


def test_a_list_of_an_authority_that_was_removed_is_skipped_with_a_warning(ends, files, operator):
    """A node must be able to start after the authority was changed, also if the list was not removed."""
    old = Operator("old")
    a, b = files("a"), files("b")
    a.write("crl", old.revoke() + operator.revoke(b.issued))
    with capture_logs() as logs:
        credentials = a.load()
    assert [(line["event"], line["issuer"]) for line in logs] == [("raft.revocation_list_skipped", "CN=old")]
    assert refused(ends, credentials, b.load()).detail == REVOKED


def test_the_authority_is_changed_in_two_steps(ends, files, operator):
    """First all nodes accept both, then they get certificates of the new one."""
    new = Operator("new")
    a, b = files("a"), files("b")
    for one in (a, b):
        one.write("ca", operator.own.pem() + new.own.pem())
    renewed = new.issue("dss://c/b")
    b.write("key", renewed.key_pem())
    b.write("certificate", renewed.pem())
    link(ends, a.load(), b.load())


@pytest.mark.parametrize("older", ["a", "b"])
async def test_the_secret_alone_opens_no_link_to_a_node_with_certificates_of_an_operator(start_node, files, refusals, older):
    """Also while its log is empty, and says nothing about the version of the cluster. "a" dials."""
    more = {node_id: {} if node_id == older else {"credentials": files(node_id).load()} for node_id in "ab"}
    b = await start_node("b", {"a": ("127.0.0.1", 1)}, **more["b"])
    a = await start_node("a", {"b": b.address}, **more["a"])
    for _ in range(2):
        await refusals.next("no_tls")
    assert a.events.empty()
    assert b.events.empty()


async def test_nodes_link_with_certificates_of_an_operator_and_renew_them_while_they_work(cluster, files, operator):
    """A member whose certificate is revoked is cut off."""
    written, config_of = {node_id: files(node_id) for node_id in ("a", "b", "c")}, cluster.config

    def config(node_id: str):
        made, directory = config_of(node_id), written[node_id].directory
        made.cluster_id = "c"
        for name in ("certificate", "key", "ca", "crl"):
            setattr(made, f"peer_{name}_file", str(directory / name))
        return made

    cluster.config = config
    await cluster.start()
    await cluster.leader()
    a, b, c = (cluster.nodes[node_id] for node_id in "abc")
    linked: list[str] = []
    for node in (a, b, c):
        node.on_peer_up(linked.append)
    for node_id, its_files in written.items():
        its_files.issued = operator.issue(f"dss://c/{node_id}")
        its_files.write("key", its_files.issued.key_pem())
        its_files.write("certificate", its_files.issued.pem())
    await cluster.until(lambda: len(linked) >= 6)
    await cluster.until(lambda: all(node.is_linked(peer) for node in (a, b, c) for peer in node.peers))
    for its_files in written.values():
        its_files.write("crl", operator.revoke(written["b"].issued))
    await cluster.until(lambda: not (a.is_linked("b") or c.is_linked("b") or b.is_linked("a") or b.is_linked("c")))
    await cluster.until(lambda: a.is_linked("c") and any(node.is_leader and node.is_ready for node in (a, c)))
