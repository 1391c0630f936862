"""Topics that nothing uses are deleted: those that a typing error made would stay for good.

The leader looks for topics that were not used for a day of applied time and proposes their deletion. What the command deletes depends
only on the replicated state: a topic must be empty, and must have no settings of its own and no group that was created on purpose.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, cast

from dss_queue.core.broker import Broker
from dss_queue.core.topic_commands import IDLE_PER_COMMAND_MAX, DropIdle

if TYPE_CHECKING:
    from dss_raft.node import Node

IDLE_MS = 24 * 3600 * 1000
#: How often the leader looks.
LOOK_MS = 60_000


class IdleTopics:
    """See the module. Created before the node starts."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._broker = cast(Broker, node.machine("queue"))
        self._next_ms = 0
        node.on_upkeep(self._look)

    def _look(self) -> None:
        node, broker = self._node, self._broker
        if not node.is_leader or (now_ms := node.now_ms()) < self._next_ms or not broker.registry.create_topics:
            return
        self._next_ms = now_ms + LOOK_MS
        unused = (one.name for one in broker.topics.values() if one.used_ms + IDLE_MS <= now_ms and one.is_idle)
        names = list(islice(unused, IDLE_PER_COMMAND_MAX))
        if names:
            node.propose_as_leader(DropIdle(topics=names))
