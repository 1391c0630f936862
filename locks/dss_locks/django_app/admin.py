"""The lock table in the admin: locks, waiting requests, lock delays and forced releases."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from typing import Any, cast

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ActionForm
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.safestring import mark_safe

from dss_admin.live_admin import LiveAdmin, LiveValuesFilter, duration, rows_from_loop
from dss_api import running
from dss_api.errors import Refused
from dss_api.operation import named
from dss_locks import picture
from dss_locks.core import inspection
from dss_locks.core.commands import REASON_LENGTH_MAX, ForceRelease
from dss_locks.core.table import LockTable
from dss_locks.core.waiters import Positions
from dss_locks.django_app.models import DelayRow, ForcedRow, LockRow, WaiterRow
from dss_locks.operations import OPERATIONS

#: Maximum rows of a list. What they show is copied in the node's event loop, while other calls wait.
ROWS_MAX = 1_000
#: Maximum steps of a request's chain in the list. `GET /lock/status` shows more.
CHAIN_STEPS_MAX = 10
#: fields of a hold that are shown as they are
_OF_HOLD = ("key", "client", "mode", "fencing_token", "expires_in_ms", "age_ms", "session", "lock_delay_ms")
#: Maximum edges in the picture.
EDGES_MAX = 1_000


def _table() -> LockTable:
    return cast(LockTable, running.node().machine("locks"))


def take_locks(table: LockTable, now_ms: int) -> list[tuple[dict[str, Any], int]]:
    """The first rows of the table, each with the number of waiters, for `lock_rows`."""
    rows = []
    for hold in islice(table.holdings.all(), ROWS_MAX):
        queue = table.locks[hold.key].queue
        rows.append(({"key": hold.key, **inspection.hold_row(table, hold, now_ms)}, len(queue) if queue is not None else 0))
    return rows


def lock_rows(taken: list[tuple[dict[str, Any], int]]) -> list[LockRow]:
    return [
        LockRow(
            row_id=f"{len(shown['client'])}.{shown['client']}.{shown['key']}",
            waiting=waiting,
            meta=json.dumps(shown["meta"], ensure_ascii=False) if shown["meta"] else "",
            **{name: shown[name] for name in _OF_HOLD},
        )
        for shown, waiting in taken
    ]


def take_waiters(table: LockTable, now_ms: int) -> list[dict[str, Any]]:
    """The first waiting requests, in order of arrival, for `waiter_rows`."""
    rows = []
    positions = Positions(table.locks)
    for waiter in table.waiters.first(ROWS_MAX):
        position = positions.of(waiter)
        shown = inspection.waiter_row(waiter, position, now_ms)
        chain = inspection.chain(table, waiter, CHAIN_STEPS_MAX)
        rows.append(
            {
                "row_id": str(waiter.rank),
                "client": waiter.client,
                "keys": ", ".join(waiter.keys),
                "mode": shown["mode"],
                "position": position,
                "waits_for": chain[0]["held_by"] if chain else "",
                "chain": " → ".join([waiter.client, *(step["held_by"] for step in chain)]),
                "age_ms": shown["age_ms"],
                "gives_up_in_ms": shown["gives_up_in_ms"],
            }
        )
    return rows


def waiter_rows(taken: list[dict[str, Any]]) -> list[WaiterRow]:
    return [WaiterRow(**fields) for fields in taken]


def take_delays(table: LockTable, now_ms: int) -> list[dict[str, Any]]:
    """The first lock delays, for `delay_rows`."""
    keys = list(islice(table.holdings.delays.by_key, ROWS_MAX))
    return [{"key": key, **(inspection.delay_row(table, key, now_ms) or {})} for key in keys]


def delay_rows(taken: list[dict[str, Any]]) -> list[DelayRow]:
    return [DelayRow(**fields) for fields in taken]


def forced_rows(audit: list[dict[str, Any]]) -> list[ForcedRow]:
    """The audit list, latest first."""
    return [
        ForcedRow(
            row_id=f"{line['index']}.{len(line['client'])}.{line['client']}.{line['key']}",
            at=datetime.fromtimestamp(line.pop("at_ms") / 1000, UTC),
            **{name: line[name] for name in ("key", "client", "fencing_token", "by", "reason")},
        )
        for line in audit
    ]


class ForceReleaseForm(ActionForm):
    """The action form, with a field for the reason."""

    reason = forms.CharField(required=False, max_length=REASON_LENGTH_MAX, label="Reason")


class LockAdmin(LiveAdmin):
    """A list of one part of the lock table."""

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        response = super().changelist_view(request, extra_context)
        if len(getattr(request, "_live_rows", ())) >= ROWS_MAX:
            self.message_user(request, f"Only the first {ROWS_MAX:,} are shown and searched.", messages.WARNING)
        return response


@admin.register(LockRow)
class LockRowAdmin(LockAdmin):
    """Held locks."""

    expires_in = duration("expires_in_ms", "expires in", none="until released")
    held_for = duration("age_ms", "held for")
    lock_delay = duration("lock_delay_ms", "lock delay")

    list_display = ("key", "client", "mode", "fencing_token", expires_in, held_for, "waiting")
    fields = ("key", "client", "mode", "fencing_token", expires_in, held_for, "waiting", "session", lock_delay, "meta")
    ordering = ("key", "fencing_token")
    list_filter = (("mode", LiveValuesFilter), ("client", LiveValuesFilter))
    search_fields = ("key", "client", "meta")
    action_form = ForceReleaseForm
    actions = ("force_release",)

    def rows(self) -> list[LockRow]:
        return lock_rows(rows_from_loop(lambda: take_locks(_table(), running.node().now_ms())))

    @admin.action(description="Force release (needs a reason)", permissions=["operate"])
    def force_release(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        reason = request.POST.get("reason", "").strip()[:REASON_LENGTH_MAX]
        if not reason:
            self.message_user(request, "Enter a reason. It is recorded in the audit list.", messages.ERROR)
            return

        def release(row: LockRow) -> ForceRelease:
            return ForceRelease(key=row.key, client=row.client, reason=reason)

        results = self.do_each(request, queryset, named(OPERATIONS, "locks.force_release"), release)
        released = sum(bool(result.body["released"]) for result in results)
        self.message_user(request, f"{released} released. If a holder is still running, only its fencing token can stop it.")


@admin.register(WaiterRow)
class WaiterRowAdmin(LockAdmin):
    """Waiting requests, oldest first, and the picture of the waits-for graph."""

    waiting_for = duration("age_ms", "waiting for")
    gives_up_in = duration("gives_up_in_ms", "gives up in")

    change_list_template = "dss_locks/waiting.html"
    list_display = ("client", "keys", "mode", "position", "waits_for", waiting_for, gives_up_in)
    fields = ("client", "keys", "mode", "position", "waits_for", "chain", waiting_for, gives_up_in)
    ordering = ("-age_ms",)
    list_filter = (("mode", LiveValuesFilter), ("waits_for", LiveValuesFilter))
    search_fields = ("client", "keys", "chain")

    def rows(self) -> list[WaiterRow]:
        return waiter_rows(rows_from_loop(lambda: take_waiters(_table(), running.node().now_ms())))

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        context = {**(extra_context or {}), "clients_max": picture.CLIENTS_MAX}
        with suppress(Refused):  # the list shows the reason
            graph = rows_from_loop(lambda: inspection.graph(_table(), EDGES_MAX, places_max=EDGES_MAX))
            # `draw` escapes all text that comes from clients.
            context |= {"picture": mark_safe(picture.draw(graph)), "is_cut": picture.is_cut(graph)}
        return super().changelist_view(request, context)


@admin.register(DelayRow)
class DelayRowAdmin(LockAdmin):
    """Lock delays of keys whose lock was lost."""

    left = duration("left_ms", "ends in")
    delay = duration("delay_ms", "length")

    list_display = ("key", "lost_by", "keeps_out", left, delay)
    fields = list_display
    ordering = ("left_ms",)
    search_fields = ("key", "lost_by")

    def rows(self) -> list[DelayRow]:
        return delay_rows(rows_from_loop(lambda: take_delays(_table(), running.node().now_ms())))


@admin.register(ForcedRow)
class ForcedRowAdmin(LiveAdmin):
    """The audit list of forced releases."""

    list_display = ("at", "key", "client", "fencing_token", "by", "reason")
    ordering = ("-at",)
    list_filter = (("by", LiveValuesFilter),)
    search_fields = ("key", "client", "by", "reason")

    def rows(self) -> list[ForcedRow]:
        return forced_rows(rows_from_loop(lambda: inspection.audit(_table())))
