"""The settings of a Raft member. `dss_project.config` reads them from the environment."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dss_api import environment
from dss_api.environment import HOUR_MS, setting
from dss_raft.size_limits import VALUE_BYTES_MAX
from dss_raft.versions import LATEST, MIN

NODE_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Peer:
    """Another member of the cluster, from `PEERS`."""

    id: str
    #: URL of its service, "http://node-2:8102"
    url: str
    host: str
    port: int
    #: the port on which it listens for other members
    peer_port: int


def read_node_id(value: str) -> str:
    """Raises:
    ValueError: the text says what an id must look like.
    """
    if not NODE_ID_PATTERN.fullmatch(value):
        raise ValueError(f"must be 1 to 64 letters, digits, '.', '_' or '-', not {value!r}")
    return value


@dataclass(frozen=True, kw_only=True)
class ValueLimit:
    """The limit that the queue and the cache share."""

    value_bytes_max: int = setting(
        "DSS_VALUE_BYTES_MAX",
        256 * 1024,
        f"Maximum size of an encoded message or cache value. At most {VALUE_BYTES_MAX}: a value must fit into one log entry.",
        environment.integer(1, VALUE_BYTES_MAX),
    )


@dataclass(frozen=True, kw_only=True)
class RaftConfig:
    """Settings of a Raft member."""

    node_id: str = setting(
        "NODE_ID", "node-1", "Name of this node. Must be unique in the cluster and must not change.", read_node_id
    )
    peers: tuple[Peer, ...] = setting(
        "PEERS", (), "The other members: `http://node-2:8102/node-2,http://node-3:8103/node-3`. Empty: a cluster of one node."
    )
    url: str = setting(
        "DSS_URL",
        "",
        "URL at which the other members reach this node's service.",
        shown="`http://<RPC_HOST or NODE_ID>:<RPC_PORT>`",
    )
    join: bool = setting(
        "DSS_JOIN",
        False,
        "Start without members and wait to be added to a running cluster (`POST /raft/members`).",
        environment.boolean,
    )
    peer_host: str = setting("DSS_PEER_HOST", "", "Listen address of the peer port.", shown="`RPC_HOST`")
    peer_port: int = setting(
        "DSS_PEER_PORT", 0, "Port on which the other members connect.", environment.port, shown="`RPC_PORT` + offset"
    )
    peer_port_offset: int = setting(
        "DSS_PEER_PORT_OFFSET",
        1000,
        "Difference between the service port and the peer port of every member.",
        environment.integer(1, 60_000),
    )
    cluster_id: str = setting("DSS_CLUSTER_ID", "dss", "Name of the cluster. Nodes of other clusters are refused.", read_node_id)
    cluster_secret: str = setting(
        "DSS_CLUSTER_SECRET",
        "",
        "Secret from which members compute the certificates with which they link. Required unless the node listens on loopback only.",
    )
    cluster_secret_previous: str = setting(
        "DSS_CLUSTER_SECRET_PREVIOUS",
        "",
        "The secret before a change: links and tokens made with it are still accepted.",
    )
    peer_tls: bool = setting(
        "DSS_PEER_TLS",
        True,
        "Members link with TLS. `false` is possible on loopback only: links are then authenticated, not encrypted.",
        environment.boolean,
    )
    peer_certificate_file: str = setting(
        "DSS_PEER_CERTIFICATE_FILE",
        "",
        "PEM file with this node's certificate for links and its chain. Its URI is `dss://<DSS_CLUSTER_ID>/<NODE_ID>`.",
        shown="computed from the secret",
    )
    peer_key_file: str = setting("DSS_PEER_KEY_FILE", "", "PEM file with the key of that certificate.")
    peer_ca_file: str = setting(
        "DSS_PEER_CA_FILE", "", "PEM file with the authorities whose certificates members accept from each other."
    )
    peer_crl_file: str = setting("DSS_PEER_CRL_FILE", "", "PEM file with revocation lists of these authorities.")
    cluster_version_max: int = setting(
        "DSS_CLUSTER_VERSION_MAX",
        LATEST,
        "Highest cluster version that this node supports. Set it during an upgrade, to be able to go back to the older release.",
        environment.integer(MIN, LATEST),
        shown="the newest that the release supports",
    )
    data_dir: str = setting("DSS_DATA_DIR", "", "Directory for all data of this node.", shown="`.dss/<NODE_ID>`")
    raft_election_min_ms: int = setting(
        "RAFT_ELECTION_MIN_MS", 500, "Minimum election timeout.", environment.integer(20, HOUR_MS)
    )
    raft_election_max_ms: int = setting(
        "RAFT_ELECTION_MAX_MS", 1000, "Maximum election timeout.", environment.integer(20, HOUR_MS)
    )
    raft_heartbeat_ms: int = setting("RAFT_HEARTBEAT_MS", 100, "Heartbeat interval.", environment.integer(5, HOUR_MS))
    submit_timeout_ms: int = setting(
        "DSS_SUBMIT_TIMEOUT_MS",
        5000,
        "How long a call waits for a majority before it fails with 503.",
        environment.integer(50, HOUR_MS),
    )
    pending_commands_max: int = setting(
        "DSS_PENDING_COMMANDS_MAX",
        10_000,
        "Maximum number of calls in flight on this node. Further calls fail with 429.",
        environment.integer(1, 1_000_000),
    )
    snapshot_entries: int = setting(
        "DSS_SNAPSHOT_ENTRIES", 10_000, "Take a snapshot after this many log entries.", environment.integer(4, 100_000_000)
    )
    snapshot_bytes: int = setting(
        "DSS_SNAPSHOT_BYTES", 64 * 1024 * 1024, "Take a snapshot after this many bytes of log.", environment.integer(1024, 2**40)
    )
    state_hash_interval_s: int = setting(
        "DSS_STATE_HASH_INTERVAL_S",
        600,
        "Interval in seconds at which the nodes compare hashes of their states, if the log has new entries. 0: never.",
        environment.integer(0, 7 * 24 * 3600),
    )
