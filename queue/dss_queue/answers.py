"""What the calls of the queue answer: the OpenAPI document is made from these."""

from __future__ import annotations

from typing import Any

import msgspec

from dss_queue.core.commands import TopicSettings


class Published(msgspec.Struct):
    msg_id: str
    partition: int
    #: a message with the same dedup_id was there already; this is its id
    duplicate: bool


class PublishAnswer(msgspec.Struct):
    #: with `messages` in the call, only that list
    msg_id: str | None = None
    partition: int | None = None
    duplicate: bool | None = None
    messages: list[Published] | None = None


class Delivered(msgspec.Struct):
    msg_id: str | None
    value: Any
    key: str
    headers: dict[str, str] | None
    partition: int
    #: names this delivery in ack, nack and extend
    receipt: str
    #: 1 for the first delivery
    attempt: int
    delivered_ms: int
    #: the message goes to somebody else then, unless it is acked or extended
    visible_until_ms: int
    published_ms: int


class ConsumeAnswer(msgspec.Struct):
    #: null: there was nothing
    msg_id: str | None = None
    value: Any = None
    key: str | None = None
    headers: dict[str, str] | None = None
    partition: int | None = None
    receipt: str | None = None
    attempt: int | None = None
    delivered_ms: int | None = None
    visible_until_ms: int | None = None
    published_ms: int | None = None
    #: why there was nothing: no_messages, all_in_flight, delayed, key_blocked
    empty_reason: str | None = None
    #: with `max_messages` in the call, instead of the fields of one message
    messages: list[Delivered] | None = None


class AckResult(msgspec.Struct):
    msg_id: str
    acked: bool
    #: "stale_receipt" when another consumer has it
    code: str | None = None


class AckAnswer(msgspec.Struct):
    #: false: it was done already (a repeat is harmless), or with `msg_ids`: not all were acked
    acked: bool
    #: with `msg_ids`
    results: list[AckResult] | None = None
    #: with `publish`
    published: list[Published] | None = None
    #: with `publish` or `release`: for each lock whether there was anything to release
    released: list[bool] | None = None


class NackAnswer(msgspec.Struct):
    #: false: the message was not in flight
    nacked: bool
    #: it went to the dead letters
    dead: bool


class ExtendAnswer(msgspec.Struct):
    msg_id: str
    visible_until_ms: int


class StatsAnswer(msgspec.Struct):
    #: without `topic` in the call: one line for each topic
    topics: list[dict[str, Any]] | None = None
    topic_count: int | None = None
    topic: str | None = None
    exists: bool | None = None
    messages: int | None = None
    bytes: int | None = None
    published: int | None = None
    expired: int | None = None
    dead: int | None = None
    group_count: int | None = None
    oldest_age_ms: int | None = None
    publish_per_second: float | None = None
    settings: dict[str, int] | None = None
    #: per group: ready, delayed, in_flight, dead, waiters, oldest_age_ms, totals, and rates over ten seconds
    groups: list[dict[str, Any]] | None = None


class PeekAnswer(msgspec.Struct):
    messages: list[dict[str, Any]]


class TopicAnswer(TopicSettings, kw_only=True):
    topic: str


class RedriveAnswer(msgspec.Struct):
    redriven: int


class PurgeAnswer(msgspec.Struct):
    purged: int
