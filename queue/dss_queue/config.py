"""The queue's settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from dss_api import environment
from dss_api.environment import HOUR_MS, PORT_MAX, setting
from dss_queue.redis_engine import address
from dss_raft.config import ValueLimit, read_node_id

if TYPE_CHECKING:
    from dss_raft.node import Node


@dataclass(frozen=True, kw_only=True)
class QueueConfig(ValueLimit):
    """Settings of the queue."""

    queue_num_vnodes: int = setting(
        "QUEUE_NUM_VNODES", 64, "Virtual nodes of each partition on the hash ring of routing keys.", environment.integer(1, 4096)
    )
    queue_visibility_timeout_ms: int = setting(
        "QUEUE_VISIBILITY_TIMEOUT_MS",
        15_000,
        "Default visibility timeout: an unacknowledged message is delivered again after this time.",
        environment.integer(1, 12 * HOUR_MS),
    )
    sqs_port: int = setting(
        "DSS_SQS_PORT",
        0,
        "Port for programs that speak Amazon SQS, on the same address as the service port. 0: none.",
        environment.integer(0, PORT_MAX),
    )
    engine_url: str = setting(
        "DSS_ENGINE_URL",
        "",
        "Redis or Valkey for topics with the setting `engine: redis`: `redis://localhost:6379/0`, or a Cluster "
        "`redis+cluster://host1:7000,host2:7000`. With TLS: `rediss…`. The same servers on every node, with `maxmemory-policy noeviction`.",
        address.checked,
    )
    engine_replicas_min: int = setting(
        "DSS_ENGINE_REPLICAS_MIN",
        1,
        "Replicas of a primary that must have a change of a topic with `acks: replica` or `acks: fsync`. 0: servers without replicas.",
        environment.integer(0, 5),
    )
    engine_keyspace: str = setting(
        "DSS_ENGINE_KEYSPACE",
        "",
        "The first part of the names of all keys on the engine, the same on every node. Set it only after a restore, to the name of "
        "the old cluster, to go on with its messages. Never use one keyspace for two clusters that run.",
        read_node_id,
        shown="`DSS_CLUSTER_ID`",
    )


def config_of(node: Node) -> QueueConfig:
    """The queue's settings: the node has one configuration for all subsystems."""
    return cast("QueueConfig", node.config)
