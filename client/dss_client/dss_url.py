"""Addresses of clusters for other libraries, which want one URL: `dss://:token@host:8101,host:8102/path?tls=true&timeout=30`."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from dss_client.errors import WrongUrl, WrongUse
from dss_client.tls import CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE, default_context

SCHEME = "dss"
PORT_DEFAULT = 8101
_TRUTH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
#: options that say how to connect: their names here, and as variables
_TLS_FILES = {"ca_file": CA_VARIABLE, "cert_file": CERT_VARIABLE, "key_file": KEY_VARIABLE}
CONNECTING = frozenset({"timeout", "tls", "token", *_TLS_FILES})


class DssUrl(msgspec.Struct, frozen=True, kw_only=True):
    """What a URL says."""

    #: "host:port", at least one, unless DSS_URLS names the nodes
    hosts: tuple[str, ...]
    #: None: as DSS_TOKEN says
    token: str | None = None
    #: behind the hosts, without slashes around it
    path: str = ""
    options: dict[str, str] = {}

    @classmethod
    def parse(cls, text: str) -> DssUrl:
        """Read a URL. Without hosts, `DSS_URLS` names the nodes.

        Raises:
            WrongUrl
        """
        example = f"a URL must be like {SCHEME}://127.0.0.1:8101,127.0.0.1:8102//"
        try:
            parts = urlsplit(text)
            options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)) if parts.query else {}
        except ValueError:
            raise WrongUrl(example) from None
        if parts.scheme != SCHEME or parts.fragment:
            raise WrongUrl(example)
        credentials, _, places = parts.netloc.rpartition("@")
        user, _, password = credentials.partition(":")
        hosts = tuple(_host(place, example) for place in places.split(",") if place)
        return cls(hosts=hosts, token=unquote(password or user) or None, path=unquote(parts.path).strip("/"), options=options)

    def client_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of `Client` and `AsyncClient`.

        Args:
            given: options that the program gives apart from the URL; they take precedence.

        Raises:
            WrongUse: an option cannot be used.
        """
        options = {**self.options, **given}
        found: dict[str, Any] = {"token": options.get("token", self.token)}
        if "timeout" in options:
            found["timeout"] = seconds("timeout", options["timeout"])
        tls = options.get("tls")
        files = {variable: str(options[name]) for name, variable in _TLS_FILES.items() if options.get(name)}
        if not isinstance(tls, ssl.SSLContext):
            is_secure = bool(files) if tls is None else truth("tls", tls)
            tls = default_context({**os.environ, **files}) if is_secure else None
        found["tls"] = tls
        if self.hosts:
            found["urls"] = [f"{'http' if tls is None else 'https'}://{host}" for host in self.hosts]
        return found

    def without_token(self, mask: str = "**") -> str:
        """The URL without its token, for logs and banners."""
        token = "" if self.token is None else f":{mask}@"
        options = "&".join(f"{name}={mask if name == 'token' else value}" for name, value in self.options.items())
        return f"{SCHEME}://{token}{','.join(self.hosts)}/{self.path}{'?' if options else ''}{options}"


def seconds(name: str, value: Any) -> float:
    """An option in seconds, more than 0.

    Raises:
        WrongUse
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number < float("inf"):
        raise WrongUse(f"`{name}` is in seconds and more than 0, not {value!r}")
    return number


def truth(name: str, value: Any) -> bool:
    """An option that is true or false.

    Raises:
        WrongUse
    """
    found = value if isinstance(value, bool) else _TRUTH.get(str(value).lower())
    if found is None:
        raise WrongUse(f"`{name}` is true or false, not {value!r}")
    return found


def _host(place: str, example: str) -> str:
    try:
        parts = urlsplit(f"//{unquote(place)}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise WrongUrl(example) from None
    if not host:
        raise WrongUrl(example)
    return f"[{host}]:{port or PORT_DEFAULT}" if ":" in host else f"{host}:{port or PORT_DEFAULT}"
