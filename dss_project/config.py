"""The settings of a node. They are read from the environment only here, and checked before anything starts.

A field of `NodeConfig` is the only definition of a setting: its variable, default, reader and meaning. `manage.py settings_table`
generates the README's table from the fields.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dss_api import environment
from dss_api.client_memory import BYTES_MAX_DEFAULT
from dss_api.environment import HOUR_MS, PORT_MAX, setting
from dss_api.tls import TlsFiles
from dss_cache.config import CacheConfig
from dss_queue.config import QueueConfig
from dss_raft.config import NODE_ID_PATTERN, Peer, RaftConfig
from dss_raft.size_limits import BODY_BYTES_MAX

#: difflib's ratio from which a variable counts as a misspelt setting
SIMILARITY = 0.86
SIMILARITY_WITH_PREFIX = 0.75


class ConfigError(Exception):
    """The settings cannot be used. The text lists every fault, one per line."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table of settings."""

    variable: str
    default: str
    meaning: str


#: of a cluster secret beyond loopback
SECRET_CHARACTERS_MIN = 16
ORIGIN_PATTERN = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
#: pages that DSS_OPEN_PATHS may open
OPENABLE = ("/metrics", "/api/docs", "/api/schema", "/")


def read_open_paths(value: str) -> tuple[str, ...]:
    """Raises:
    ValueError: one of them is not a page that may be open.
    """
    paths = environment.comma_separated(value)
    for path in paths:
        if path not in OPENABLE:
            raise ValueError(f"must list some of {', '.join(OPENABLE)}, not {path!r}")
    return paths


def read_checks(value: str) -> tuple[str, ...]:
    """Raises:
    ValueError: one of them is not the id of a check.
    """
    ids = environment.comma_separated(value)
    for id in ids:
        if not re.fullmatch(r"[a-z_]+\.[A-Z]\d{3}", id):
            raise ValueError(f"must list ids of checks like dss.I001, not {id!r}")
    return ids


def read_proxies(value: str) -> tuple[str, ...]:
    """Raises:
    ValueError: one of them is not an address or a network, or it is everybody's.
    """
    networks = environment.comma_separated(value)
    for network in networks:
        try:
            is_everybody = ipaddress.ip_network(network, strict=False).prefixlen == 0
        except ValueError:
            raise ValueError(f"must list IP addresses and networks like 10.0.0.5,10.1.0.0/16, not {network!r}") from None
        if is_everybody:
            raise ValueError(f"must not contain {network}: then every client could name any address as its own")
    return networks


def read_origins(value: str) -> tuple[str, ...]:
    """Raises:
    ValueError: one of them is not a scheme and a host.
    """
    origins = environment.comma_separated(value)
    for origin in origins:
        if not ORIGIN_PATTERN.fullmatch(origin):
            raise ValueError(f"must list sites like https://dss.example.org, not {origin!r}")
    return origins


def read_site(value: str) -> str:
    """Raises:
    ValueError: it is not a scheme and a host.
    """
    if value and not ORIGIN_PATTERN.fullmatch(value):
        raise ValueError(f"must be a site like http://127.0.0.1:8100, not {value!r}")
    return value


@dataclass(frozen=True, kw_only=True)
class NodeConfig(CacheConfig, QueueConfig, RaftConfig):
    """The settings of one node, read by `from_env`. Tests may construct it directly."""

    rpc_host: str = setting("RPC_HOST", "127.0.0.1", "Listen address of the service. `0.0.0.0` is every interface.")
    rpc_port: int = setting("RPC_PORT", 8201, "Service port: API, admin, metrics.", environment.port)
    allowed_hosts: tuple[str, ...] = setting(
        "DSS_ALLOWED_HOSTS",
        (),
        "Accepted host names, besides any IP address; `*` accepts all. Protects against DNS rebinding.",
        environment.comma_separated,
        shown="`localhost`, `RPC_HOST`, `NODE_ID`, the peers' hosts",
    )
    api_token: str = setting(
        "DSS_API_TOKEN", "", "A token that may do everything. If set, calls must send `Authorization: Bearer <token>`."
    )
    open: bool = setting(
        "DSS_OPEN",
        False,
        "Serve calls without a token although the node listens beyond loopback. Ends when the first token is made.",
        environment.boolean,
    )
    open_paths: tuple[str, ...] = setting(
        "DSS_OPEN_PATHS",
        (),
        "Pages that need no token, of /metrics, /api/docs, /api/schema and /. Calls always need one, except /health and /ready.",
        read_open_paths,
    )
    token_key: str = setting(
        "DSS_TOKEN_KEY",
        "",
        "Secret from which the secrets of tokens are computed, the same on every node.",
        shown="`DSS_CLUSTER_SECRET`; a node without one generates `<data dir>/token-key`",
    )
    token_key_previous: str = setting(
        "DSS_TOKEN_KEY_PREVIOUS", "", "The value before a change: tokens made with it stay valid until they are rotated."
    )
    trusted_proxies: tuple[str, ...] = setting(
        "DSS_TRUSTED_PROXIES",
        (),
        "Addresses and networks of proxies (`10.0.0.5,10.1.0.0/16`) whose `X-Forwarded-For`, `-Proto` and `-Host` are believed.",
        read_proxies,
    )
    csrf_trusted_origins: tuple[str, ...] = setting(
        "DSS_CSRF_TRUSTED_ORIGINS",
        (),
        "Sites whose pages may also call this node, `https://dss.example.org`. Not needed for the host that the proxy forwards.",
        read_origins,
    )
    secure_cookies: bool = setting(
        "DSS_SECURE_COOKIES",
        False,
        "Browsers send the cookies of the admin over HTTPS only. Logging in over plain HTTP is then impossible.",
        environment.boolean,
    )
    hsts_seconds: int = setting(
        "DSS_HSTS_SECONDS",
        0,
        "How long browsers that have seen a page over HTTPS use only HTTPS for this host. 0: no such rule.",
        environment.integer(0, 10 * 365 * 24 * 3600),
    )
    tls_cert_file: str = setting(
        "DSS_TLS_CERT_FILE",
        "",
        "Certificate of the service port, followed by those of its authorities (PEM). If set, the port speaks HTTPS and WSS only.",
    )
    tls_key_file: str = setting(
        "DSS_TLS_KEY_FILE", "", "Its key (PEM, without a password). Both files are read again when they change."
    )
    tls_client_ca_file: str = setting(
        "DSS_TLS_CLIENT_CA_FILE",
        "",
        "If set, clients need a certificate of one of these authorities (PEM), on every entry point.",
    )
    tls_crl_file: str = setting(
        "DSS_TLS_CRL_FILE", "", "Revocation lists of these authorities (PEM), read again when the file changes."
    )
    tls_min_version: str = setting(
        "DSS_TLS_MIN_VERSION", "1.2", "Lowest version of TLS: `1.2` or `1.3`.", environment.one_of("1.2", "1.3")
    )
    server: str = setting(
        "DSS_SERVER",
        "daphne",
        "Web server for pages: `daphne` or `uvicorn` (faster).",
        environment.one_of("daphne", "uvicorn"),
    )
    connections_max: int = setting(
        "DSS_CONNECTIONS_MAX", 10_000, "Maximum number of open client connections.", environment.integer(16, 1_000_000)
    )
    connections_per_address_max: int = setting(
        "DSS_CONNECTIONS_PER_ADDRESS_MAX",
        10_000,
        "Maximum number of open connections from one address.",
        environment.integer(1, 1_000_000),
    )
    calls_per_address_max: int = setting(
        "DSS_CALLS_PER_ADDRESS_MAX",
        10_000,
        "Maximum number of calls in progress from one address: HTTP calls, and calls and subscriptions on WebSockets.",
        environment.integer(1, 1_000_000),
    )
    calls_per_second_per_address_max: int = setting(
        "DSS_CALLS_PER_SECOND_PER_ADDRESS_MAX",
        0,
        "Calls that one address may begin at this node in a second. 0: unlimited.",
        environment.integer(0, 1_000_000),
    )
    subscriptions_per_address_max: int = setting(
        "DSS_SUBSCRIPTIONS_PER_ADDRESS_MAX",
        0,
        "Subscriptions that one address may have at this node. 0: unlimited.",
        environment.integer(0, 1_000_000),
    )
    calls_per_second_per_token_max: int = setting(
        "DSS_CALLS_PER_SECOND_PER_TOKEN_MAX",
        0,
        "Calls that one token may begin at this node in a second. 0: unlimited.",
        environment.integer(0, 1_000_000),
    )
    calls_per_token_max: int = setting(
        "DSS_CALLS_PER_TOKEN_MAX",
        0,
        "Calls of one token in progress at this node. 0: unlimited.",
        environment.integer(0, 1_000_000),
    )
    websockets_per_token_max: int = setting(
        "DSS_WEBSOCKETS_PER_TOKEN_MAX",
        0,
        "WebSocket connections of one token at this node. 0: unlimited.",
        environment.integer(0, 1_000_000),
    )
    subscriptions_per_token_max: int = setting(
        "DSS_SUBSCRIPTIONS_PER_TOKEN_MAX",
        0,
        "Subscriptions of one token at this node. 0: unlimited.",
        environment.integer(0, 1_000_000),
    )
    body_bytes_max: int = setting(
        "DSS_BODY_BYTES_MAX",
        4 * 1024 * 1024,
        f"Maximum size of a request body. At most {BODY_BYTES_MAX}: what a call sends must fit into one log entry.",
        environment.integer(1024, BODY_BYTES_MAX),
    )
    client_bytes_max: int = setting(
        "DSS_CLIENT_BYTES_MAX",
        BYTES_MAX_DEFAULT,
        "Memory for clients: connections, requests, unread answers. Above it, the connections that use the most are ended.",
        environment.integer(16 * 1024 * 1024, 2**40),
    )
    drain_ms: int = setting(
        "DSS_DRAIN_MS", 5000, "How long a stopping node waits for calls in flight.", environment.integer(0, HOUR_MS)
    )
    watchdog_ms: int = setting(
        "DSS_WATCHDOG_MS",
        10_000,
        "How long the event loop may be blocked before the stacks of all threads are logged. After twice this time, the"
        " process exits with code 3. 0 turns the watchdog off.",
        environment.integer(0, HOUR_MS),
    )
    admin_password: str = setting(
        "DSS_ADMIN_PASSWORD",
        "",
        "Password of the first user of a new cluster, `admin`. A later change has no effect, which the log says.",
        shown="generated, in `<data dir>/admin-password`",
    )
    secret_key: str = setting(
        "DSS_SECRET_KEY",
        "",
        "Django's secret key, which signs sessions. If set, the same on every node.",
        shown="derived from the key of the tokens; a node without one generates `<data dir>/secret-key`",
    )
    log_format: str = setting(
        "DSS_LOG_FORMAT", "console", "`console` for people, `json` for log collectors.", environment.one_of("console", "json")
    )
    log_level: str = setting(
        "DSS_LOG_LEVEL", "info", "Minimum log level.", environment.one_of("debug", "info", "warning", "error", "critical")
    )
    traces: bool = setting(
        "DSS_TRACES",
        False,
        "Send an OpenTelemetry span of each call to the collector that `OTEL_EXPORTER_OTLP_ENDPOINT` names. Needs the extra `[otel]`.",
        environment.boolean,
    )
    django_metrics: bool = setting(
        "DSS_DJANGO_METRICS",
        False,
        "Also show the metrics of django-prometheus: requests and answers of pages and the admin.",
        environment.boolean,
    )
    silenced_checks: tuple[str, ...] = setting(
        "DSS_SILENCED_CHECKS",
        (),
        "Checks of `manage.py check --deploy` that are not shown again, because they are dealt with: `dss.I001,dss.I002`.",
        read_checks,
    )
    lab_url: str = setting(
        "DSS_LAB_URL",
        "",
        "Address of the lab, for the link on the pages: `http://127.0.0.1:8100`. `make run` sets it.",
        read_site,
    )
    debug: bool = setting(
        "DSS_DEBUG", False, "Show Django's debug pages. Never enable this on a node that others can reach.", environment.boolean
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> NodeConfig:
        """Read the settings.

        Raises:
            ConfigError: names each variable that cannot be used, with the reason.
        """
        values, faults = _read_fields(environ)
        if not faults:
            faults = _complete(values) or _contradictions(values)
        if faults:
            raise ConfigError(faults)
        return cls(**values)

    @property
    def tls(self) -> TlsFiles | None:
        """The TLS files of the service port; None: it speaks HTTP."""
        if not self.tls_cert_file:
            return None
        return TlsFiles(
            certificate=self.tls_cert_file,
            key=self.tls_key_file,
            client_ca=self.tls_client_ca_file,
            crl=self.tls_crl_file,
            min_version=self.tls_min_version,
        )

    @property
    def is_local_only(self) -> bool:
        """Whether only this machine reaches the service port. A proxy brings others to it."""
        return environment.is_loopback(self.rpc_host) and not self.trusted_proxies


def settings_table() -> list[Setting]:
    """Every setting, in the order of `NodeConfig`."""
    rows = []
    for item in fields(NodeConfig):
        shown = item.metadata["shown"]
        if shown is None:
            default = item.default
            shown = f"`{str(default).lower() if isinstance(default, bool) else default}`" if default not in ("", ()) else ""
        rows.append(Setting(item.metadata["variable"], shown, item.metadata["meaning"]))
    return rows


#: of programs that use the cluster, and of `dss`
CLIENT_VARIABLES = frozenset(("DSS_URLS", "DSS_TOKEN", "DSS_CA_FILE", "DSS_CLIENT_CERT_FILE", "DSS_CLIENT_KEY_FILE"))


def unknown_variables(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables that look like misspelt settings: name -> the similar setting, "" if none is similar.

    A variable without the prefix `DSS_` may belong to another program. It is reported only if it is very similar to a setting.
    """
    known = {row.variable for row in settings_table()} | CLIENT_VARIABLES
    unknown = {}
    for name in sorted(environ):
        base = name.upper().removesuffix("_FILE")
        if name in known or name.removesuffix("_FILE") in known:
            continue
        similarity = SIMILARITY_WITH_PREFIX if base.startswith("DSS_") else SIMILARITY
        meant = difflib.get_close_matches(base, known, 1, similarity)
        if meant or base.startswith("DSS_"):
            unknown[name] = meant[0] + ("_FILE" if base != name.upper() else "") if meant else ""
    return unknown


def _read_fields(environ: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    values: dict[str, Any] = {}
    faults = []
    for item in fields(NodeConfig):
        variable, read = item.metadata["variable"], item.metadata["read"]
        assert item.default is not MISSING
        try:
            given = environment.raw(environ, variable)
            values[item.name] = item.default if given is None else read(given)
        except ValueError as error:
            faults.append(f"{variable} {error}")
    return values, faults


def _complete(values: dict[str, Any]) -> list[str]:
    """Fill in the defaults that depend on other settings."""
    values["data_dir"] = str(Path(values["data_dir"] or Path(".dss") / values["node_id"]).absolute())
    values["peer_host"] = values["peer_host"] or values["rpc_host"]
    values["cache_memory"] = values["cache_memory"] or ("redis" if values["redis_url"] else "django")
    if not values["peer_port"]:
        values["peer_port"] = values["rpc_port"] + values["peer_port_offset"]
        if values["peer_port"] > PORT_MAX:
            return [f"RPC_PORT leaves no peer port {values['peer_port_offset']} above it; set DSS_PEER_PORT_OFFSET"]
    try:
        members = _read_peers(values["peers"] or "", values["peer_port_offset"])
    except ValueError as error:
        return [f"PEERS {error}"]
    myself = next((peer for peer in members if peer.id == values["node_id"]), None)
    values["peers"] = tuple(peer for peer in members if peer is not myself)
    values["url"] = values["url"].rstrip("/") or (myself.url if myself else _own_url(values))
    values["allowed_hosts"] = values["allowed_hosts"] or _default_hosts(values)
    return []


def _own_url(values: dict[str, Any]) -> str:
    host = values["node_id"] if environment.is_wildcard(values["rpc_host"]) else values["rpc_host"]
    scheme = "https" if values["tls_cert_file"] else "http"
    return f"{scheme}://{_bracketed(host)}:{values['rpc_port']}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _default_hosts(values: dict[str, Any]) -> tuple[str, ...]:
    hosts = ["localhost", "127.0.0.1", "[::1]"]
    if not environment.is_wildcard(values["rpc_host"]):
        hosts.append(_bracketed(values["rpc_host"]))
    hosts.append(values["node_id"])
    hosts.append(_bracketed(urlsplit(values["url"]).hostname or "localhost"))
    hosts.extend(_bracketed(peer.host) for peer in values["peers"])
    return tuple(dict.fromkeys(host.lower() for host in hosts))


def _read_peers(text: str, peer_port_offset: int) -> tuple[Peer, ...]:
    peers: dict[str, Peer] = {}
    for part in environment.comma_separated(text):
        peer = _read_peer(part, peer_port_offset)
        if peer.id in peers:
            raise ValueError(f"names {peer.id} twice")
        peers[peer.id] = peer
    return tuple(peers.values())


def _read_peer(text: str, peer_port_offset: int) -> Peer:
    wanted = f"must be like http://node-2:8102/node-2 (or https://…), not {text!r}"
    url = urlsplit(text)
    try:
        port = url.port
    except ValueError:
        port = None
    peer_id = url.path.strip("/")
    is_url = url.scheme in ("http", "https") and url.hostname and port is not None and not url.query
    if not is_url or not NODE_ID_PATTERN.fullmatch(peer_id):
        raise ValueError(wanted)
    assert url.hostname is not None
    assert port is not None
    if port + peer_port_offset > PORT_MAX:
        raise ValueError(f"gives {peer_id} a port with no peer port {peer_port_offset} above it")
    return Peer(peer_id, f"{url.scheme}://{_bracketed(url.hostname)}:{port}", url.hostname, port, port + peer_port_offset)


def _contradictions(values: dict[str, Any]) -> list[str]:
    """Faults of settings that are valid one by one but not together."""
    faults = []
    if values["raft_election_max_ms"] <= values["raft_election_min_ms"]:
        faults.append(
            "RAFT_ELECTION_MAX_MS must be greater than RAFT_ELECTION_MIN_MS: the random difference prevents split votes"
        )
    if values["raft_election_min_ms"] < 2 * values["raft_heartbeat_ms"]:
        faults.append("RAFT_ELECTION_MIN_MS must be at least twice RAFT_HEARTBEAT_MS, or followers depose a healthy leader")
    if values["cache_memory"] == "redis" and not values["redis_url"]:
        faults.append("REDIS_URL is missing: DSS_CACHE_MEMORY is redis")
    faults += _tls_contradictions(values)
    if values["peer_port"] == values["rpc_port"]:
        faults.append("DSS_PEER_PORT must be another port than RPC_PORT")
    if values["sqs_port"] in (values["rpc_port"], values["peer_port"]):
        faults.append("DSS_SQS_PORT must be another port than RPC_PORT and DSS_PEER_PORT")
    if values["body_bytes_max"] < values["value_bytes_max"]:
        faults.append("DSS_BODY_BYTES_MAX must be at least DSS_VALUE_BYTES_MAX")
    exposed = [name for name in ("rpc_host", "peer_host") if not environment.is_loopback(values[name])]
    if exposed and not values["cluster_secret"]:
        variable = "RPC_HOST" if exposed[0] == "rpc_host" else "DSS_PEER_HOST"
        faults.append(
            f"DSS_CLUSTER_SECRET is missing: {variable}={values[exposed[0]]} listens beyond loopback, where without a secret"
            " anyone could join the cluster through the peer port. Give every node the same long random text"
        )
    elif exposed and len(values["cluster_secret"]) < SECRET_CHARACTERS_MIN:
        faults.append(
            f"DSS_CLUSTER_SECRET must have at least {SECRET_CHARACTERS_MIN} characters on a node that listens beyond loopback, or"
            " others could guess it. Use a random text: openssl rand -base64 33"
        )
    return [*faults, *_peer_contradictions(values, bool(exposed))]


def _peer_contradictions(values: dict[str, Any], is_exposed: bool) -> list[str]:
    """Faults of the settings for links between members."""
    faults = []
    if values["cluster_secret_previous"] and not values["cluster_secret"]:
        faults.append("DSS_CLUSTER_SECRET is missing: DSS_CLUSTER_SECRET_PREVIOUS is only the one before it")
    if is_exposed and not values["peer_tls"]:
        faults.append("DSS_PEER_TLS=false is possible on loopback only: without TLS, links are not encrypted")
    needed = {name: values[f"peer_{name}_file"] for name in ("certificate", "key", "ca")}
    missing = [f"DSS_PEER_{name.upper()}_FILE" for name, path in needed.items() if not path]
    if 0 < len(missing) < len(needed):
        faults.append(
            f"{' and '.join(missing)} missing: a node's own certificate for links needs certificate, key and authorities"
        )
    if values["peer_crl_file"] and missing:
        faults.append("DSS_PEER_CRL_FILE needs DSS_PEER_CERTIFICATE_FILE, DSS_PEER_KEY_FILE and DSS_PEER_CA_FILE")
    return faults


def _tls_contradictions(values: dict[str, Any]) -> list[str]:
    faults = []
    if bool(values["tls_cert_file"]) != bool(values["tls_key_file"]):
        faults.append("DSS_TLS_CERT_FILE and DSS_TLS_KEY_FILE belong together: set both, or neither")
    if values["tls_client_ca_file"] and not values["tls_cert_file"]:
        faults.append("DSS_TLS_CLIENT_CA_FILE needs DSS_TLS_CERT_FILE: without TLS, clients have no certificates")
    if values["tls_crl_file"] and not values["tls_client_ca_file"]:
        faults.append("DSS_TLS_CRL_FILE needs DSS_TLS_CLIENT_CA_FILE: it revokes the certificates of clients")
    scheme = "https" if values["tls_cert_file"] else "http"
    if urlsplit(values["url"]).scheme not in ("", scheme):
        speaks = (
            "this node speaks HTTPS (DSS_TLS_CERT_FILE)"
            if scheme == "https"
            else "without DSS_TLS_CERT_FILE this node speaks HTTP"
        )
        faults.append(f"this node's address {values['url']} must begin with {scheme}:// ({speaks}). It is in DSS_URL or PEERS")
    return faults
