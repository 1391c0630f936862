"""The certificates with which members prove to each other who they are.

Theory of operation
-------------------
1. Without files, everything comes from the cluster secret. The key of the cluster's certificate authority is computed from the secret, so
   every node that has the secret is able to issue certificates, and a new cluster needs no leader for it. A node issues its own
   certificate at each start, for a new key.
2. These certificates do not end, because a node whose clock is wrong by years must be able to link. A member leaves through the log; a
   secret that others know is changed.
3. To change the secret, nodes get the new one, and the old one as the previous. Such a node trusts both authorities. Its certificate is
   issued by the new authority, and it shows with it a certificate of the new authority that the old one has signed. So nodes that only
   know the old secret accept it, and so do nodes that only know the new one.
4. A name in a certificate is a MAC of the cluster's and the node's id with a key that is computed from the secret. Strangers, to whom an
   acceptor must show its certificate, cannot read it.
5. With files, an operator's own authority issues the certificates. The name of node-1 of the cluster dss is the URI `dss://dss/node-1`.
   Files are read again when they change. A revoked certificate is refused; whether the list itself is out of date is only reported, so that
   a forgotten list does not stop a cluster.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import hmac
import math
import os
import secrets
import ssl
import tempfile
from abc import ABC, abstractmethod
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dss_api.errors import ForOperator
from dss_raft import metrics
from dss_raft.net import tls
from dss_raft.net.wire import Reason

log = structlog.get_logger("raft.links")

_CURVE = ec.SECP256R1()
#: the number of keys on the curve
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_NOT_BEFORE = datetime.datetime(1970, 1, 1)
#: "no well-defined expiration date" (RFC 5280, 4.1.2.5)
_NOT_AFTER = datetime.datetime(9999, 12, 31, 23, 59, 59)
#: A certificate of an operator that ends sooner than this is reported, each day.
ENDS_SOON = datetime.timedelta(days=14)


class CredentialsUnusable(ForOperator):
    """The text is one line: which file cannot be used, and why."""


# ------------------------------------------------------------ the authority of a secret


class Authority(NamedTuple):
    """The certificate authority of a cluster secret."""

    key: ec.EllipticCurvePrivateKey
    #: signed by itself
    certificate: x509.Certificate
    name_key: bytes

    @property
    def subject(self) -> x509.Name:
        return self.certificate.subject


@cache
def authority(secret: str) -> Authority:
    """The authority that is computed from a secret. Its certificate is made for this process: only the key and the subject count.

    Strangers can compare guesses of the secret with a certificate. So each guess is made to cost some 100 ms and 32 MiB.
    """
    derived = hashlib.scrypt(
        secret.encode(), salt=b"dss peer authority 1", n=2**15, r=8, p=1, maxmem=64 * 1024 * 1024, dklen=48 + 32
    )
    # 48 bytes: modulo the order, all keys are equally likely.
    key = ec.derive_private_key(int.from_bytes(derived[:48], "big") % (_ORDER - 1) + 1, _CURVE)
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"dss {hashlib.sha256(point).hexdigest()[:16]}")])
    return Authority(key, _authority_certificate(subject, key.public_key(), subject, key), derived[48:])


def _authority_certificate(
    subject: x509.Name, public: ec.EllipticCurvePublicKey, issuer: x509.Name, signed_by: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        _builder(subject, public, issuer, signed_by)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(signed_by, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, public: ec.EllipticCurvePublicKey, issuer: x509.Name, signed_by: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signed_by.public_key()), critical=False)
    )


def opaque_name(of: Authority, cluster_id: str, node_id: str) -> str:
    """The name of a node in certificates of the cluster secret."""
    return "dss:" + hmac.digest(of.name_key, f"{cluster_id}/{node_id}".encode(), "sha256").hex()


# ------------------------------------------------------------ what links use


class Credentials(ABC):
    """The certificate of this node, and what it takes to accept that of another one."""

    #: whether a member of an older release, which has no certificate, may be linked with the secret alone
    accepts_secret = True
    #: why a certificate of an authority that this node does not trust is refused
    foreign_reason: Reason
    foreign_detail: str
    #: for the side that accepts a connection, and for the one that dials
    accepting: ssl.SSLContext
    dialing: ssl.SSLContext

    @abstractmethod
    def _names_of(self, cluster_id: str, node_id: str) -> list[str]:
        """The names of a node: its certificate must have one of them."""

    def names(self, certificate: dict[str, Any], cluster_id: str, node_id: str) -> bool:
        """Whether a verified certificate is that of this node."""
        found = {name for kind, name in certificate.get("subjectAltName", ()) if kind == "URI"}
        return any(name in found for name in self._names_of(cluster_id, node_id))

    def wanted_name(self, cluster_id: str, node_id: str) -> str:
        """For the log: which name a certificate lacks."""
        return ""

    def hint(self, alert: str) -> str:
        """For the log: what an alert of the other side probably means."""
        return ""

    def is_revoked(self, chain: list[bytes]) -> bool:
        """Whether one of these certificates (DER) is revoked."""
        return False

    async def refresh(self) -> bool:
        """Read changed files. True: links must be made again, so that what changed counts for them."""
        return False


class SecretCredentials(Credentials):
    """From the cluster secret.

    Args:
        previous: the secret before a change, "" for none.
        directory: where the node's key may be for a moment, encrypted; `ssl` reads keys from files only.
    """

    foreign_reason = Reason.WRONG_SECRET
    foreign_detail = "the peer does not know the cluster secret: its certificate was made with another one"

    def __init__(self, secret: str, cluster_id: str, node_id: str, *, previous: str = "", directory: str | None = None) -> None:
        self._authorities = [authority(each) for each in dict.fromkeys((secret, *filter(None, [previous])))]
        first = self._authorities[0]
        key = ec.generate_private_key(_CURVE)
        own = [x509.UniformResourceIdentifier(name) for name in self._names_of(cluster_id, node_id)]
        certificate = (
            _builder(
                x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dss member")]), key.public_key(), first.subject, first.key
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
            )
            .add_extension(x509.SubjectAlternativeName(own), critical=False)
            .sign(first.key, hashes.SHA256())
        )
        signed_by_others = [
            _authority_certificate(first.subject, first.key.public_key(), other.subject, other.key)
            for other in self._authorities[1:]
        ]
        chain = b"".join(each.public_bytes(Encoding.PEM) for each in (certificate, *signed_by_others))
        trusted = b"".join(each.certificate.public_bytes(Encoding.DER) for each in self._authorities)
        self.accepting, self.dialing = (tls.context(is_server) for is_server in (True, False))
        for context in (self.accepting, self.dialing):
            context.load_verify_locations(cadata=trusted)
            _load_key(context, chain, key, directory)

    def _names_of(self, cluster_id: str, node_id: str) -> list[str]:
        return [opaque_name(each, cluster_id, node_id) for each in self._authorities]

    def hint(self, alert: str) -> str:
        return ". Do both nodes have the same DSS_CLUSTER_SECRET?" if alert in ("unknown ca", "decrypt error") else ""


def _load_key(context: ssl.SSLContext, chain: bytes, key: ec.EllipticCurvePrivateKey, directory: str | None) -> None:
    """Give a context a certificate and a key. `ssl` reads files only, so the key is in one for a moment, encrypted."""
    password = secrets.token_bytes(32).hex().encode()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password))
    with tempfile.NamedTemporaryFile(dir=directory, prefix="peer-key-") as file:  # mode 0600
        file.write(chain + pem)
        file.flush()
        context.load_cert_chain(file.name, password=password)


# ------------------------------------------------------------ an operator's own certificates


@dataclass(frozen=True)
class CertificateFiles:
    """Paths of PEM files."""

    certificate: str
    key: str
    ca: str
    #: revocation lists; "" for none
    crl: str = ""

    def __iter__(self) -> Any:
        return iter(path for path in (self.certificate, self.key, self.ca, self.crl) if path)


class _Read(NamedTuple):
    """What the files have."""

    accepting: ssl.SSLContext
    dialing: ssl.SSLContext
    #: issuer -> serial numbers of the certificates that it has revoked
    revoked: dict[x509.Name, frozenset[int]]
    #: when each file expires, in seconds since 1970: "certificate" (with its chain), "ca", "crl"
    expiries: dict[str, float]


class FileCredentials(Credentials):
    """From files.

    Raises:
        CredentialsUnusable: one of the files cannot be used.
    """

    accepts_secret = False  # otherwise the secret alone would be enough, as long as a node has an empty log
    foreign_reason = Reason.CERTIFICATE
    foreign_detail = "its certificate was issued by an authority that is not in DSS_PEER_CA_FILE"

    def __init__(self, files: CertificateFiles, cluster_id: str, node_id: str) -> None:
        self._files = files
        self._cluster_id = cluster_id
        self._node_id = node_id
        self._expiries: dict[str, float] = {}
        #: the day on which `_report` last ran
        self._reported: datetime.date | None = None
        self._seen = self._signature()
        self._use(self._read())

    async def refresh(self) -> bool:
        seen = self._signature()
        if seen == self._seen:
            if self._reported != _now().date():
                self._report()
            return False
        self._seen = seen
        try:
            self._use(await asyncio.to_thread(self._read))  # a revocation list can be long
        except CredentialsUnusable as error:
            log.error("raft.certificates_not_loaded", error=str(error), hint="the node continues with those that it has")
            return False
        log.info("raft.certificates_loaded", certificate=self._files.certificate)
        return True

    def is_revoked(self, chain: list[bytes]) -> bool:
        if not self._revoked:
            return False
        certificates = map(x509.load_der_x509_certificate, chain)
        return any(each.serial_number in self._revoked.get(each.issuer, ()) for each in certificates)

    def _names_of(self, cluster_id: str, node_id: str) -> list[str]:
        return [f"dss://{cluster_id}/{node_id}"]

    def wanted_name(self, cluster_id: str, node_id: str) -> str:
        return f": it has no URI {self._names_of(cluster_id, node_id)[0]} among its subject alternative names"

    def hint(self, alert: str) -> str:
        return ". Does its DSS_PEER_CA_FILE have the authority of this node's certificate?" if alert == "unknown ca" else ""

    def _signature(self) -> list[Any]:
        """Changes with the files, also if they are replaced through a link to a directory, as Kubernetes does it."""
        return [_stat(path) for path in self._files]

    def _use(self, read: _Read) -> None:
        self.accepting, self.dialing, self._revoked, self._expiries = read
        for file, expiry_s in self._expiries.items():
            metrics.PEER_TLS_EXPIRY.labels(file).set(expiry_s)
        self._report()

    def _report(self) -> None:
        """Log which files expire soon."""
        self._reported = _now().date()
        now_s = _now().timestamp()
        ends_s, list_ends_s = self._expiries["certificate"], self._expiries.get("crl", math.inf)
        if ends_s < now_s + ENDS_SOON.total_seconds():
            log.warning("raft.certificate_ends", certificate=self._files.certificate, at=_iso(ends_s))
        if list_ends_s < now_s:
            log.warning("raft.revocation_list_out_of_date", file=self._files.crl, since=_iso(list_ends_s))

    def _read(self) -> _Read:
        """Read all files. They are used only if all are right. Runs in a thread, too."""
        files = self._files
        contexts = [tls.context(is_server) for is_server in (True, False)]
        for context in contexts:
            try:
                context.load_verify_locations(cafile=files.ca)
            except (OSError, ssl.SSLError) as error:
                raise CredentialsUnusable(f"cannot use DSS_PEER_CA_FILE={files.ca}: {_words(error)}") from None
            try:
                context.load_cert_chain(files.certificate, files.key, password=_no_password)
            except (OSError, ssl.SSLError, ValueError) as error:
                raise CredentialsUnusable(
                    f"cannot use DSS_PEER_CERTIFICATE_FILE={files.certificate} with DSS_PEER_KEY_FILE={files.key}: {_words(error)}"
                ) from None
        chain = _certificates("DSS_PEER_CERTIFICATE_FILE", files.certificate)
        authorities = _certificates("DSS_PEER_CA_FILE", files.ca)
        self._check_own(chain[0])
        expiries = {
            "certificate": min(each.not_valid_after_utc.timestamp() for each in chain),
            # Of authorities that follow one another, the last one counts.
            "ca": max(each.not_valid_after_utc.timestamp() for each in authorities),
        }
        if not files.crl:
            return _Read(contexts[0], contexts[1], {}, expiries)
        revoked, expiries["crl"] = self._read_revoked(authorities)
        return _Read(contexts[0], contexts[1], revoked, expiries)

    def _check_own(self, certificate: x509.Certificate) -> None:
        try:
            found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            names = found.get_values_for_type(x509.UniformResourceIdentifier)
        except x509.ExtensionNotFound:
            names = []
        (wanted,) = self._names_of(self._cluster_id, self._node_id)
        if wanted not in names:
            raise CredentialsUnusable(
                f"cannot use DSS_PEER_CERTIFICATE_FILE={self._files.certificate}: it has no URI {wanted} among its subject alternative"
                " names"
            )

    def _read_revoked(self, authorities: list[x509.Certificate]) -> tuple[dict[x509.Name, frozenset[int]], float]:
        """What each issuer has revoked, and when the first of the lists is out of date."""
        path = self._files.crl
        try:
            lists = [x509.load_pem_x509_crl(pem) for pem in _pem_blocks(Path(path).read_bytes())]
        except (OSError, ValueError) as error:
            raise CredentialsUnusable(f"cannot use DSS_PEER_CRL_FILE={path}: {_words(error)}") from None
        revoked: dict[x509.Name, frozenset[int]] = defaultdict(frozenset)
        ends_s = math.inf
        for each in lists:
            issuer = each.issuer
            if all(ca.subject != issuer for ca in authorities):
                # It says nothing about a certificate that this node would accept: the authority was replaced.
                log.warning(
                    "raft.revocation_list_skipped", file=path, issuer=issuer.rfc4514_string(), why="not in DSS_PEER_CA_FILE"
                )
                continue
            if not any(_has_signed(ca, each) for ca in authorities):
                raise CredentialsUnusable(f"cannot use DSS_PEER_CRL_FILE={path}: no authority in DSS_PEER_CA_FILE has signed it")
            if each.next_update_utc is not None:
                ends_s = min(ends_s, each.next_update_utc.timestamp())
            revoked[issuer] |= {entry.serial_number for entry in each}
        return dict(revoked), ends_s


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _iso(at_s: float) -> str:
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC).isoformat()


def _certificates(setting: str, path: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise CredentialsUnusable(f"cannot use {setting}={path}: {_words(error)}") from None


_END_OF_LIST = b"-----END X509 CRL-----"


def _pem_blocks(data: bytes) -> list[bytes]:
    return [block + _END_OF_LIST + b"\n" for block in data.split(_END_OF_LIST)[:-1]]


def _has_signed(ca: x509.Certificate, crl: x509.CertificateRevocationList) -> bool:
    return ca.subject == crl.issuer and crl.is_signature_valid(ca.public_key())  # type: ignore[arg-type]


def _stat(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _no_password() -> str:
    """Otherwise OpenSSL would ask for it at the terminal."""
    raise ValueError("the key is encrypted; a node needs one that is not")


def _words(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return tls.explain(error)
    return getattr(error, "strerror", None) or str(error)
