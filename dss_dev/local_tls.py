"""Certificates of the nodes on this machine: for `make run TLS=1`, tests and benchmarks.

With `DSS_TEST_TLS=1`, all nodes that tests start speak HTTPS, and `DSS_TEST_TLS=client` makes them want certificates of their clients, too.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

#: "": plain HTTP; "1": HTTPS; "client": HTTPS with certificates of clients
TESTED = os.environ.get("DSS_TEST_TLS", "")
NAMES = ("localhost", "127.0.0.1", "::1")
DIRECTORY = "tls"


def make_files(directory: Path, names: Iterable[str] = (), *, for_clients: bool = False) -> dict[str, str]:
    """Make certificates for nodes of this machine, and for their clients. The authority stays the same.

    Args:
        names: of the nodes, besides those of this machine.
        for_clients: the nodes want certificates of their clients.

    Returns:
        The settings of the nodes and of their clients.
    """
    # Imported where it is needed: the client's tests run with versions of Python for which this environment has no cryptography.
    from dss_project.certificates import make_authority, make_certificate

    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = directory / "ca.pem", directory / "ca.key"
    make_authority(*authority)
    make_certificate(directory / "node.pem", directory / "node.key", authority, (*NAMES, socket.gethostname(), *names))
    if for_clients:
        make_certificate(directory / "client.pem", directory / "client.key", authority, ("client",), is_client=True)
    return settings_of(directory)


def settings_of(directory: Path) -> dict[str, str]:
    """The settings for the files of `make_files`; empty if there are none."""
    if not (directory / "node.pem").exists():
        return {}
    settings = {
        "DSS_TLS_CERT_FILE": str(directory / "node.pem"),
        "DSS_TLS_KEY_FILE": str(directory / "node.key"),
        "DSS_CA_FILE": str(directory / "ca.pem"),
    }
    if (directory / "client.pem").exists():
        settings["DSS_TLS_CLIENT_CA_FILE"] = str(directory / "ca.pem")
        settings["DSS_CLIENT_CERT_FILE"] = str(directory / "client.pem")
        settings["DSS_CLIENT_KEY_FILE"] = str(directory / "client.key")
    return settings


@cache
def tested_files() -> dict[str, str]:
    """The settings that `DSS_TEST_TLS` stands for. Clients in this process and its children use them, too."""
    if not TESTED:
        return {}
    directory = Path(tempfile.mkdtemp(prefix="dss-tls-"))
    settings = make_files(directory, for_clients=TESTED == "client")
    os.environ.update({name: value for name, value in settings.items() if not name.startswith("DSS_TLS_")})
    return settings


def tested(environment: Mapping[str, str]) -> dict[str, str]:
    """The settings of a node that a test starts."""
    settings = tested_files()
    if not settings or "DSS_TLS_CERT_FILE" in environment:
        return dict(environment)
    urls = {name: environment[name].replace("http://", "https://") for name in ("PEERS", "DSS_URL") if name in environment}
    return {**environment, **settings, **urls}
