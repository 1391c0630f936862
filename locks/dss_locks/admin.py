"""The admin's view of the lock table: who holds what, who waits for whom, and what was taken away by hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import islice
from typing import Any, cast

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ActionForm
from django.db.models import QuerySet
from django.http import HttpRequest

from dss_locks import inspection, operations
from dss_locks.commands import REASON_LENGTH_MAX, ForceRelease
from dss_locks.models import ForcedRow, LockRow, WaiterRow
from dss_locks.table import LockTable
from dss_locks.waits import Positions
from dss_project import runtime
from dss_project.bridge import await_in_loop
from dss_project.live_admin import LiveAdmin, LiveValuesFilter, rows_from_loop
from dss_raft.errors import Refused

#: A list shows so many rows at most: the snapshot is taken between two calls that others wait for.
ROWS_MAX = 5_000


def _table() -> LockTable:
    return cast(LockTable, runtime.node().machine("locks"))


def lock_rows(table: LockTable, now_ms: int) -> list[LockRow]:
    """The first rows of the table."""
    rows = []
    for hold in islice(table.holdings.all(), ROWS_MAX):
        queue = table.locks[hold.key].queue
        shown = inspection.hold_row(table, hold, now_ms)
        rows.append(
            LockRow(
                row_id=f"{len(hold.client)}.{hold.client}.{hold.key}",
                key=hold.key,
                client=hold.client,
                mode=shown["mode"],
                fencing_token=hold.token,
                expires_in_ms=shown["expires_in_ms"],
                age_ms=shown["age_ms"],
                waiting=len(queue) if queue is not None else 0,
                meta=json.dumps(hold.meta, ensure_ascii=False) if hold.meta else "",
            )
        )
    return rows


def waiter_rows(table: LockTable, now_ms: int) -> list[WaiterRow]:
    """The first waiting requests, in order of arrival."""
    rows = []
    positions = Positions(table.locks)
    for place in table.waits.places()[:ROWS_MAX]:
        position = positions.of(place)
        shown = inspection.waiter_row(place, position, now_ms)
        chain = inspection.chain(table, place)
        rows.append(
            WaiterRow(
                row_id=str(place.rank),
                client=place.client,
                keys=", ".join(place.keys),
                mode=shown["mode"],
                position=position,
                waits_for=chain[0]["held_by"] if chain else "",
                chain=" → ".join([place.client, *(step["held_by"] for step in chain)]),
                age_ms=shown["age_ms"],
                gives_up_in_ms=shown["gives_up_in_ms"],
            )
        )
    return rows


def forced_rows(table: LockTable) -> list[ForcedRow]:
    """The audit list, latest first."""
    return [
        ForcedRow(
            row_id=f"{line['index']}.{len(line['client'])}.{line['client']}.{line['key']}",
            at=datetime.fromtimestamp(line.pop("at_ms") / 1000, UTC),
            **{name: line[name] for name in ("key", "client", "fencing_token", "by", "reason")},
        )
        for line in inspection.audit(table)
    ]


class ForceReleaseForm(ActionForm):
    """The action's menu, with a field for the reason."""

    reason = forms.CharField(required=False, max_length=REASON_LENGTH_MAX, label="Reason")


@admin.register(LockRow)
class LockRowAdmin(LiveAdmin):
    """Locks that are held."""

    list_display = ("key", "client", "mode", "fencing_token", "expires_in_ms", "age_ms", "waiting")
    list_filter = ("mode", ("client", LiveValuesFilter))
    search_fields = ("key", "client", "meta")
    action_form = ForceReleaseForm
    actions = ("force_release",)

    def rows(self) -> list[LockRow]:
        return rows_from_loop(lambda: lock_rows(_table(), operations.wall_clock_ms()))

    @admin.action(description="Force the release (with a reason)", permissions=["operate"])
    def force_release(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        reason = request.POST.get("reason", "").strip()[:REASON_LENGTH_MAX]
        if not reason:
            self.message_user(request, "Give a reason: it is kept in the audit list.", messages.ERROR)
            return
        released = 0
        for row in queryset:
            command = ForceRelease(key=row.key, client=row.client, reason=reason, by=request.user.get_username())
            try:
                result = await_in_loop(operations.force_release(runtime.node(), command))
            except Refused as refusal:
                self.message_user(request, f"{row.key}: {refusal.detail or refusal.code}", messages.ERROR)
                return
            released += bool(result.body["released"])
        self.message_user(request, f"{released} released. A holder that still runs is stopped only by its fencing token.")


@admin.register(WaiterRow)
class WaiterRowAdmin(LiveAdmin):
    """Requests that wait."""

    list_display = ("client", "keys", "mode", "position", "waits_for", "age_ms", "gives_up_in_ms")
    list_filter = ("mode", ("waits_for", LiveValuesFilter))
    search_fields = ("client", "keys", "chain")

    def rows(self) -> list[WaiterRow]:
        return rows_from_loop(lambda: waiter_rows(_table(), operations.wall_clock_ms()))


@admin.register(ForcedRow)
class ForcedRowAdmin(LiveAdmin):
    """The audit list of forced releases."""

    list_display = ("at", "key", "client", "fencing_token", "by", "reason")
    list_filter = (("by", LiveValuesFilter),)
    search_fields = ("key", "client", "by", "reason")

    def rows(self) -> list[ForcedRow]:
        return rows_from_loop(lambda: forced_rows(_table()))
