"""`python -m dss_project.probe PATH`: a health check for containers. It asks the node whose settings are in the environment.

The certificate of the node is not verified: the probe sends nothing secret, stays on this machine, and must not fail because a certificate
has just been replaced.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys
from collections.abc import Mapping

TIMEOUT_S = 2.0
_WILDCARDS = ("", "0.0.0.0", "::")


def is_well(path: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the node answers 200.

    Raises:
        OSError: it does not answer.
    """
    given = environ.get("RPC_HOST", "").strip()
    host = {"::": "::1"}.get(given, "127.0.0.1") if given in _WILDCARDS else given
    port = int(environ.get("RPC_PORT") or 8201)
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    if environ.get("DSS_TLS_CERT_FILE"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if certificate := environ.get("DSS_CLIENT_CERT_FILE"):
            context.load_cert_chain(certificate, environ.get("DSS_CLIENT_KEY_FILE") or None)
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
    # A host name that every node accepts.
    connection.request("GET", path, headers={"Host": "localhost"})
    return connection.getresponse().status == 200


if __name__ == "__main__":
    try:
        sys.exit(0 if is_well(sys.argv[1]) else 1)
    except (OSError, http.client.HTTPException) as error:
        sys.exit(str(error))
