"""The queue's metrics.

A node counts its own calls, in messages; an empty consume counts once. A dead letter needs no call (a timeout is enough), so only the
leader counts it, and the sum over the nodes is right. Gauges show the replicated state, which is the same on every node, and what the
engine `redis` has (engine_numbers.py). A topic whose numbers there are not known has no gauges meanwhile: half of a sum would look like
the whole.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from prometheus_client import REGISTRY, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from dss_queue.core.broker import Broker
from dss_queue.core.inspection import oldest_age_ms
from dss_queue.core.records import DeadLettered
from dss_queue.core.topic import Topic

if TYPE_CHECKING:
    from dss_queue.engine_numbers import EngineNumbers, OnEngine
    from dss_raft.node import Node

#: Topics with a label of their own; the rest share "other".
TOPIC_LABELS_MAX = 100
OTHER = "other"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)

queue_publish_total = Counter("queue_publish_total", "Messages published at this node, without duplicates", ["topic"])
queue_consume_total = Counter(
    "queue_consume_total",
    "Consume calls at this node: messages delivered (result=message), and calls with another result",
    ["topic", "result"],
)
queue_redeliver_total = Counter("queue_redeliver_total", "Messages delivered again at this node (attempt > 1)", ["topic"])
queue_dead_total = Counter("queue_dead_total", "Messages that became dead letters, counted by the leader", ["reason"])
queue_deliver_seconds = Histogram(
    "queue_deliver_seconds", "Time from publish to first delivery, for messages delivered at this node", buckets=_SECONDS
)

CONSUME_RESULTS = ("message", "empty", "cancelled", "refused", "failed")

for _reason in ("max_attempts", "rejected", "expired"):
    queue_dead_total.labels(_reason)


def observe_each_ms(histogram: Histogram, times_ms: Mapping[int, int]) -> None:
    """What `observe` does, for times in ms and how often each one was measured.

    A consume of a hundred messages measures a hundred times, most of them equal: `observe` for each would take 130 µs, this takes 20.
    """
    histogram._sum.inc(sum(ms * count for ms, count in times_ms.items()) / 1000)
    bounds, buckets = histogram._upper_bounds, histogram._buckets
    for ms, count in times_ms.items():
        buckets[bisect_left(bounds, ms / 1000)].inc(count)


class TopicCounters:
    """The counters of one topic. They are kept because looking up a label costs more than counting."""

    __slots__ = ("_results", "published", "redelivered")

    def __init__(self, label: str) -> None:
        self.published = queue_publish_total.labels(label)
        self.redelivered = queue_redeliver_total.labels(label)
        self._results: dict[str, Any] = {result: queue_consume_total.labels(label, result) for result in CONSUME_RESULTS}

    def consumed(self, result: str, count: int = 1) -> None:
        """Count `count` messages, or one call that got none."""
        self._results[result].inc(count)


_of_topic: dict[str, TopicCounters] = {}
_others = TopicCounters(OTHER)


def of_topic(topic: str) -> TopicCounters:
    """The counters of `topic`, which it may share with other topics."""
    counters = _of_topic.get(topic)
    if counters is not None:
        return counters
    if len(_of_topic) >= TOPIC_LABELS_MAX:
        return _others
    counters = _of_topic[topic] = TopicCounters(topic)
    return counters


class StateCollector(Collector):
    """Gauges of the broker's state, computed on collection. Must be collected in the node's event loop."""

    def __init__(self) -> None:
        self.broker: Broker | None = None
        self.now_ms: Callable[[], int] = lambda: 0
        self.on_engine: OnEngine = lambda topic: None

    def describe(self) -> Iterator[GaugeMetricFamily]:
        return iter(self._families())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        in_flight, depth, oldest = self._families()
        totals: dict[str, list[float]] = {}
        now_ms = self.now_ms()
        topics = list(self.broker.topics.values()) if self.broker is not None else []
        if len(topics) <= TOPIC_LABELS_MAX:
            # Each gets a label in any case. So its counters are there before this node's first call.
            for topic in topics:
                of_topic(topic.name)
        for place, topic in enumerate(topics):
            values = self._values(topic, now_ms)
            if values is None:
                continue
            total = totals.setdefault(topic.name if place < TOPIC_LABELS_MAX else OTHER, [0, 0, 0])
            total[0] += values[0]
            total[1] += values[1]
            total[2] = max(total[2], values[2])
        for label, total in totals.items():
            for family, value in zip((in_flight, depth, oldest), total, strict=True):
                family.add_metric([label], value)
        return iter((in_flight, depth, oldest))

    def _values(self, topic: Topic, now_ms: int) -> tuple[int, int, float] | None:
        """In flight, depth, and oldest age; None: not known."""
        in_flight = sum(len(group.in_flight) for group in topic.groups.values())
        depth, oldest_ms = len(topic.messages.by_number), oldest_age_ms(topic, now_ms)
        if topic.engine is not None:
            found = self.on_engine(topic)
            if found is None:
                return None
            in_flight += sum(group.in_flight for group in found.groups.values())
            depth, oldest_ms = depth + found.topic.messages, max(oldest_ms, found.topic.oldest_age_ms)
        return in_flight, depth, oldest_ms / 1000

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
        return (
            GaugeMetricFamily("queue_inflight", "Messages in flight, all groups", labels=["topic"]),
            GaugeMetricFamily(
                "queue_depth", "Messages that the topic retains because a group is not finished with them", labels=["topic"]
            ),
            GaugeMetricFamily("queue_oldest_age_seconds", "Age of the oldest message that the topic retains", labels=["topic"]),
        )


_collector = StateCollector()
REGISTRY.register(_collector)


def show_engine(numbers: EngineNumbers) -> None:
    """Add to the gauges and dead letters what the engine `redis` has. Called once, when the node is built."""
    _collector.on_engine = numbers.of
    numbers.on_dead = lambda reason, count: queue_dead_total.labels(reason).inc(count)


def attach(node: Node) -> None:
    """Connect the gauges to this node's broker, and count dead letters while it leads. Called once, when the node is built."""
    _collector.broker, _collector.now_ms = cast(Broker, node.machine("queue")), node.now_ms

    def count_dead(event: DeadLettered, index: int) -> None:
        if node.is_leader:
            queue_dead_total.labels(event.reason).inc()

    node.on_event(DeadLettered, count_dead)
