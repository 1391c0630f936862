"""TLS on the service port: its files, and which clients they admit.

A certificate is replaced while the node runs. `check` compares the files with those that were read last, once a second, and SIGHUP asks
for `reload`. Files that cannot be used change nothing: connections are accepted with those read before, the log says why, and a metric
shows it. Symbolic links are followed, so certbot's and Kubernetes' way of replacing files is noticed.

A new context is made for each change, so that a client cannot resume a session that the old files admitted. Open connections stay, except
those of clients whose certificate has been revoked.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import structlog
from prometheus_client import Counter, Gauge

log = structlog.get_logger("tls")

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
#: Minimum interval between two lines about failed handshakes. The metric counts every one.
LOG_SECONDS_MIN = 1.0

#: ends of a handshake
DONE, UNFINISHED, NOT_TLS, PROTOCOL, CLIENT_CERTIFICATE, REJECTED, FAILED = RESULTS = (
    "done",
    "unfinished",
    "not_tls",
    "protocol",
    "client_certificate",
    "rejected_by_client",
    "failed",
)
_PROTOCOL_REASONS = frozenset(
    ("UNSUPPORTED_PROTOCOL", "NO_SHARED_CIPHER", "VERSION_TOO_LOW", "WRONG_VERSION_NUMBER", "NO_SUITABLE_SIGNATURE_ALGORITHM")
)

HANDSHAKES = Counter("dss_tls_handshakes_total", "TLS handshakes of clients on the service port.", ["result"])
for _result in RESULTS:
    HANDSHAKES.labels(_result)
RELOADS = Counter("dss_tls_reloads_total", "How often the TLS files of the service port were read again.", ["result"])
for _result in ("done", "failed"):
    RELOADS.labels(_result)
UP_TO_DATE = Gauge("dss_tls_files_up_to_date", "0 if the newest TLS files of the service port cannot be used.")
UP_TO_DATE.set(1)
EXPIRY = Gauge("dss_tls_expiry_timestamp_seconds", "When a TLS file of the service port expires; +Inf: there is none.", ["file"])
for _file in ("certificate", "client_ca", "crl"):
    EXPIRY.labels(_file).set(float("inf"))


class CannotUse(Exception):
    """The TLS files cannot be used. The text is one line for people."""


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """Paths of PEM files, and the lowest protocol version."""

    certificate: str
    key: str
    #: clients need a certificate of one of these authorities; "": they need none
    client_ca: str = ""
    #: revocation lists of these authorities; "": none
    crl: str = ""
    min_version: str = "1.2"

    def paths(self) -> Iterator[str]:
        yield from filter(None, (self.certificate, self.key, self.client_ca, self.crl))


class Admitted(Protocol):
    """An open connection."""

    def peer_certificate(self) -> bytes | None:
        """The client's certificate (DER); None: it has none."""

    def abort(self) -> None:
        """End the connection immediately."""


class ServerTls:
    """See the module.

    Raises:
        CannotUse: the files cannot be used.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._seen = self._signature()
        #: for new connections
        self.context = _context(files)
        _show(_expiries(files))
        #: open connections whose clients have certificates
        self._admitted: dict[Admitted, None] = {}
        self._last_line_s = float("-inf")

    def check(self) -> None:
        """Read the files again if they have changed."""
        if self._signature() != self._seen:
            self.reload()

    def reload(self) -> None:
        """Read the files again."""
        # Before reading: a file that is being written is read again when it is complete.
        self._seen = self._signature()
        try:
            context = _context(self._files)
            expiries = _expiries(self._files)
        except CannotUse as error:
            RELOADS.labels("failed").inc()
            UP_TO_DATE.set(0)
            log.error("tls.reload_failed", why=str(error), hint="new connections still use the files that were read before")
            return
        self.context = context
        _show(expiries)
        RELOADS.labels("done").inc()
        UP_TO_DATE.set(1)
        ended = self._end_revoked()
        log.info("tls.reloaded", certificate=self._files.certificate, connections_ended=ended)

    def opened(self, connection: Admitted) -> None:
        """A handshake has succeeded."""
        HANDSHAKES.labels(DONE).inc()
        if self._files.client_ca:
            self._admitted[connection] = None

    def closed(self, connection: Admitted) -> None:
        """A connection has ended."""
        self._admitted.pop(connection, None)

    def failed(self, address: str, result: str, why: str) -> None:
        """A handshake has failed: count it, and log some."""
        HANDSHAKES.labels(result).inc()
        if result != UNFINISHED and monotonic() - self._last_line_s >= LOG_SECONDS_MIN:
            self._last_line_s = monotonic()
            log.info("tls.handshake_failed", address=address, result=result, why=why)

    def _signature(self) -> list[tuple[int, ...] | None]:
        return [_file_signature(path) for path in self._files.paths()]

    def _end_revoked(self) -> int:
        """End the connections of clients whose certificate has been revoked. Returns how many."""
        if not self._files.crl or not self._admitted:
            return 0
        from cryptography import x509

        lists = _revocation_lists(self._files.crl)
        ended = 0
        for connection in list(self._admitted):
            data = connection.peer_certificate()
            if data is not None and _is_revoked(x509.load_der_x509_certificate(data), lists):
                connection.abort()
                ended += 1
        return ended


def reason_of(error: ssl.SSLError) -> tuple[str, str]:
    """The result of a handshake that failed with this, and why."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return CLIENT_CERTIFICATE, error.verify_message
    reason = error.reason or str(error)
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return CLIENT_CERTIFICATE, "the client sent none"
    if reason in _PROTOCOL_REASONS:
        return PROTOCOL, reason
    return (REJECTED if "_ALERT_" in reason else FAILED), reason


def _context(files: TlsFiles) -> ssl.SSLContext:
    """Raises:
    CannotUse
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = VERSIONS[files.min_version]
    # A client could make the node compute without end.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    certificate, key = files.certificate, files.key
    _load(f"the certificate {certificate} with the key {key}", lambda: context.load_cert_chain(certificate, key, password=""))
    if files.client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        # A resumed session would skip the check of the client's certificate.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
        _load(f"the client CA {files.client_ca}", lambda: context.load_verify_locations(files.client_ca))
    if files.crl:
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        _load(f"the revocation list {files.crl}", lambda: context.load_verify_locations(files.crl))
    return context


def _expiries(files: TlsFiles) -> dict[str, float]:
    """When each file expires.

    Raises:
        CannotUse
    """
    from cryptography import x509

    def read() -> None:
        chain = x509.load_pem_x509_certificates(Path(files.certificate).read_bytes())
        found["certificate"] = min(one.not_valid_after_utc.timestamp() for one in chain)
        if files.client_ca:
            # Of authorities that follow one another, the last one counts.
            authorities = x509.load_pem_x509_certificates(Path(files.client_ca).read_bytes())
            found["client_ca"] = max(one.not_valid_after_utc.timestamp() for one in authorities)
        if files.crl:
            updates = [one.next_update_utc for one in _revocation_lists(files.crl)]
            found["crl"] = min((one.timestamp() for one in updates if one is not None), default=float("inf"))

    found: dict[str, float] = {}
    _load("the files", read)
    return found


def _show(expiries: dict[str, float]) -> None:
    for file, expiry in expiries.items():
        EXPIRY.labels(file).set(expiry)


def _load(what: str, load: Any) -> None:
    try:
        load()
    except ssl.SSLError as error:
        raise CannotUse(f"cannot use {what}: {_meaning(error)}") from None
    except OSError as error:
        raise CannotUse(f"cannot read {what}: {error.strerror}") from None
    except ValueError as error:
        raise CannotUse(f"cannot use {what}: {' '.join(str(error).split())}") from None


def _meaning(error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key belongs to another certificate"
    if error.reason is None:
        return "one of the files is not PEM, or the key is encrypted; write it without a password"
    return error.reason.replace("_", " ").lower()


def _file_signature(path: str) -> tuple[int, ...] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _revocation_lists(path: str) -> list[Any]:
    """Raises:
    ValueError: there is none in the file.
    """
    from cryptography import x509

    begin = b"-----BEGIN X509 CRL-----"
    lists = [x509.load_pem_x509_crl(begin + part) for part in Path(path).read_bytes().split(begin)[1:]]
    if not lists:
        raise ValueError("the file has no revocation list (PEM)")
    return lists


def _is_revoked(certificate: Any, lists: Iterable[Any]) -> bool:
    return any(
        one.issuer == certificate.issuer and one.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
        for one in lists
    )
