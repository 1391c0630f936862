"""The address of Redis or Valkey in a setting: one server, a Cluster, or the primary that Sentinels name.

    redis://user:password@host:6379/0                               one server
    unix:///run/redis.sock?db=0                                     one server, through a socket file
    redis+cluster://user:password@host1:7000,host2:7000             a Cluster: some of its nodes
    redis+sentinel://user:password@host1:26379,host2:26379/name/0   Sentinels, the name of their primary, and its database

`rediss` for `redis` means TLS. Parameters (`?name=value&…`) have the names of redis-py; `PARAMETERS` lists them.

An error never shows a part of the text: it may be one of the password.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, unquote

from dss_api.environment import PORT_MAX, boolean, integer, one_of

Kind = Literal["server", "cluster", "sentinel"]

SCHEMES: Mapping[str, tuple[Kind, bool]] = {
    "redis": ("server", False),
    "rediss": ("server", True),
    "unix": ("server", False),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
}
REDIS_PORT, SENTINEL_PORT = 6379, 26379
DATABASE_MAX = 1_000_000

ESCAPES = "is not a valid URL; in its password, write %23 for #, %2F for /, %3F for ?, %40 for @"


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise ValueError("must be seconds, more than 0 and at most 3600")
    return seconds


def _file(text: str) -> str:
    try:
        with Path(text).open("rb"):
            return text
    except OSError as error:
        raise ValueError(f"names a file that cannot be read ({error.strerror})") from None


#: What each parameter's text becomes. A reader raises ValueError.
PARAMETERS: Mapping[str, Callable[[str], object]] = {
    "client_name": str,
    "db": integer(0, DATABASE_MAX),
    "health_check_interval": integer(0, 3600),
    "max_connections": integer(1, 10_000),
    "password": str,
    "sentinel_password": str,
    "sentinel_username": str,
    "socket_connect_timeout": _seconds,
    "socket_keepalive": boolean,
    "socket_timeout": _seconds,
    "ssl_ca_certs": _file,
    "ssl_cert_reqs": one_of("required", "optional", "none"),
    "ssl_certfile": _file,
    "ssl_check_hostname": boolean,
    "ssl_ciphers": str,
    "ssl_keyfile": _file,
    "username": str,
}


@dataclass(frozen=True, kw_only=True)
class RedisUrl:
    """What an address says."""

    kind: Kind
    #: host and port of each server named; empty for a socket file
    hosts: tuple[tuple[str, int], ...]
    is_tls: bool
    #: of a socket file, otherwise ""
    path: str = ""
    #: the name under which the Sentinels know the primary
    service: str = ""
    database: int = 0
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    sentinel_username: str = field(default="", repr=False)
    sentinel_password: str = field(default="", repr=False)
    #: parameters for redis-py's connections
    options: Mapping[str, object] = field(default_factory=dict)


def checked(text: str) -> str:
    """The text of a setting, if it is an address.

    Raises:
        ValueError: it is none; the text of the error has no part of it.
    """
    parse(text)
    return text


def parse(text: str) -> RedisUrl:
    """What the address says.

    Raises:
        ValueError: it is none; the text of the error has no part of it.
    """
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in SCHEMES:
        raise ValueError(f"must begin with {', '.join(f'{known}://' for known in SCHEMES)}")
    kind, is_tls = SCHEMES[scheme]
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    user, _, hosts_text = authority.rpartition("@")
    # The text after the last @ of the authority has neither of them, unless the password has characters that end it.
    if "#" in text or "@" in path + query:
        raise ValueError(ESCAPES)
    username, _, password = user.partition(":")
    options = _options(query, is_tls)
    given = {
        "username": unquote(username) or str(options.pop("username", "")),
        "password": unquote(password) or str(options.pop("password", "")),
        "sentinel_username": str(options.pop("sentinel_username", "")),
        "sentinel_password": str(options.pop("sentinel_password", "")),
    }
    for name in ("username", "password"):
        options.pop(name, None)
    if kind != "sentinel" and (given["sentinel_username"] or given["sentinel_password"]):
        raise ValueError("has parameters of Sentinels, but does not begin with redis+sentinel://")
    database = options.pop("db", None)
    if scheme == "unix":
        if not path:
            raise ValueError("must name a socket file, such as unix:///run/redis.sock")
        return RedisUrl(
            kind=kind, hosts=(), is_tls=False, path="/" + unquote(path), database=_int(database), options=options, **given
        )
    service, path_database = _path(kind, path)
    database = _int(database) if database is not None else path_database
    if kind == "cluster" and database:
        raise ValueError("names a database, but a Cluster has only database 0")
    hosts = _hosts(kind, hosts_text)
    return RedisUrl(kind=kind, hosts=hosts, is_tls=is_tls, service=service, database=database, options=options, **given)


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0


def _options(query: str, is_tls: bool) -> dict[str, object]:
    options: dict[str, object] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in PARAMETERS:
            raise ValueError(f"has an unknown parameter; known are {', '.join(sorted(PARAMETERS))}")
        if name.startswith("ssl_") and not is_tls:
            raise ValueError(f"has the parameter {name}, which needs TLS: begin with rediss")
        try:
            options[name] = PARAMETERS[name](value)
        except ValueError as error:
            raise ValueError(f"has the parameter {name}, which {error}") from None
    if ("ssl_certfile" in options) != ("ssl_keyfile" in options):
        raise ValueError("must have both ssl_certfile and ssl_keyfile, or neither")
    return options


def _path(kind: Kind, path: str) -> tuple[str, int]:
    """The service and the database that a path names."""
    parts = [unquote(part) for part in path.split("/") if part]
    service = ""
    if kind == "sentinel":
        if not parts:
            raise ValueError("must name the primary as its Sentinels do: redis+sentinel://host1:26379,host2:26379/name")
        service = parts.pop(0)
    if len(parts) > 1 or (parts and not (parts[0].isascii() and parts[0].isdigit())):
        raise ValueError("may only end with the number of a database")
    return service, int(parts[0]) if parts else 0


def _hosts(kind: Kind, text: str) -> tuple[tuple[str, int], ...]:
    default_port = SENTINEL_PORT if kind == "sentinel" else REDIS_PORT
    if kind == "server" and (not text or text.startswith(":")):
        text = f"localhost{text}"
    parts = [part.strip() for part in text.split(",")]
    if kind == "server" and len(parts) > 1:
        raise ValueError("names several hosts; begin with redis+cluster:// or redis+sentinel:// (with TLS: rediss+…)")
    return tuple(_host(part, default_port) for part in parts)


def _host(text: str, default_port: int) -> tuple[str, int]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        port = rest.removeprefix(":") if rest.startswith(":") or not rest else "?"
        if not bracket:
            host = ""
    else:
        host, _, port = text.partition(":")
    if not host or (port and not (port.isascii() and port.isdigit() and 1 <= int(port) <= PORT_MAX)):
        raise ValueError(ESCAPES)
    return host.lower(), int(port) if port else default_port
