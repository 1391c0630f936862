"""Gauges of the engine `redis`: its state at this node, and the topics on it, which are replicated state and the same on every node.

`redis_engine/step_metrics.py` has those of its calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast, get_args

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from dss_queue.core.broker import Broker
from dss_queue.engine_service import SERVICE, EngineService, State

# The metrics of steps exist from the start, as all others do, also at a node without an engine.
from dss_queue.redis_engine import step_metrics as step_metrics
from dss_raft.answers import ServiceState

if TYPE_CHECKING:
    from dss_raft.node import Node

#: What the engine can be at a node; see `EngineService.state`.
STATES = get_args(State)


class EngineCollector(Collector):
    """Gauges, computed on collection. Must be collected in the node's event loop."""

    def __init__(self) -> None:
        self.broker: Broker | None = None
        self.state: Callable[[], str] = lambda: "none"

    def describe(self) -> Iterator[GaugeMetricFamily]:
        return iter(self._families())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        state, topics, moving, abandoned = families = self._families()
        now = self.state()
        for name in STATES:
            state.add_metric([name], name == now)
        stay = leave = come = 0
        for topic in self.broker.topics.values() if self.broker is not None else ():
            if topic.engine is None:
                continue
            if topic.engine.is_leaving:
                leave += 1
                continue
            stay += 1
            come += bool(topic.messages.by_number)
        topics.add_metric([], stay)
        moving.add_metric(["redis"], come)
        moving.add_metric(["raft"], leave)
        abandoned.add_metric([], len(self.broker.registry.abandoned) if self.broker else 0)
        return iter(families)

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, ...]:
        return (
            GaugeMetricFamily("queue_engine_state", "1 for the state of the engine at this node", labels=["state"]),
            GaugeMetricFamily("queue_engine_topics", "Topics whose messages are on the engine"),
            GaugeMetricFamily(
                "queue_engine_moving_topics",
                "Topics that move, and whose former engine has something left, by the engine they move to",
                labels=["to"],
            ),
            GaugeMetricFamily("queue_engine_abandoned", "Topics that are deleted or have left, and whose keys are still there"),
        )


_collector = EngineCollector()
REGISTRY.register(_collector)


def attach(node: Node, service: EngineService) -> None:
    """Show the topics of this node's broker, and the state of the engine, also in `/ready`. Called once, when the node is built."""
    _collector.broker, _collector.state = cast(Broker, node.machine("queue")), lambda: service.state
    node.show_service(lambda: ServiceState(name=SERVICE, state=service.state, detail=service.detail, since_ms=service.since_ms))
