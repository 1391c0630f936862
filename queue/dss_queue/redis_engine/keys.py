"""The names of all keys. Nothing else may build one.

All keys of a partition contain `{topic:partition}`, so a Cluster has them in one slot, and one call may use them all.
"""

from __future__ import annotations

from functools import lru_cache

#: Cached names: those of the partitions and groups that were used last.
CACHED_MAX = 2048

_OF_PARTITION = ("info", "messages", "dedup", "once", "done", "groups")
#: The place of the tokens of publishes among the keys of a partition.
ONCE = _OF_PARTITION.index("once")
_OF_GROUP = (
    "group",
    "in_flight",
    "handouts",
    "due",
    "past",
    "ready",
    "waiting",
    "keys",
    "parked",
    "private",
    "dead",
    "dead_order",
    "batches",
)
#: The places of some keys of a group among them.
HANDOUTS = _OF_GROUP.index("handouts")
DEAD_ORDER = _OF_GROUP.index("dead_order")
#: What would end a hash tag early, and the sign that stands for it.
_ESCAPED = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})


@lru_cache(CACHED_MAX)
def partition_keys(topic: str, partition: int) -> tuple[str, ...]:
    """The keys of a partition, in the order in which the library expects them."""
    prefix = _prefix(topic, partition)
    return tuple(f"{prefix}{name}" for name in _OF_PARTITION)


@lru_cache(CACHED_MAX)
def group_keys(topic: str, partition: int, group: str) -> tuple[str, ...]:
    """The keys of a group in a partition, in the order in which the library expects them."""
    prefix = f"{_prefix(topic, partition)}g:{group.translate(_ESCAPED)}:"
    return tuple(f"{prefix}{name}" for name in _OF_GROUP)


def engine_name(keyspace: str, incarnation: int, topic: str) -> str:
    """The name of a topic on the engine. One that is deleted and created again, or that comes back, never meets its old keys.

    Args:
        keyspace: the name of the cluster, or of the one whose messages it has taken over.
        incarnation: of the topic's stay on the engine, see `dss_queue.core.engines`.
    """
    return f"{keyspace}/{incarnation}/{topic}"


def parts_of(name: str) -> tuple[int, str]:
    """Incarnation and topic of an engine's name of a topic."""
    _, incarnation, topic = name.split("/", 2)
    return int(incarnation), topic


def channel(topic: str, partition: int) -> str:
    """The sharded channel that says that a group may have something ready. The message is the key of the group, or empty for all."""
    return partition_keys(topic, partition)[0]


def _prefix(topic: str, partition: int) -> str:
    return f"dss:{{{topic.translate(_ESCAPED)}:{partition}}}:"
