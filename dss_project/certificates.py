"""Certificates that this project makes itself, to try TLS without an authority of one's own.

`make_authority` and `make_certificate` write PEM files. An existing authority is kept, so that certificates can be made again.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY = "Distributed Sync System, made on this machine"
DAYS_AUTHORITY = 3650
#: Apple's systems refuse server certificates that are valid for longer.
DAYS = 397
#: Clocks of other machines may be behind.
EARLIER = timedelta(hours=1)


def make_authority(certificate: Path, key: Path, days: float = DAYS_AUTHORITY) -> None:
    """Write the certificate and the key of a new authority, unless they exist."""
    if certificate.exists() and key.exists():
        return
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, AUTHORITY)])
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    made = (
        _builder(name, name, private.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .sign(private, hashes.SHA256())
    )
    write_key(key, private)
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))


def make_certificate(
    certificate: Path,
    key: Path,
    authority: tuple[Path, Path],
    names: Iterable[str],
    *,
    days: float = DAYS,
    is_client: bool = False,
) -> x509.Certificate:
    """Write a certificate and its key.

    Args:
        authority: its certificate and key.
        names: host names and IP addresses of the server, or the name of the client; the first is the common name.
        days: how long it is valid; less than 0: it has expired.
        is_client: it is for a client.

    Raises:
        OSError, ValueError: the authority cannot be read.
    """
    issuer = x509.load_pem_x509_certificate(authority[0].read_bytes())
    issuer_key = serialization.load_pem_private_key(authority[1].read_bytes(), None)
    private = ec.generate_private_key(ec.SECP256R1())
    subjects = list(dict.fromkeys(names))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subjects[0][:64])])
    purpose = ExtendedKeyUsageOID.CLIENT_AUTH if is_client else ExtendedKeyUsageOID.SERVER_AUTH
    made = (
        _builder(name, issuer.subject, private.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(text) for text in subjects]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)  # type: ignore[arg-type]
        .sign(issuer_key, hashes.SHA256())  # type: ignore[arg-type]
    )
    write_key(key, private)
    pem = made.public_bytes(serialization.Encoding.PEM)
    part = certificate.with_name(f"{certificate.name}.part")
    part.write_bytes(pem)
    part.replace(certificate)
    return made


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Write a key with mode 0600, in one step."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    part.replace(path)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: float) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER + min(timedelta(days=days), timedelta()))
        .not_valid_after(now + timedelta(days=days))
    )


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
