"""The usage and the limits of the replicated state: metrics, and warnings in the log. See `replication/limits.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import structlog
from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from dss_raft.node import Node
    from dss_raft.replication.limits import StateLimits

log = structlog.get_logger("raft")

#: A limit is reported when this share of it is in use,
WARN_ABOVE = 0.8
#: and again when the share has fallen below this. The gap avoids a line for every change around one value.
CALM_BELOW = 0.7
#: one check in this many calls: about every second
CHECK_TICKS = 10

_node: Node | None = None


def attach(node: Node) -> None:
    """Show the usage of this node's state, and warn about it. Call it once, when the node is built; a process has only one."""
    global _node
    _node = node
    alarm = UsageAlarm(node.replica.limits)
    ticks = 0

    def check() -> None:
        nonlocal ticks
        ticks += 1
        if ticks % CHECK_TICKS == 0:
            alarm.check()

    node.on_upkeep(check)


class UsageAlarm:
    """Logs once when a limit is nearly used up, and once when that is over."""

    def __init__(self, limits: StateLimits) -> None:
        self._limits = limits
        #: limits that were reported and are still high
        self._high: set[str] = set()

    def check(self) -> None:
        """Compare all limits with their usage."""
        for name, limit in self._limits.declared.items():
            used, maximum = limit.used(), self._limits.maxima[name]
            if name in self._high:
                if used < maximum * CALM_BELOW:
                    self._high.discard(name)
                    log.info("raft.limit_calm", limit=name, used=used, maximum=maximum)
            elif used >= maximum * WARN_ABOVE:
                self._high.add(name)
                log.warning("raft.limit_near", limit=name, used=used, maximum=maximum)


class StateCollector(Collector):
    """The metrics of the running node's state; none if no node runs."""

    def collect(self) -> Iterator[Any]:
        kinds = GaugeMetricFamily("dss_state_bytes", "Bytes of the replicated state, by kind", labels=["kind"])
        maxima = GaugeMetricFamily("dss_state_bytes_max", "Limits in bytes of the replicated state", labels=["limit"])
        in_use = GaugeMetricFamily("dss_limit_used", "How much of a limit of the replicated state is in use", labels=["limit"])
        limits = GaugeMetricFamily("dss_limit_max", "The limits of the replicated state", labels=["limit"])
        if _node is not None:
            replica = _node.replica
            for kind, used in replica.usage().items():
                kinds.add_metric([kind], used)
            for limit in replica.limits.declared.values():
                in_use.add_metric([limit.name], limit.used())
                limits.add_metric([limit.name], replica.limits.maxima[limit.name])
                if limit.unit == "bytes":
                    maxima.add_metric([limit.name], replica.limits.maxima[limit.name])
        yield from (kinds, maxima, in_use, limits)


REGISTRY.register(StateCollector())
