"""Raft in the admin: the members, their replication progress, and the status of this node."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse

from dss_admin.live_admin import LiveAdmin, LiveValuesFilter, rows_from_loop
from dss_api import running
from dss_api.operation import named
from dss_api.rights import CLUSTER, ONLY_ALL
from dss_raft.django_app import user_admin
from dss_raft.django_app.models import AuditRow, MemberRow, StatusRow, TokenRow
from dss_raft.operations import OPERATIONS, RemoveMember, Transfer
from dss_raft.replication.access_tokens import AccessTokens, RevokeToken
from dss_raft.replication.audit import AuditTrail, Record
from dss_raft.token_operations import OPERATIONS as TOKEN_OPERATIONS

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


#: Rows of the audit trail in the list; `manage.py audit` reads all.
AUDIT_ROWS_MAX = 5_000
#: of an exported record
AUDIT_FIELDS = ("index", "at_ms", "by", "via", "address", "node", "operation", "request", "reason")


def token_rows(tokens: AccessTokens) -> list[TokenRow]:
    return [
        TokenRow(
            id=token.id,
            name=token.name,
            scopes=" ".join(token.scopes),
            created=_time(token.created_ms),
            created_by=token.created_by,
            expires=_time(token.expires_ms),
            expired=token.is_expired,
            last_used=_time(token.used_ms),
            generation=token.generation,
        )
        for token in tokens.tokens.values()
    ]


def take_audit(trail: AuditTrail) -> list[Record]:
    """The latest records, for `audit_rows`. Nothing changes a record."""
    return list(trail.latest(AUDIT_ROWS_MAX))


def audit_rows(taken: list[Record]) -> list[AuditRow]:
    return [AuditRow(at=_time(one.at_ms), **msgspec.structs.asdict(one)) for one in taken]


def _time(at_ms: int) -> datetime | None:
    return datetime.fromtimestamp(at_ms / 1000, UTC) if at_ms else None


def _status() -> dict[str, Any]:
    return rows_from_loop(lambda: running.node().status())


def _range(versions: dict[str, int] | None) -> str:
    return "" if versions is None else f"{versions['min']} to {versions['max']}"


@admin.register(MemberRow)
class MemberAdmin(LiveAdmin):
    act_needs = CLUSTER
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
        self._for_each(request, queryset, "raft.transfer", lambda row: Transfer(to=row.id), "is the leader now")

    @admin.action(description="Remove the selected members from the cluster", permissions=["operate"])
    def remove(self, request: HttpRequest, queryset: Any) -> None:
        self._for_each(request, queryset, "raft.remove_member", lambda row: RemoveMember(id=row.id), "was removed")

    def _for_each(self, request: HttpRequest, queryset: Any, name: str, request_of: Callable[[Any], Any], done: str) -> None:
        for row in queryset:
            if self.do_each(request, [row], named(OPERATIONS, name), request_of):
                self.message_user(request, f"{row.id} {done}.")


@admin.register(TokenRow)
class TokenAdmin(LiveAdmin):
    """The tokens. They are made and rotated where the answer can show a secret once: `/tokens`, or `manage.py token`."""

    view_needs = act_needs = ONLY_ALL
    list_display = ("id", "name", "scopes", "created", "created_by", "expires", "expired", "last_used", "generation")
    search_fields = ("id", "name", "scopes")
    ordering = ("created",)
    actions = ("revoke",)

    def rows(self) -> list[TokenRow]:
        return rows_from_loop(lambda: token_rows(running.node().machine("tokens")))

    @admin.action(description="Revoke the selected tokens: they end now, on every node", permissions=["operate"])
    def revoke(self, request: HttpRequest, queryset: Any) -> None:
        results = self.do_each(request, queryset, named(TOKEN_OPERATIONS, "tokens.revoke"), lambda row: RevokeToken(id=row.id))
        revoked = sum(result.body["revoked"] for result in results)
        self.message_user(request, f"{revoked} revoked.")


@admin.register(AuditRow)
class AuditAdmin(LiveAdmin):
    """The audit trail, latest first."""

    list_display = ("index", "at", "by", "operation", "request", "reason", "via", "address", "node")
    search_fields = ("by", "operation", "request", "reason", "address")
    list_filter = (("by", LiveValuesFilter), ("operation", LiveValuesFilter))
    ordering = ("-index",)
    actions = ("export",)

    def rows(self) -> list[AuditRow]:
        return audit_rows(rows_from_loop(lambda: take_audit(running.node().machine("audit"))))

    @admin.action(description="Export as JSON lines", permissions=["view"])
    def export(self, request: HttpRequest, queryset: Any) -> HttpResponse:
        lines = [{name: getattr(row, name) for name in AUDIT_FIELDS} for row in queryset]
        body = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        return HttpResponse(
            body,
            content_type="application/x-ndjson",
            headers={"Content-Disposition": 'attachment; filename="audit.jsonl"', "Cache-Control": "no-store"},
        )


@admin.register(StatusRow)
class StatusAdmin(LiveAdmin):
    list_display = ("name", "value")
    search_fields = ("name",)

    def rows(self) -> list[StatusRow]:
        status = _status()
        rows = [StatusRow(name=name, value=str(status[name])) for name in _SHOWN]
        return [StatusRow(name="state", value=status["state"]["name"]), *rows]


user_admin.register()
