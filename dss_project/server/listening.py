"""Takes the service port before anything else happens, so that a port in use costs nothing but a message."""

from __future__ import annotations

import errno
import socket

from dss_api import environment

BACKLOG = 2048

_REASONS = {
    errno.EADDRINUSE: "it is in use: another node or program listens there",
    errno.EACCES: "this user may not listen on it",
    errno.EADDRNOTAVAIL: "no interface of this machine has that address",
}


class CannotListen(Exception):
    """The text is one line for a person."""


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket.

    Raises:
        CannotListen: says which setting is to blame.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        both = family == socket.AF_INET6 and environment.is_wildcard(host) and socket.has_dualstack_ipv6()
        listening = socket.create_server(address[:2], family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except socket.gaierror:
        raise CannotListen(f"RPC_HOST={host} is no address of this machine") from None
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror)
        variable = "RPC_HOST" if error.errno == errno.EADDRNOTAVAIL else "RPC_PORT"
        raise CannotListen(f"Cannot listen on port {port} of {host}: {reason}. Stop it, or set {variable}.") from None
    listening.setblocking(False)
    return listening
