"""Metrics of the steps that this node calls."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

#: Steps of the library that calls of clients and the upkeep make.
STEPS = ("publish", "consume", "ack", "nack", "extend", "put_group", "sweep", "stats", "group_stats", "peek", "group_peek")
#: Codes of calls that failed because of the engine.
FAILURES = ("engine_away", "unknown_outcome", "over_limit")

_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

queue_engine_call_seconds = Histogram(
    "queue_engine_call_seconds",
    "Time of one step on the engine from this node, repeats and the wait for replicas or disks included",
    ["step"],
    buckets=_SECONDS,
)
queue_engine_failures_total = Counter(
    "queue_engine_failures_total", "Steps on the engine that failed at this node, by the code of the refusal", ["code"]
)

_of_step: dict[str, Histogram] = {step: queue_engine_call_seconds.labels(step) for step in STEPS}
_of_code: dict[str, Counter] = {code: queue_engine_failures_total.labels(code) for code in FAILURES}


def observe(step: str, seconds: float) -> None:
    """Count one step that was answered."""
    histogram = _of_step.get(step)
    if histogram is None:
        # The steps are those of the library, so there are few.
        histogram = _of_step[step] = queue_engine_call_seconds.labels(step)
    histogram.observe(seconds)


def count_failure(code: str) -> None:
    """Count one step that was refused."""
    if (counter := _of_code.get(code)) is not None:
        counter.inc()
