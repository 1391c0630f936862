"""Raft in the admin: the members, the log, snapshots, tokens, the audit trail, and the status of this node."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from django.contrib import admin
from django.http import HttpRequest, HttpResponse

from dss_admin.actions import Plan, asks_first
from dss_admin.live_admin import LiveAdmin, LiveValuesFilter, beginning, rows_from_loop, rows_in_turns
from dss_admin.texts import count, moment_if_any
from dss_api import running
from dss_api.operation import named
from dss_api.rights import CLUSTER, ONLY_ALL
from dss_raft import log_view
from dss_raft.core.messages import Entry, EntryKind
from dss_raft.disk.snapshots import DIRECTORY
from dss_raft.django_app import member_admin, user_admin
from dss_raft.django_app.models import AuditRow, EntryRow, SnapshotRow, StatusRow, TokenRow
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

#: of an exported record
AUDIT_FIELDS = ("index", "at_ms", "by", "via", "address", "node", "operation", "request", "reason")


def token_rows(tokens: AccessTokens) -> list[TokenRow]:
    return [
        TokenRow(
            id=token.id,
            name=token.name,
            scopes=" ".join(token.scopes),
            created=moment_if_any(token.created_ms),
            created_by=token.created_by,
            expires=moment_if_any(token.expires_ms),
            expired=token.is_expired,
            last_used=moment_if_any(token.used_ms),
            generation=token.generation,
        )
        for token in tokens.tokens.values()
    ]


def take_audit(trail: AuditTrail) -> Iterator[AuditRecord]:
    """The records, latest first. Nothing changes a record."""
    for record in reversed(trail.records):
        yield AuditRecord(record)


class AuditRecord(msgspec.Struct, frozen=True, gc=False):
    """A record of the audit trail."""

    record: Record

    def __getattr__(self, name: str) -> Any:
        return getattr(self.record, name)

    @property
    def at(self) -> datetime | None:
        return moment_if_any(self.record.at_ms)


class TakenEntry(msgspec.Struct, frozen=True, gc=False):
    """An entry of this node's log. Nothing changes it."""

    entry: Entry
    state: str

    @property
    def index(self) -> int:
        return self.entry.index

    @property
    def term(self) -> int:
        return self.entry.term

    @property
    def kind(self) -> str:
        return KINDS.get(self.entry.kind, str(self.entry.kind))

    @property
    def bytes(self) -> int:
        return len(self.entry.data)

    @property
    def commands(self) -> str:
        return entry_text(self.entry)


KINDS = {kind.value: kind.name.lower() for kind in EntryKind}
#: Commands of an entry in the list; its page shows more.
COMMANDS_SHOWN_MAX = 5
TEXT_SHOWN_MAX = 300


def take_entries(node: Any) -> Iterator[TakenEntry]:
    """The entries that this node's log has, latest first."""
    index = node.core.log.last_index
    while index >= node.core.log.first_index:
        (entry,) = node.core.log.slice(index, index)
        skipped, applied = index in node.replica.skipped, index <= node.applied_index
        state = (
            "skipped"
            if skipped
            else "applied"
            if applied
            else "committed"
            if index <= node.core.log.committed
            else "not committed"
        )
        yield TakenEntry(entry, state)
        index -= 1


def entry_text(entry: Entry) -> str:
    """The names of its commands, and their fields."""
    view = log_view.show(entry, committed=None, applied=None, skipped=None)
    if view.fault:
        return view.fault
    if view.members:
        return f"members: {', '.join(view.members)}"
    commands = [*view.own, *(command for group in view.groups for command in group.commands)]
    lines = [_cut(f"{one.op} {_json(one.fields)}") for one in commands[:COMMANDS_SHOWN_MAX]]
    more = len(commands) + view.commands_left_out - len(lines)
    return "\n".join([*lines, *([f"and {more:,} more"] if more else ())])


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_SHOWN_MAX else f"{text[:TEXT_SHOWN_MAX]}…"


def snapshot_rows(directory: Path, current: int) -> list[SnapshotRow]:
    """The files of a node's snapshots. `current` is the index of the one that it would start with."""
    rows = []
    for path in sorted(directory.glob("*.*")):
        index, _, rest = path.name.partition("-")
        term = rest.partition("-")[0].partition(".")[0]
        if not index.isdigit():
            continue
        try:
            found = path.stat()
        except FileNotFoundError:
            continue  # it was replaced by a newer one
        if path.suffix == ".part":
            state = "being received" if ".received" in path.name else "being written"
        else:
            state = "current" if int(index) == current else "older"
        rows.append(
            SnapshotRow(
                name=path.name,
                index=int(index),
                term=int(term),
                bytes=found.st_size,
                state=state,
                saved=moment_if_any(int(found.st_mtime * 1000)),
            )
        )
    return rows


@admin.register(TokenRow)
class TokenAdmin(LiveAdmin):
    """The tokens. They are made and rotated where the answer can show a secret once: `/tokens`, or `manage.py token`."""

    view_needs = act_needs = ONLY_ALL
    lead = "Tokens of clients, without their secrets. Make and rotate them with POST /tokens, dss, or manage.py token."
    list_display = ("id", "name", "scopes", "created", "created_by", "expires", "expired", "last_used", "generation")
    search_fields = ("id", "name", "scopes")
    list_filter = ("expired", ("created_by", LiveValuesFilter))
    ordering = ("created",)
    actions = ("revoke",)

    def rows(self) -> list[TokenRow]:
        return rows_from_loop(lambda: token_rows(running.node().machine("tokens")))

    @asks_first(
        "Revoke",
        lambda page, rows: Plan(
            f"Revokes {count(len(rows), 'token', 'tokens')}: calls and subscriptions end now, on every node.",
            ["This cannot be undone."],
        ),
    )
    def revoke(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        revoke = named(TOKEN_OPERATIONS, "tokens.revoke")
        outcome = self.do_each(request, rows, revoke, lambda row: RevokeToken(id=row.id), given["reason"])
        self.report_each(request, outcome, "revoked", rows, nothing="they were revoked before")


@admin.register(AuditRow)
class AuditAdmin(LiveAdmin):
    """The audit trail, latest first."""

    lead = "What operators did, through every entry point, latest first. It cannot be changed."
    list_display = ("index", "at", "by", "operation", beginning("request", "fields"), "reason", "via", "address", "node")
    search_fields = ("by", "operation", "request", "reason", "address")
    list_filter = (
        ("by", LiveValuesFilter),
        ("operation", LiveValuesFilter),
        ("via", LiveValuesFilter),
        ("node", LiveValuesFilter),
    )
    ordering = ("-index",)
    actions = ("export",)

    def rows(self) -> list[AuditRecord]:
        return rows_in_turns(lambda: take_audit(running.node().machine("audit")))

    @admin.action(description="Export as JSON lines", permissions=["view"])
    def export(self, request: HttpRequest, queryset: Any) -> HttpResponse:
        lines = [{name: getattr(row, name) for name in AUDIT_FIELDS} for row in queryset]
        body = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        return HttpResponse(
            body,
            content_type="application/x-ndjson",
            headers={"Content-Disposition": 'attachment; filename="audit.jsonl"', "Cache-Control": "no-store"},
        )


@admin.register(EntryRow)
class EntryAdmin(LiveAdmin):
    """The log of this node, decoded. It has messages and cached values, so it is for those who may have a backup."""

    view_needs = CLUSTER
    lead = "The entries of this node's log since its last snapshot, latest first, with their commands. Open one to see all of it."
    list_display = ("index", "term", "kind", "state", "bytes", beginning("commands"))
    fields = ("index", "term", "kind", "state", "bytes")
    ordering = ("-index",)
    sortable_by = ("index", "term", "kind", "state", "bytes")
    search_fields = ("index", "commands")
    list_filter = (("term", LiveValuesFilter), ("kind", LiveValuesFilter), ("state", LiveValuesFilter))

    def rows(self) -> list[TakenEntry]:
        return rows_in_turns(lambda: take_entries(running.node()))

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        row = self.get_object(request, object_id)
        context = {"tables": [self._commands(row.index)]} if row is not None else {}
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})

    def _commands(self, index: int) -> dict[str, Any]:
        view = rows_from_loop(lambda: running.node().show_entry(index))
        rows = [("the leader", "", one.op, _json(one.fields)) for one in view.own]
        rows += [(group.node, one.seq, one.op, _json(one.fields)) for group in view.groups for one in group.commands]
        if view.commands_left_out:
            rows.append(("", "", f"and {view.commands_left_out:,} more", ""))
        return {
            "title": "Commands",
            "columns": ("From", "Number", "Command", "Fields"),
            "rows": rows,
            "empty": view.fault or "It has no commands.",
        }


@admin.register(SnapshotRow)
class SnapshotAdmin(LiveAdmin):
    """The snapshots on this node's disk."""

    lead = "The snapshot files of this node. It starts with the current one, and applies the log from there."
    list_display = ("name", "index", "term", "bytes", "state", "saved")
    ordering = ("-index",)
    search_fields = ("name",)
    list_filter = (("state", LiveValuesFilter),)

    def rows(self) -> list[SnapshotRow]:
        directory, index = rows_from_loop(lambda: (running.node().config.data_dir, running.node().core.snapshot.index))
        return snapshot_rows(Path(directory) / DIRECTORY, index)


@admin.register(StatusRow)
class StatusAdmin(LiveAdmin):
    lead = "What this node says about itself, as GET /raft/status does."
    list_display = ("name", "value")
    search_fields = ("name",)

    def rows(self) -> list[StatusRow]:
        status = rows_from_loop(lambda: running.node().status())
        rows = [StatusRow(name=name, value=str(status[name])) for name in _SHOWN]
        services = [
            StatusRow(name=one["name"], value=": ".join(filter(None, (one["state"], one["detail"]))))
            for one in status["services"]
        ]
        return [StatusRow(name="state", value=status["state"]["name"]), *rows, *services]


member_admin.register()
user_admin.register()
