"""Messages that the program gets, and which ones it must not get."""

from __future__ import annotations

import contextlib
from typing import Any

from dss_client.queue import AsyncMessage


class Delivery:
    """A message that this program has.

    Attributes:
        tag: kombu's delivery tag.
    """

    __slots__ = ("message", "queue", "tag", "visibility_s")

    def __init__(self, tag: str, queue: str, message: AsyncMessage, visibility_s: float) -> None:
        self.tag = tag
        self.queue = queue
        self.message = message
        self.visibility_s = visibility_s


class Consumer:
    """A queue from which this channel takes messages."""

    __slots__ = ("message_ttl_ms", "no_ack", "queue", "ttl")

    def __init__(self, queue: str, no_ack: bool, ttl: float | None, message_ttl_ms: int | None) -> None:
        self.queue = queue
        self.no_ack = no_ack
        #: of a temporary queue, in seconds
        self.ttl = ttl
        self.message_ttl_ms = message_ttl_ms


def raw_message(delivery: Delivery) -> dict[str, Any]:
    """The message as kombu wants it."""
    message: dict[str, Any] = dict(delivery.message.value)
    properties = dict(message["properties"])
    properties["delivery_tag"] = delivery.tag
    properties["delivery_info"] = {**properties["delivery_info"], "redelivered": delivery.message.attempt > 1}
    message["properties"] = properties
    return message


def properties_of(message: AsyncMessage) -> dict[str, Any] | None:
    """The properties of a message that kombu published."""
    properties = message.value.get("properties") if isinstance(message.value, dict) else None
    return properties if isinstance(properties, dict) and isinstance(properties.get("delivery_info"), dict) else None


def is_current(message: AsyncMessage, properties: dict[str, Any], message_ttl_ms: int | None) -> bool:
    """Whether neither the message nor its queue lets it expire by now, by the cluster's clock."""
    limits = [message_ttl_ms]
    with contextlib.suppress(TypeError, ValueError):
        limits.append(int(properties["expiration"]) if properties.get("expiration") else None)
    age_ms = message.delivered_ms - message.published_ms
    return all(limit is None or age_ms < limit for limit in limits)


def routing_key_of(properties: dict[str, Any]) -> str:
    return str(properties["delivery_info"].get("routing_key") or "")
