"""The settings of the cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from dss_api import environment
from dss_api.environment import HOUR_MS, ValueLimit, setting

if TYPE_CHECKING:
    from dss_raft.node import Node


@dataclass(frozen=True, kw_only=True)
class CacheConfig(ValueLimit):
    """Settings of the cache."""

    redis_url: str = setting("REDIS_URL", "", "Redis behind the cache, `redis://localhost:6379/0`.")
    cache_max_items: int = setting("CACHE_MAX_ITEMS", 10_000, "Cache lines this node keeps.", environment.integer(1, 10_000_000))
    cache_max_bytes: int = setting(
        "DSS_CACHE_MAX_BYTES",
        256 * 1024 * 1024,
        "Bytes of keys and values in those lines, and 400 for each line; whichever bound is met first counts.",
        environment.integer(64 * 1024, 2**40),
    )
    cache_policy: str = setting(
        "DSS_CACHE_POLICY",
        "lru",
        "Which line goes when there is no room: `lru` or `w-tinylfu`.",
        environment.one_of("lru", "w-tinylfu"),
    )
    cache_backing_prefix: str = setting("CACHE_BACKING_PREFIX", "kv:", "Prefix of the cache's keys in Redis.")
    cache_memory: str = setting(
        "DSS_CACHE_MEMORY",
        "",
        "Memory behind the cache: `django` (this node's SQLite) or `redis` (shared).",
        environment.one_of("django", "redis"),
        shown="`redis` when `REDIS_URL` is set, else `django`",
    )
    cache_lease_ms: int = setting(
        "DSS_CACHE_LEASE_MS",
        1000,
        "A node may answer from its lines for so long after it heard the leader; the leader's own setting counts.",
        environment.integer(50, HOUR_MS),
    )
    cache_write_back_ms: int = setting(
        "DSS_CACHE_WRITE_BACK_MS",
        1000,
        "A written value goes to the memory about this much later.",
        environment.integer(1, HOUR_MS),
    )


def config_of(node: Node) -> CacheConfig:
    """The cache's settings. The assembly gives the node one configuration, which is that of every subsystem."""
    return cast("CacheConfig", node.config)
