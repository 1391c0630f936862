"""Raft in the admin: the members, their replication progress, and the status of this node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest

from dss_admin.live_admin import LiveAdmin, rows_from_loop
from dss_api import running
from dss_api.errors import Refused
from dss_api.running import await_in_loop
from dss_raft.django_app.models import MemberRow, StatusRow

_SHOWN = (
    "node",
    "term",
    "leader_id",
    "commit_index",
    "last_applied",
    "log_len",
    "snapshot_index",
    "cluster_version",
    "boot",
    "pending",
    "waiting",
)


def _status() -> dict[str, Any]:
    return rows_from_loop(lambda: running.node().status())


def _range(versions: dict[str, int] | None) -> str:
    return "" if versions is None else f"{versions['min']} to {versions['max']}"


@admin.register(MemberRow)
class MemberAdmin(LiveAdmin):
    list_display = ("id", "url", "role", "up", "match_index", "lag", "last_contact_ms", "outdated", "versions")
    search_fields = ("id", "url")
    list_filter = ("up",)
    ordering = ("id",)
    actions = ("make_leader", "remove")

    def rows(self) -> list[MemberRow]:
        status = _status()
        peers = {peer["id"]: peer for peer in status["peers"]}
        return [self._row(status, member, peers.get(member["id"], {})) for member in status["members"]]

    def _row(self, status: dict[str, Any], member: dict[str, Any], peer: dict[str, Any]) -> MemberRow:
        is_self = member["id"] == status["node"]
        match_index = status["last_applied"] if is_self else peer.get("match_index")
        return MemberRow(
            id=member["id"],
            url=member["url"],
            role="leader" if member["id"] == status["leader_id"] else "learner" if member["learner"] else "follower",
            up=member["up"],
            match_index=match_index,
            lag=None if match_index is None else max(0, status["commit_index"] - match_index),
            outdated=member["outdated"],
            versions=_range(member["supported_versions"]),
            last_contact_ms=0 if is_self else peer.get("last_contact_ms"),
        )

    @admin.action(description="Transfer leadership to the selected member", permissions=["operate"])
    def make_leader(self, request: HttpRequest, queryset: Any) -> None:
        if len(queryset) != 1:
            self.message_user(request, "Select exactly one member.", messages.WARNING)
            return
        self._for_each(request, queryset, running.node().transfer, "is the leader now")

    @admin.action(description="Remove the selected members from the cluster", permissions=["operate"])
    def remove(self, request: HttpRequest, queryset: Any) -> None:
        self._for_each(request, queryset, running.node().remove_member, "was removed")

    def _for_each(self, request: HttpRequest, queryset: Any, act: Callable[[str], Any], done: str) -> None:
        for row in queryset:
            try:
                await_in_loop(act(row.id))
            except Refused as refusal:
                self.message_user(request, f"{row.id}: {refusal.detail or refusal.code}", messages.ERROR)
            else:
                self.message_user(request, f"{row.id} {done}.")


@admin.register(StatusRow)
class StatusAdmin(LiveAdmin):
    list_display = ("name", "value")
    search_fields = ("name",)

    def rows(self) -> list[StatusRow]:
        status = _status()
        rows = [StatusRow(name=name, value=str(status[name])) for name in _SHOWN]
        return [StatusRow(name="state", value=status["state"]["name"]), *rows]
