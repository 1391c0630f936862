"""The admin's view of the broker: what is in flight, and what has died."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from typing import cast

from django.contrib import admin

from dss_project import runtime
from dss_project.live_admin import LiveAdmin, LiveValuesFilter, rows_from_loop
from dss_queue import inspection
from dss_queue.broker import Broker
from dss_queue.models import DeadLetterRow, InFlightRow
from dss_queue.records import Ending, message_id

#: A list shows so many rows at most: the snapshot is taken between two calls that others wait for.
ROWS_MAX = 5_000
VALUE_SHOWN_MAX = 2_000


def _broker() -> Broker:
    return cast(Broker, runtime.node().machine("queue"))


def in_flight_rows(broker: Broker, now_ms: int) -> list[InFlightRow]:
    """The first deliveries."""
    rows = []
    for group, delivery in islice(inspection.deliveries(broker), ROWS_MAX):
        message = delivery.message
        msg_id = message_id(message.number)
        rows.append(
            InFlightRow(
                row_id=f"{msg_id}.{len(group.name)}.{group.name}.{group.topic.name}",
                topic=group.topic.name,
                group=group.name,
                msg_id=msg_id,
                key=message.key,
                partition=message.partition,
                attempt=delivery.attempt,
                node=delivery.handout.origin.node,
                visible_in_ms=max(0, delivery.due_ms - now_ms),
                age_ms=max(0, now_ms - message.published_ms),
                value=_beginning(message.value),
            )
        )
    return rows


def dead_letter_rows(broker: Broker) -> list[DeadLetterRow]:
    """The first dead letters."""
    rows = []
    for group, dead in islice(inspection.dead_letters(broker), ROWS_MAX):
        msg_id = message_id(dead.number)
        rows.append(
            DeadLetterRow(
                row_id=f"{msg_id}.{len(group.name)}.{group.name}.{group.topic.name}",
                topic=group.topic.name,
                group=group.name,
                msg_id=msg_id,
                key=dead.key,
                reason=dead.reason,
                attempts=dead.attempts,
                dead_at=_time(dead.dead_ms),
                published_at=_time(dead.published_ms),
                history="\n".join(_ending_text(ending) for ending in dead.history),
                value=_beginning(dead.value),
            )
        )
    return rows


def _beginning(value: bytes) -> str:
    return value[:VALUE_SHOWN_MAX].decode(errors="replace") + ("…" if len(value) > VALUE_SHOWN_MAX else "")


def _time(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def _ending_text(ending: Ending) -> str:
    held_ms = ending.ended_ms - ending.delivered_ms
    return f"attempt {ending.attempt}: {ending.reason} after {held_ms} ms, by {ending.node}, {_time(ending.ended_ms):%F %T}"


@admin.register(InFlightRow)
class InFlightRowAdmin(LiveAdmin):
    """Messages in the hands of consumers."""

    list_display = ("msg_id", "topic", "group", "key", "attempt", "node", "visible_in_ms", "age_ms")
    list_filter = (("topic", LiveValuesFilter), ("group", LiveValuesFilter), ("node", LiveValuesFilter))
    search_fields = ("msg_id", "topic", "group", "key", "value")

    def rows(self) -> list[InFlightRow]:
        return rows_from_loop(lambda: in_flight_rows(_broker(), inspection.wall_clock_ms()))


@admin.register(DeadLetterRow)
class DeadLetterRowAdmin(LiveAdmin):
    """Messages that groups have given up."""

    list_display = ("msg_id", "topic", "group", "key", "reason", "attempts", "dead_at")
    list_filter = (("topic", LiveValuesFilter), ("group", LiveValuesFilter), ("reason", LiveValuesFilter))
    search_fields = ("msg_id", "topic", "group", "key", "value", "history")

    def rows(self) -> list[DeadLetterRow]:
        return rows_from_loop(lambda: dead_letter_rows(_broker()))
