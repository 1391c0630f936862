"""The time from publish to delivery is observed once for all messages of a consume."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from dss_queue.metrics import observe_each_ms

BUCKETS = (0.001, 0.005, 0.25, 1, 300)


def samples(histogram: Histogram) -> list[tuple[str, str, float]]:
    (family,) = histogram.collect()
    return [
        (one.name, one.labels.get("le", ""), round(one.value, 6)) for one in family.samples if not one.name.endswith("_created")
    ]


@given(st.lists(st.integers(0, 400_000) | st.sampled_from([int(bound * 1000) for bound in BUCKETS]), max_size=100))
def test_it_counts_as_an_observation_of_each_does(times_ms: list[int]) -> None:
    together, each = (Histogram("seconds", "Times", buckets=BUCKETS, registry=CollectorRegistry()) for _ in range(2))
    observe_each_ms(together, Counter(times_ms))
    for ms in times_ms:
        each.observe(ms / 1000)
    assert samples(together) == samples(each)
