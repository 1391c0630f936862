"""Every setting of a node: read from the environment, here and nowhere else, and checked before anything starts.

A field of `NodeConfig` is the one definition of a setting: its variable, its default, how it is read and what it means.
The table in the README is made from it (`manage.py settings_table`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dss_project import env

NODE_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PORT_MAX = 65_535
HOUR_MS = 3_600_000


class ConfigError(Exception):
    """The environment does not describe a node that can start. The text lists every fault, one to a line."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Peer:
    """Another member of the cluster, as `PEERS` names it."""

    id: str
    #: its service address, "http://node-2:8102"
    url: str
    host: str
    port: int
    #: where it listens for other members
    peer_port: int


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table of settings."""

    variable: str
    default: str
    meaning: str


def _setting(variable: str, default: Any, meaning: str, read: env.Reader = env.text, shown: str | None = None) -> Any:
    """A field that `from_env` fills from `variable`. `shown` describes a default that is computed."""
    metadata = {"variable": variable, "meaning": meaning, "read": read, "shown": shown}
    return field(default=default, metadata=metadata)


def _read_node_id(value: str) -> str:
    if not NODE_ID_PATTERN.fullmatch(value):
        raise ValueError(f"must be 1 to 64 letters, digits, '.', '_' or '-', not {value!r}")
    return value


_port = env.integer(1, PORT_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """The settings of one node. `from_env` is the way to get one; tests may build their own."""

    node_id: str = _setting("NODE_ID", "node-1", "This node's name, unique in the cluster and kept for life.", _read_node_id)
    rpc_host: str = _setting("RPC_HOST", "127.0.0.1", "Address the service listens on. `0.0.0.0` is every interface.")
    rpc_port: int = _setting("RPC_PORT", 8201, "Service port: API, admin, metrics.", _port)
    peers: tuple[Peer, ...] = _setting(
        "PEERS", (), "The other members: `http://node-2:8102/node-2,http://node-3:8103/node-3`. None: a cluster of one."
    )
    redis_url: str = _setting("REDIS_URL", "", "Redis behind the cache, `redis://localhost:6379/0`.")

    raft_election_min_ms: int = _setting(
        "RAFT_ELECTION_MIN_MS", 500, "Shortest time without a leader before a node campaigns.", env.integer(20, HOUR_MS)
    )
    raft_election_max_ms: int = _setting("RAFT_ELECTION_MAX_MS", 1000, "Longest such time.", env.integer(20, HOUR_MS))
    raft_heartbeat_ms: int = _setting("RAFT_HEARTBEAT_MS", 100, "How often a leader is heard of.", env.integer(5, HOUR_MS))
    queue_num_vnodes: int = _setting(
        "QUEUE_NUM_VNODES", 64, "Points of each partition on the hash ring of routing keys.", env.integer(1, 4096)
    )
    queue_visibility_timeout_ms: int = _setting(
        "QUEUE_VISIBILITY_TIMEOUT_MS",
        15_000,
        "How long a consumed message stays hidden before it is delivered again, unless the call says otherwise.",
        env.integer(1, 12 * HOUR_MS),
    )
    cache_max_items: int = _setting("CACHE_MAX_ITEMS", 10_000, "Cache lines this node keeps.", env.integer(1, 10_000_000))
    cache_max_bytes: int = _setting(
        "DSS_CACHE_MAX_BYTES",
        256 * 1024 * 1024,
        "Bytes of keys and values in those lines, and 400 for each line; whichever bound is met first counts.",
        env.integer(64 * 1024, 2**40),
    )
    cache_policy: str = _setting(
        "DSS_CACHE_POLICY", "lru", "Which line goes when there is no room: `lru` or `w-tinylfu`.", env.one_of("lru", "w-tinylfu")
    )
    cache_backing_prefix: str = _setting("CACHE_BACKING_PREFIX", "kv:", "Prefix of the cache's keys in Redis.")

    data_dir: str = _setting("DSS_DATA_DIR", "", "Where this node keeps everything.", shown="`.dss/<NODE_ID>`")
    cluster_id: str = _setting(
        "DSS_CLUSTER_ID", "dss", "Name of the cluster; members of another one are turned away.", _read_node_id
    )
    cluster_secret: str = _setting(
        "DSS_CLUSTER_SECRET", "", "Shared by the members: opens the peer port. Required to listen beyond loopback."
    )
    url: str = _setting(
        "DSS_URL", "", "The address others reach this node's service at.", shown="`http://<RPC_HOST or NODE_ID>:<RPC_PORT>`"
    )
    join: bool = _setting(
        "DSS_JOIN",
        False,
        "Start without members of its own and wait to be added to a running cluster (`POST /raft/members`).",
        env.boolean,
    )
    peer_host: str = _setting("DSS_PEER_HOST", "", "Address the peer port listens on.", shown="`RPC_HOST`")
    peer_port: int = _setting("DSS_PEER_PORT", 0, "Port for the other members.", _port, shown="`RPC_PORT` + offset")
    peer_port_offset: int = _setting(
        "DSS_PEER_PORT_OFFSET", 1000, "From a member's service port to its peer port.", env.integer(1, 60_000)
    )
    allowed_hosts: tuple[str, ...] = _setting(
        "DSS_ALLOWED_HOSTS",
        (),
        "Host names this node answers to, besides any IP address; `*` is all. Keeps other sites' pages out (DNS rebinding).",
        env.comma_separated,
        shown="`localhost`, `RPC_HOST`, `NODE_ID`, the peers' hosts",
    )
    api_token: str = _setting("DSS_API_TOKEN", "", "When set, calls need `Authorization: Bearer <token>`.")
    server: str = _setting("DSS_SERVER", "daphne", "`daphne` or `uvicorn` (faster).", env.one_of("daphne", "uvicorn"))
    cache_memory: str = _setting(
        "DSS_CACHE_MEMORY",
        "",
        "Memory behind the cache: `django` (this node's SQLite) or `redis` (shared).",
        env.one_of("django", "redis"),
        shown="`redis` when `REDIS_URL` is set, else `django`",
    )
    cache_lease_ms: int = _setting(
        "DSS_CACHE_LEASE_MS",
        1000,
        "A node may answer from its lines for so long after it heard the leader; the leader's own setting counts.",
        env.integer(50, HOUR_MS),
    )
    cache_write_back_ms: int = _setting(
        "DSS_CACHE_WRITE_BACK_MS", 1000, "A written value goes to the memory about this much later.", env.integer(1, HOUR_MS)
    )
    value_bytes_max: int = _setting(
        "DSS_VALUE_BYTES_MAX", 256 * 1024, "Longest encoded value of a message or cache entry.", env.integer(1, 64 * 1024 * 1024)
    )
    body_bytes_max: int = _setting(
        "DSS_BODY_BYTES_MAX", 4 * 1024 * 1024, "Longest request body.", env.integer(1024, 256 * 1024 * 1024)
    )
    submit_timeout_ms: int = _setting(
        "DSS_SUBMIT_TIMEOUT_MS",
        5000,
        "How long a call tries to reach a majority before it is answered 503.",
        env.integer(50, HOUR_MS),
    )
    pending_commands_max: int = _setting(
        "DSS_PENDING_COMMANDS_MAX", 10_000, "Calls in flight on this node before it answers 429.", env.integer(1, 1_000_000)
    )
    snapshot_entries: int = _setting(
        "DSS_SNAPSHOT_ENTRIES", 10_000, "Log entries after which a snapshot is taken.", env.integer(4, 100_000_000)
    )
    snapshot_bytes: int = _setting(
        "DSS_SNAPSHOT_BYTES", 64 * 1024 * 1024, "Log bytes after which a snapshot is taken.", env.integer(1024, 2**40)
    )
    drain_ms: int = _setting("DSS_DRAIN_MS", 5000, "At a stop, calls in flight get this long to finish.", env.integer(0, HOUR_MS))
    admin_password: str = _setting(
        "DSS_ADMIN_PASSWORD", "", "Password of the first user, `admin`.", shown="generated, in `<data dir>/admin-password`"
    )
    secret_key: str = _setting("DSS_SECRET_KEY", "", "Django's secret key.", shown="generated, in `<data dir>/secret-key`")
    log_format: str = _setting(
        "DSS_LOG_FORMAT", "console", "`console` for people, `json` for collectors.", env.one_of("console", "json")
    )
    log_level: str = _setting(
        "DSS_LOG_LEVEL", "info", "Least level logged.", env.one_of("debug", "info", "warning", "error", "critical")
    )
    debug: bool = _setting("DSS_DEBUG", False, "Django's debug pages. Never where others can reach it.", env.boolean)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> NodeConfig:
        """Read the settings.

        Raises:
            ConfigError: names each variable that cannot be used, and why.
        """
        values, faults = _read_fields(environ)
        if not faults:
            faults = _complete(values) or _contradictions(values)
        if faults:
            raise ConfigError(faults)
        return cls(**values)

    @property
    def peer_is_local_only(self) -> bool:
        return env.is_loopback(self.rpc_host) and env.is_loopback(self.peer_host)


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


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """`DSS_…` variables that no setting reads: most likely misspelt."""
    known = {row.variable for row in settings_table()}
    return sorted(name for name in environ if name.startswith("DSS_") and name.removesuffix("_FILE") not in known)


def _read_fields(environ: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    values: dict[str, Any] = {}
    faults = []
    for item in fields(NodeConfig):
        variable, read = item.metadata["variable"], item.metadata["read"]
        assert item.default is not MISSING
        try:
            given = env.raw(environ, variable)
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
    host = values["node_id"] if env.is_wildcard(values["rpc_host"]) else values["rpc_host"]
    return f"http://{_bracketed(host)}:{values['rpc_port']}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _default_hosts(values: dict[str, Any]) -> tuple[str, ...]:
    hosts = ["localhost", "127.0.0.1", "[::1]"]
    if not env.is_wildcard(values["rpc_host"]):
        hosts.append(_bracketed(values["rpc_host"]))
    hosts.append(values["node_id"])
    hosts.append(_bracketed(urlsplit(values["url"]).hostname or "localhost"))
    hosts.extend(_bracketed(peer.host) for peer in values["peers"])
    return tuple(dict.fromkeys(host.lower() for host in hosts))


def _read_peers(text: str, peer_port_offset: int) -> tuple[Peer, ...]:
    peers: dict[str, Peer] = {}
    for part in env.comma_separated(text):
        peer = _read_peer(part, peer_port_offset)
        if peer.id in peers:
            raise ValueError(f"names {peer.id} twice")
        peers[peer.id] = peer
    return tuple(peers.values())


def _read_peer(text: str, peer_port_offset: int) -> Peer:
    wanted = f"must be like http://node-2:8102/node-2, not {text!r}"
    url = urlsplit(text)
    try:
        port = url.port
    except ValueError:
        port = None
    peer_id = url.path.strip("/")
    if url.scheme != "http" or not url.hostname or port is None or url.query or not NODE_ID_PATTERN.fullmatch(peer_id):
        raise ValueError(wanted)
    if port + peer_port_offset > PORT_MAX:
        raise ValueError(f"gives {peer_id} a port with no peer port {peer_port_offset} above it")
    return Peer(peer_id, f"http://{_bracketed(url.hostname)}:{port}", url.hostname, port, port + peer_port_offset)


def _contradictions(values: dict[str, Any]) -> list[str]:
    """What is wrong with settings that are fine one by one."""
    faults = []
    if values["raft_election_max_ms"] <= values["raft_election_min_ms"]:
        faults.append("RAFT_ELECTION_MAX_MS must be greater than RAFT_ELECTION_MIN_MS: the difference is what breaks a tie")
    if values["raft_election_min_ms"] < 2 * values["raft_heartbeat_ms"]:
        faults.append("RAFT_ELECTION_MIN_MS must be at least twice RAFT_HEARTBEAT_MS, or a healthy leader is deposed")
    if values["cache_memory"] == "redis" and not values["redis_url"]:
        faults.append("REDIS_URL is missing: DSS_CACHE_MEMORY is redis")
    if values["redis_url"] and urlsplit(values["redis_url"]).scheme not in ("redis", "rediss", "unix"):
        faults.append(f"REDIS_URL must begin with redis://, rediss:// or unix://, not {values['redis_url']!r}")
    if values["peer_port"] == values["rpc_port"]:
        faults.append("DSS_PEER_PORT must be another port than RPC_PORT")
    if values["body_bytes_max"] < values["value_bytes_max"]:
        faults.append("DSS_BODY_BYTES_MAX must be at least DSS_VALUE_BYTES_MAX")
    exposed = [name for name in ("rpc_host", "peer_host") if not env.is_loopback(values[name])]
    if exposed and not values["cluster_secret"]:
        variable = "RPC_HOST" if exposed[0] == "rpc_host" else "DSS_PEER_HOST"
        faults.append(
            f"DSS_CLUSTER_SECRET is missing: {variable}={values[exposed[0]]} listens beyond loopback, where without a secret"
            " anyone could join the cluster through the peer port. Give every node the same long random text"
        )
    return faults
