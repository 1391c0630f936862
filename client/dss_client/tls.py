"""TLS of a client: which nodes it trusts, and the certificate by which nodes know it."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping

from dss_client.errors import WrongUse

#: the authorities of the nodes' certificates, in addition to those of the system
CA_VARIABLE = "DSS_CA_FILE"
#: the certificate of this program, for nodes that want one, and its key
CERT_VARIABLE = "DSS_CLIENT_CERT_FILE"
KEY_VARIABLE = "DSS_CLIENT_KEY_FILE"


def default_context(environ: Mapping[str, str] = os.environ) -> ssl.SSLContext:
    """The context for https addresses.

    Raises:
        WrongUse: a file cannot be used.
    """
    ca, certificate, key = (environ.get(name, "").strip() for name in (CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE))
    context = ssl.create_default_context()
    try:
        if ca:
            context.load_verify_locations(ca)
    except (OSError, ValueError) as error:
        raise WrongUse(f"cannot use {CA_VARIABLE}={ca}: {trouble_of(error)}") from None
    try:
        if certificate:
            context.load_cert_chain(certificate, key or None, password="")
    except (OSError, ValueError) as error:
        raise WrongUse(f"cannot use {CERT_VARIABLE}={certificate} with its key: {trouble_of(error)}") from None
    return context


def trouble_of(error: OSError | ValueError) -> str:
    """What went wrong, in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message or error} ({CA_VARIABLE} names its authority)"
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or str(error)).replace("_", " ").lower()
        if reason in ("wrong version number", "http request"):
            return "it does not speak TLS: write http://"
        return f"TLS failed: {reason}"
    number = getattr(error, "errno", 0) or 0
    return os.strerror(number).lower() if number > 0 else str(error)
