"""Binds the service port before the node starts, so that a port in use is reported before anything is changed."""

from __future__ import annotations

import errno
import socket

from dss_api import environment

BACKLOG = 2048

_REASONS = {
    errno.EADDRINUSE: "it is in use by another node or program. Stop that, or set RPC_PORT",
    errno.EACCES: "this user is not allowed to listen on it. Set RPC_PORT to another port",
    errno.EADDRNOTAVAIL: "no interface of this machine has that address. Set RPC_HOST",
}


class CannotListen(Exception):
    """The text is one line for people."""


def listen(host: str, port: int, setting: str = "RPC_PORT") -> socket.socket:
    """A listening TCP socket.

    Args:
        setting: the one of the port.

    Raises:
        CannotListen: names the setting to change.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        both = family == socket.AF_INET6 and environment.is_wildcard(host) and socket.has_dualstack_ipv6()
        listening = socket.create_server(address[:2], family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except socket.gaierror:
        raise CannotListen(f"RPC_HOST={host} cannot be resolved to an address") from None
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or "").replace("RPC_PORT", setting)
        raise CannotListen(f"Cannot listen on port {port} of {host}: {reason}.") from None
    listening.setblocking(False)
    return listening
