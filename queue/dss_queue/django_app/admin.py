"""The broker in the admin: backlogs, messages in flight, and dead letters."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple, cast

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse

from dss_admin.live_admin import LiveAdmin, LiveValuesFilter, duration, rows_from_loop
from dss_api import running
from dss_api.operation import named
from dss_api.rights import OPERATE
from dss_queue.core import inspection
from dss_queue.core.broker import Broker
from dss_queue.core.commands import Nack, Redrive
from dss_queue.core.records import Dead, Ending, Message, message_id, receipt_of
from dss_queue.core.topic_commands import DeleteGroup, DeleteTopic
from dss_queue.django_app.models import BacklogRow, DeadLetterRow, InFlightRow
from dss_queue.operations import OPERATIONS

#: Maximum rows of a list. What they show is copied in the event loop, so other calls wait meanwhile.
ROWS_MAX = 5_000
#: Maximum rows of the list of groups, whose figures are computed in the event loop.
GROUPS_MAX = 1_000
VALUE_SHOWN_MAX = 2_000


def _broker() -> Broker:
    return cast(Broker, running.node().machine("queue"))


class TakenDelivery(NamedTuple):
    """A delivery, copied: it changes and ends in the event loop."""

    topic: str
    group: str
    message: Message
    serial: int
    attempt: int
    node: str
    due_ms: int


def take_backlogs(broker: Broker, now_ms: int) -> list[dict[str, Any]]:
    """The first groups, and topics without one, for `backlog_rows`."""
    return list(islice(inspection.backlogs(broker, now_ms), GROUPS_MAX))


def backlog_rows(taken: list[dict[str, Any]]) -> list[BacklogRow]:
    return [BacklogRow(row_id=f"{len(line['topic'])}.{line['topic']}.{line['group']}", **line) for line in taken]


def take_in_flight(broker: Broker) -> list[TakenDelivery]:
    """The first deliveries, for `in_flight_rows`."""
    return [
        TakenDelivery(group.messages.topic, group.name, one.message, one.serial, one.attempt, one.handout.origin.node, one.due_ms)
        for group, one in islice(inspection.deliveries(broker), ROWS_MAX)
    ]


def in_flight_rows(taken: list[TakenDelivery], now_ms: int) -> list[InFlightRow]:
    rows = []
    for one in taken:
        message = one.message
        msg_id = message_id(message.number)
        rows.append(
            InFlightRow(
                row_id=f"{msg_id}.{len(one.group)}.{one.group}.{one.topic}",
                topic=one.topic,
                group=one.group,
                msg_id=msg_id,
                key=message.key,
                partition=message.partition,
                receipt=receipt_of(msg_id, one.serial),
                attempt=one.attempt,
                node=one.node,
                visible_in_ms=max(0, one.due_ms - now_ms),
                age_ms=max(0, now_ms - message.published_ms),
                value=_beginning(message.value),
            )
        )
    return rows


def take_dead_letters(broker: Broker) -> list[tuple[str, str, Dead]]:
    """The first dead letters, each with its topic and group, for `dead_letter_rows`. Nothing changes a dead letter."""
    return [(group.messages.topic, group.name, dead) for group, dead in islice(inspection.dead_letters(broker), ROWS_MAX)]


def dead_letter_rows(taken: list[tuple[str, str, Dead]]) -> list[DeadLetterRow]:
    rows = []
    for topic, group, dead in taken:
        msg_id = message_id(dead.number)
        rows.append(
            DeadLetterRow(
                row_id=f"{msg_id}.{len(group)}.{group}.{topic}",
                topic=topic,
                group=group,
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


@admin.register(BacklogRow)
class BacklogRowAdmin(LiveAdmin):
    """Topics, and the unfinished messages of their groups."""

    list_display = (
        "topic",
        "group",
        "ready",
        "delayed",
        "in_flight",
        "dead",
        "waiting",
        duration("oldest_age_ms", "oldest"),
        "published_per_s",
        "acked_per_s",
        "bytes",
    )
    list_filter = (("topic", LiveValuesFilter), ("group", LiveValuesFilter))
    search_fields = ("topic", "group")
    actions = ("delete_groups", "delete_topics")

    def rows(self) -> list[BacklogRow]:
        return backlog_rows(rows_from_loop(lambda: take_backlogs(_broker(), running.node().now_ms())))

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        response = super().changelist_view(request, extra_context)
        if len(getattr(request, "_live_rows", ())) >= GROUPS_MAX:
            self.message_user(request, f"Only the first {GROUPS_MAX:,} are shown and searched.", messages.WARNING)
        return response

    @admin.action(description="Delete the groups, with their dead letters", permissions=["operate"])
    def delete_groups(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        groups = [row for row in queryset if row.group]
        results = self.do_each(
            request, groups, named(OPERATIONS, "queue.group_delete"), lambda row: DeleteGroup(topic=row.topic, group=row.group)
        )
        deleted = sum(result.body["deleted"] for result in results)
        self.message_user(request, f"{deleted} groups deleted.")

    @admin.action(description="Delete the topics, with all their messages and groups", permissions=["operate"])
    def delete_topics(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        topics = list({row.topic: row for row in queryset}.values())
        results = self.do_each(request, topics, named(OPERATIONS, "queue.topic_delete"), lambda row: DeleteTopic(topic=row.topic))
        deleted = sum(result.body["deleted"] for result in results)
        self.message_user(request, f"{deleted} topics deleted.")


@admin.register(InFlightRow)
class InFlightRowAdmin(LiveAdmin):
    """Messages that consumers have taken and not finished."""

    contents = ("value",)
    list_display = (
        "msg_id",
        "topic",
        "group",
        "key",
        "attempt",
        "node",
        duration("visible_in_ms", "comes back in"),
        duration("age_ms", "published ago"),
        "value",
    )
    actions = ("requeue",)
    list_filter = (("topic", LiveValuesFilter), ("group", LiveValuesFilter), ("node", LiveValuesFilter))
    search_fields = ("msg_id", "topic", "group", "key", "value")

    def rows(self) -> list[InFlightRow]:
        return in_flight_rows(*rows_from_loop(lambda: (take_in_flight(_broker()), running.node().now_ms())))

    @admin.action(description="Return to the queue now (the attempt counts as failed)", permissions=["operate"])
    def requeue(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        def nack(row: InFlightRow) -> Nack:
            return Nack(topic=row.topic, group=row.group, msg_id=row.msg_id, receipt=row.receipt, delay_ms=0)

        # The operation is for the consumer; here an operator acts.
        results = self.do_each(request, queryset, named(OPERATIONS, "queue.nack"), nack, needs=OPERATE)
        given_back = sum(result.body["nacked"] for result in results)
        self.message_user(
            request, f"{given_back} returned to the queue. A consumer that is still working on one can no longer ack it."
        )


@admin.register(DeadLetterRow)
class DeadLetterRowAdmin(LiveAdmin):
    """Messages that groups no longer try to deliver."""

    contents = ("value",)
    list_display = ("msg_id", "topic", "group", "key", "reason", "attempts", "dead_at", "value")
    actions = ("redrive",)
    list_filter = (("topic", LiveValuesFilter), ("group", LiveValuesFilter), ("reason", LiveValuesFilter))
    search_fields = ("msg_id", "topic", "group", "key", "value", "history")

    def rows(self) -> list[DeadLetterRow]:
        return dead_letter_rows(rows_from_loop(lambda: take_dead_letters(_broker())))

    @admin.action(description="Redrive: return to the queue with the attempts reset", permissions=["operate"])
    def redrive(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        def redrive(row: DeadLetterRow) -> Redrive:
            return Redrive(topic=row.topic, group=row.group, msg_id=row.msg_id)

        results = self.do_each(request, queryset, named(OPERATIONS, "queue.redrive"), redrive)
        redriven = sum(result.body["redriven"] for result in results)
        self.message_user(request, f"{redriven} returned to the queue.")
