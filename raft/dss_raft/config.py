"""The settings of a Raft member, read from environment variables by the assembly."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dss_api import environment
from dss_api.environment import HOUR_MS, setting

NODE_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


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


def read_node_id(value: str) -> str:
    """Raises:
    ValueError: says what an id must look like.
    """
    if not NODE_ID_PATTERN.fullmatch(value):
        raise ValueError(f"must be 1 to 64 letters, digits, '.', '_' or '-', not {value!r}")
    return value


@dataclass(frozen=True, kw_only=True)
class RaftConfig:
    """Settings of a Raft member."""

    node_id: str = setting("NODE_ID", "node-1", "This node's name, unique in the cluster and kept for life.", read_node_id)
    peers: tuple[Peer, ...] = setting(
        "PEERS", (), "The other members: `http://node-2:8102/node-2,http://node-3:8103/node-3`. None: a cluster of one."
    )
    url: str = setting(
        "DSS_URL", "", "The address others reach this node's service at.", shown="`http://<RPC_HOST or NODE_ID>:<RPC_PORT>`"
    )
    join: bool = setting(
        "DSS_JOIN",
        False,
        "Start without members of its own and wait to be added to a running cluster (`POST /raft/members`).",
        environment.boolean,
    )
    peer_host: str = setting("DSS_PEER_HOST", "", "Address the peer port listens on.", shown="`RPC_HOST`")
    peer_port: int = setting("DSS_PEER_PORT", 0, "Port for the other members.", environment.port, shown="`RPC_PORT` + offset")
    peer_port_offset: int = setting(
        "DSS_PEER_PORT_OFFSET", 1000, "From a member's service port to its peer port.", environment.integer(1, 60_000)
    )
    cluster_id: str = setting(
        "DSS_CLUSTER_ID", "dss", "Name of the cluster; members of another one are turned away.", read_node_id
    )
    cluster_secret: str = setting(
        "DSS_CLUSTER_SECRET", "", "Shared by the members: opens the peer port. Required to listen beyond loopback."
    )
    data_dir: str = setting("DSS_DATA_DIR", "", "Where this node keeps everything.", shown="`.dss/<NODE_ID>`")
    raft_election_min_ms: int = setting(
        "RAFT_ELECTION_MIN_MS", 500, "Shortest time without a leader before a node campaigns.", environment.integer(20, HOUR_MS)
    )
    raft_election_max_ms: int = setting("RAFT_ELECTION_MAX_MS", 1000, "Longest such time.", environment.integer(20, HOUR_MS))
    raft_heartbeat_ms: int = setting("RAFT_HEARTBEAT_MS", 100, "How often a leader is heard of.", environment.integer(5, HOUR_MS))
    submit_timeout_ms: int = setting(
        "DSS_SUBMIT_TIMEOUT_MS",
        5000,
        "How long a call tries to reach a majority before it is answered 503.",
        environment.integer(50, HOUR_MS),
    )
    pending_commands_max: int = setting(
        "DSS_PENDING_COMMANDS_MAX",
        10_000,
        "Calls in flight on this node before it answers 429.",
        environment.integer(1, 1_000_000),
    )
    snapshot_entries: int = setting(
        "DSS_SNAPSHOT_ENTRIES", 10_000, "Log entries after which a snapshot is taken.", environment.integer(4, 100_000_000)
    )
    snapshot_bytes: int = setting(
        "DSS_SNAPSHOT_BYTES", 64 * 1024 * 1024, "Log bytes after which a snapshot is taken.", environment.integer(1024, 2**40)
    )
