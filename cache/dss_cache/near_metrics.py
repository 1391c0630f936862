"""How long near clients take to confirm an invalidation."""

from __future__ import annotations

from prometheus_client import Histogram

CONFIRMATION = Histogram(
    "cache_near_confirmation_seconds",
    "Time from an invalidation of a near client to its confirmation.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1),
)
