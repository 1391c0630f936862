"""The settings of the cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from dss_api import environment, redis_url
from dss_api.environment import HOUR_MS, setting
from dss_raft.config import ValueLimit

if TYPE_CHECKING:
    from dss_raft.node import Node


@dataclass(frozen=True, kw_only=True)
class CacheConfig(ValueLimit):
    """Settings of the cache."""

    redis_url: str = setting(
        "REDIS_URL",
        "",
        "Redis or Valkey for the backing store: `redis://localhost:6379/0`, a Cluster `redis+cluster://host1:7000,host2:7000`, or "
        "Sentinels `redis+sentinel://host1:26379,host2:26379/name`. With TLS: `rediss…`.",
        redis_url.checked,
    )
    cache_redis_timeout_ms: int = setting(
        "DSS_CACHE_REDIS_TIMEOUT_MS",
        1000,
        "How long connecting to a Redis server, or its next answer, may take. After that, it counts as down.",
        environment.integer(50, 60_000),
    )
    cache_redis_connections_max: int = setting(
        "DSS_CACHE_REDIS_CONNECTIONS_MAX",
        50,
        "Maximum number of connections to each Redis server. Further reads and write-backs wait for one.",
        environment.integer(1, 10_000),
    )
    cache_max_items: int = setting(
        "CACHE_MAX_ITEMS", 10_000, "Maximum number of cache lines on this node.", environment.integer(1, 10_000_000)
    )
    cache_max_bytes: int = setting(
        "DSS_CACHE_MAX_BYTES",
        256 * 1024 * 1024,
        "Maximum size of all cache lines: keys, values and 400 bytes per line. The limit reached first applies.",
        environment.integer(64 * 1024, 2**40),
    )
    cache_policy: str = setting(
        "DSS_CACHE_POLICY",
        "lru",
        "Eviction policy: `lru` or `w-tinylfu`.",
        environment.one_of("lru", "w-tinylfu"),
    )
    cache_backing_prefix: str = setting("CACHE_BACKING_PREFIX", "kv:", "Prefix of the cache keys in Redis.")
    cache_memory: str = setting(
        "DSS_CACHE_MEMORY",
        "",
        "Backing store of the cache: `django` (this node's SQLite database) or `redis` (shared by all nodes).",
        environment.one_of("django", "redis"),
        shown="`redis` when `REDIS_URL` is set, else `django`",
    )
    cache_lease_ms: int = setting(
        "DSS_CACHE_LEASE_MS",
        1000,
        "Coherence lease: how long a node may answer from its lines without hearing from the leader. The leader's value applies.",
        environment.integer(50, HOUR_MS),
    )
    cache_client_lease_ms: int = setting(
        "DSS_CACHE_CLIENT_LEASE_MS",
        300,
        "Longest lease of a near client: how long it may answer from its own entries without hearing from this node. A client that "
        "does not answer delays the puts of its keys for up to this time.",
        environment.integer(20, 60_000),
    )
    cache_clients_max: int = setting(
        "DSS_CACHE_CLIENTS_MAX", 1000, "Near clients that this node serves at a time.", environment.integer(1, 100_000)
    )
    cache_client_keys_max: int = setting(
        "DSS_CACHE_CLIENT_KEYS_MAX",
        20_000,
        "Keys that one near client may hold. A client that reaches this starts again with none.",
        environment.integer(1, 10_000_000),
    )
    cache_client_bytes_max: int = setting(
        "DSS_CACHE_CLIENT_BYTES_MAX",
        256 * 1024 * 1024,
        "Memory for the keys that near clients hold: the text and 240 bytes for each key, however many clients hold it. Above it, the "
        "client that holds most starts again with none.",
        environment.integer(64 * 1024, 2**40),
    )
    cache_write_back_ms: int = setting(
        "DSS_CACHE_WRITE_BACK_MS",
        1000,
        "Delay before a written value is copied to the backing store.",
        environment.integer(1, HOUR_MS),
    )


def config_of(node: Node) -> CacheConfig:
    """The cache's settings. The node has one configuration, which contains those of every subsystem."""
    return cast("CacheConfig", node.config)
