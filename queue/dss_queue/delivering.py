"""Delivered messages before they are sent to a client, in an answer or by push."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from dss_queue import metrics
from dss_queue.answers import Delivered
from dss_queue.core import inspection


def count_delivered(counters: metrics.TopicCounters, messages: Sequence[Mapping[str, Any]]) -> None:
    """Count the messages that one consume got from the log."""
    first = (one["delivered_ms"] - one["published_ms"] for one in messages if one["attempt"] == 1)
    _count(counters, len(messages), first)


def count_structs(counters: metrics.TopicCounters, messages: Sequence[Delivered]) -> None:
    """Count the messages that one consume or subscription got."""
    _count(counters, len(messages), (one.delivered_ms - one.published_ms for one in messages if one.attempt == 1))


def _count(counters: metrics.TopicCounters, count: int, first_waits_ms: Iterable[int]) -> None:
    """
    Args:
        first_waits_ms: how long those that were delivered for the first time had waited.
    """
    if not count:
        counters.consumed("empty")
        return
    counters.consumed("message", count)
    waited_ms = Counter(first_waits_ms)
    metrics.observe_each_ms(metrics.queue_deliver_seconds, waited_ms)
    again = count - waited_ms.total()
    if again:
        counters.redelivered.inc(again)


def delivered(message: dict[str, Any]) -> Delivered:
    """A message of a consume's result as the client gets it: its JSON is sent unchanged."""
    return Delivered(
        msg_id=message["msg_id"],
        value=msgspec.Raw(message["value"]),
        key=message["key"],
        headers=inspection.json_text(message["headers"]),
        partition=message["partition"],
        receipt=message["receipt"],
        attempt=message["attempt"],
        first_delivered_ms=message.get("first_delivered_ms", msgspec.UNSET),
        delivered_ms=message["delivered_ms"],
        visible_until_ms=message["visible_until_ms"],
        published_ms=message["published_ms"],
    )
