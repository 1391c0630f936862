"""Delivered messages on their way to a client, by answer or by push."""

from __future__ import annotations

from typing import Any

import msgspec

from dss_queue import metrics
from dss_queue.core import inspection


def count_delivered(counters: metrics.TopicCounters, messages: list[dict[str, Any]]) -> None:
    """Count what one consume got."""
    if not messages:
        counters.consumed("empty")
        return
    counters.consumed("message", len(messages))
    again = 0
    for message in messages:
        if message["attempt"] > 1:
            again += 1
        else:
            metrics.queue_deliver_seconds.observe((message["delivered_ms"] - message["published_ms"]) / 1000)
    if again:
        counters.redelivered.inc(again)


def shown(message: dict[str, Any]) -> dict[str, Any]:
    """A message as the client sees it: its JSON goes into the answer as it is."""
    return {
        **message,
        "value": msgspec.Raw(message["value"]),
        "headers": inspection.json_text(message["headers"]),
    }
