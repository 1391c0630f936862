"""The lock table in the admin: locks, waiting requests, sessions, lock delays, refused deadlocks and forced releases."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, cast

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.utils.safestring import mark_safe

from dss_admin.actions import Plan, asks_first
from dss_admin.callers import admin_caller
from dss_admin.live_admin import LiveAdmin, LiveValuesFilter, duration, rows_from_loop, rows_in_turns
from dss_admin.texts import count
from dss_api import running
from dss_api.errors import Refused
from dss_api.operation import named
from dss_locks import picture
from dss_locks.core import inspection
from dss_locks.core.commands import CancelWait, CloseSession, ForceReleaseRequest
from dss_locks.core.table import LockTable
from dss_locks.cycle_picture import draw_cycle
from dss_locks.django_app.models import DeadlockRow, DelayRow, ForcedRow, LockRow, SessionRow, WaiterRow
from dss_locks.django_app.operations import CANCEL_WAIT, CLOSE_SESSION
from dss_locks.django_app.rows import (
    HeldLock,
    TakenDelay,
    TakenSession,
    TakenWaiter,
    deadlock_rows,
    forced_rows,
    take_delays,
    take_locks,
    take_sessions,
    take_waiters,
)
from dss_locks.operations import OPERATIONS

#: Maximum edges in the picture.
EDGES_MAX = 1_000


def _table() -> LockTable:
    return cast(LockTable, running.node().machine("locks"))


def _release_plan(page: LiveAdmin, rows: list[Any]) -> Plan:
    waiting = sum(row.waiting for row in rows)
    next_ones = f" {count(waiting, 'waiting request', 'waiting requests')} can be granted then." if waiting else ""
    return Plan(
        f"Takes {count(len(rows), 'lock', 'locks')} away without asking the holder.{next_ones}",
        ["A holder that is still running goes on working. Only the fencing token can keep its writes out of the resource."],
    )


@admin.register(LockRow)
class LockRowAdmin(LiveAdmin):
    """Held locks."""

    expires_in = duration("expires_in_ms", "expires in", none="until released")
    held_for = duration("age_ms", "held for")
    lock_delay = duration("lock_delay_ms", "lock delay")

    lead = "Held locks and their holders. Locks are replicated: every node shows the same."
    list_display = ("key", "client", "mode", "fencing_token", expires_in, held_for, "waiting")
    fields = ("key", "client", "mode", "fencing_token", expires_in, held_for, "waiting", "session", lock_delay, "meta")
    ordering = ("key", "fencing_token")
    list_filter = (("mode", LiveValuesFilter), ("client", LiveValuesFilter))
    search_fields = ("key", "client", "meta")
    actions = ("force_release",)

    def rows(self) -> list[HeldLock]:
        return rows_in_turns(lambda: take_locks(_table(), running.node().now_ms()))

    @asks_first("Release by force", _release_plan)
    def force_release(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        reason = given["reason"]

        def release(row: LockRow) -> ForceReleaseRequest:
            # The grant that the operator has seen: the client may have released it, and have a newer one.
            return ForceReleaseRequest(key=row.key, client=row.client, fencing_token=row.fencing_token, reason=reason)

        outcome = self.do_each(request, rows, named(OPERATIONS, "locks.force_release"), release, reason)
        self.report_each(request, outcome, "released", rows, nothing="the locks had ended by themselves")


def _cancel_plan(page: LiveAdmin, rows: list[Any]) -> Plan:
    return Plan(
        f"Ends {count(len(rows), 'wait', 'waits')}: the calls are answered as if their time were over (wait_timeout).",
        ["A client that tries again waits again, at the end of the queue."],
    )


@admin.register(WaiterRow)
class WaiterRowAdmin(LiveAdmin):
    """Waiting requests, oldest first, and the picture of the waits-for graph."""

    waiting_for = duration("age_ms", "waiting for")
    gives_up_in = duration("gives_up_in_ms", "gives up in")

    lead = "Requests that wait for a lock, with the first client that blocks each of them."
    change_list_template = "dss_locks/waiting.html"
    list_display = ("client", "keys", "mode", "position", "waits_for", waiting_for, gives_up_in, "nodes")
    fields = ("client", "keys", "mode", "position", "waits_for", "chain", waiting_for, gives_up_in, "nodes")
    ordering = ("-age_ms",)
    list_filter = (("mode", LiveValuesFilter), ("waits_for", LiveValuesFilter), ("nodes", LiveValuesFilter))
    search_fields = ("client", "keys", "chain")
    actions = ("cancel_wait",)

    def rows(self) -> list[TakenWaiter]:
        return rows_in_turns(lambda: take_waiters(_table(), running.node().now_ms()))

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        context = {**(extra_context or {}), "clients_max": picture.CLIENTS_MAX}
        with suppress(Refused):  # the list shows the reason
            graph = rows_from_loop(lambda: inspection.graph(_table(), EDGES_MAX, places_max=EDGES_MAX))
            # `draw` escapes all text that comes from clients.
            context |= {"picture": mark_safe(picture.draw(graph)), "is_graph_cut": picture.is_cut(graph)}
        return super().changelist_view(request, context)

    @asks_first("End the wait", _cancel_plan)
    def cancel_wait(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        reason, by = given["reason"], admin_caller(request).name

        def cancel(row: WaiterRow) -> CancelWait:
            return CancelWait(client=row.client, place=row.place, reason=reason, by=by)

        outcome = self.do_each(request, rows, CANCEL_WAIT, cancel, reason)
        self.report_each(request, outcome, "cancelled", rows, nothing="the requests no longer wait", what="ended")


def _close_plan(page: LiveAdmin, rows: list[Any]) -> Plan:
    locks = sum(row.key_count for row in rows)
    return Plan(
        f"Ends {count(len(rows), 'session', 'sessions')} and releases {count(locks, 'lock', 'locks')}.",
        ["A client that is still running goes on working. Only the fencing token can keep its writes out of the resource."],
    )


@admin.register(SessionRow)
class SessionRowAdmin(LiveAdmin):
    """Client sessions."""

    ttl = duration("ttl_ms", "lease")
    expires_in = duration("expires_in_ms", "expires in")

    lead = "Sessions of clients: one lease for all the locks of each."
    list_display = ("session", "client", ttl, expires_in, "key_count", "keys")
    fields = list_display
    ordering = ("session",)
    list_filter = (("client", LiveValuesFilter),)
    search_fields = ("session", "client", "keys")
    actions = ("close",)

    def rows(self) -> list[TakenSession]:
        return rows_in_turns(lambda: take_sessions(_table(), running.node().now_ms()))

    @asks_first("Close the session", _close_plan)
    def close(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        outcome = self.do_each(request, rows, CLOSE_SESSION, lambda row: CloseSession(session=row.session), given["reason"])
        self.report_each(request, outcome, "closed", rows, nothing="the sessions had ended by themselves")


@admin.register(DelayRow)
class DelayRowAdmin(LiveAdmin):
    """Lock delays of keys whose lock was lost."""

    left = duration("left_ms", "ends in")
    delay = duration("delay_ms", "length")

    lead = "Keys whose lock was lost, and which are not granted for a while so that late writes of the last holder can arrive."
    list_display = ("key", "lost_by", "keeps_out", left, delay)
    fields = list_display
    ordering = ("left_ms",)
    list_filter = (("keeps_out", LiveValuesFilter), ("lost_by", LiveValuesFilter))
    search_fields = ("key", "lost_by")

    def rows(self) -> list[TakenDelay]:
        return rows_in_turns(lambda: take_delays(_table(), running.node().now_ms()))


@admin.register(DeadlockRow)
class DeadlockRowAdmin(LiveAdmin):
    """The refused deadlocks that this node remembers."""

    lead = (
        "The last 100 requests that were refused because they would have closed a cycle, as far as this node has applied them since it"
        " started. Open one to see the cycle drawn."
    )
    list_display = ("at", "client", "keys", "mode", "length", "cycle")
    fields = list_display
    ordering = ("-at",)
    list_filter = (("client", LiveValuesFilter), ("mode", LiveValuesFilter))
    search_fields = ("client", "keys", "cycle")

    def rows(self) -> list[DeadlockRow]:
        return deadlock_rows(rows_from_loop(lambda: list(_table().scheduler.refused_deadlocks)))

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        row = self.get_object(request, object_id)
        # `draw_cycle` escapes all text that comes from clients.
        context = {"picture": mark_safe(draw_cycle(row.steps)), "picture_title": "The cycle"} if row is not None else {}
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})


@admin.register(ForcedRow)
class ForcedRowAdmin(LiveAdmin):
    """The audit list of forced releases."""

    lead = "Locks that an operator has taken away, latest first."
    list_display = ("at", "key", "client", "fencing_token", "by", "reason")
    ordering = ("-at",)
    list_filter = (("by", LiveValuesFilter),)
    search_fields = ("key", "client", "by", "reason")

    def rows(self) -> list[ForcedRow]:
        return forced_rows(rows_from_loop(lambda: inspection.audit(_table())))
