"""The cache in the admin: the lines of all nodes side by side, and those of this node."""

from __future__ import annotations

from typing import Any

import msgspec
from django import forms
from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html

from dss_admin.actions import Plan, ReasonForm, asks_first, report
from dss_admin.live_admin import LiveAdmin, LiveValuesFilter, duration, rows_from_loop, rows_in_turns
from dss_admin.texts import count
from dss_api import running
from dss_api.errors import Refused
from dss_cache.django_app.models import KeyRow, LineRow
from dss_cache.django_app.operations import EVICT_LINES, EvictLines
from dss_cache.django_app.rows import TakenKey, TakenLine, take_keys, take_lines
from dss_cache.service import CacheService, service_of

#: what a letter means
MEANINGS = {
    "M": "modified: written here, not yet in the backing store",
    "E": "exclusive: only this node has it",
    "S": "shared: other nodes may have it",
    "I": "invalid: no line",
    "?": "this node did not answer",
}


def _service() -> CacheService:
    return service_of(running.node())


def member_ids() -> list[str]:
    """The members, by name: the columns of the grid."""
    try:
        return rows_from_loop(lambda: sorted({running.node().node_id, *running.node().peers}))
    except Refused:
        return []


def lines_on_all_nodes(keys: list[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """key -> node -> what the node has of it. A node that does not answer is left out."""
    question = msgspec.json.encode(keys).decode()
    rows_of, _ = running.await_in_loop(_service().peers.ask_all_nodes("lines", question, len(keys)))
    found: dict[str, dict[str, dict[str, Any]]] = {key: {} for key in keys}
    for node, rows in rows_of.items():
        for row in rows:
            if row["key"] in found:
                found[row["key"]][node] = row
    return found


def _node_column(node: str) -> Any:
    """A column with the state of the node's line."""

    # As markup, so that the list does not write the name with a capital letter.
    @admin.display(description=format_html("<span>{}</span>", node))
    def column(row: Any) -> Any:
        line = getattr(row, "lines", {}).get(node)
        letter = "?" if line is None else line["state"]
        older = "" if line is None or letter == "I" or line["version"] == row.version else f", version {line['version']}"
        return format_html(
            '<span class="dss-line dss-line-{}" title="{}">{}</span>',
            "unknown" if letter == "?" else letter,
            MEANINGS[letter] + older,
            letter,
        )

    column.__name__ = f"line_{node}"
    return column


class NodesForm(ReasonForm):
    """On which nodes."""

    nodes = forms.MultipleChoiceField(widget=forms.CheckboxSelectMultiple, label="On")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields["nodes"].choices = [(node, node) for node in member_ids()]


def _keys_text(rows: list[Any]) -> str:
    return count(len(rows), "key", "keys")


_STAYS = "The values stay. The next read fetches them from the backing store, which takes longer."


@admin.register(KeyRow)
class KeyRowAdmin(LiveAdmin):
    """The keys with the line of each node."""

    expires_in = duration("expires_in_ms", "expires in", none="")

    contents = ("value",)
    lead = (
        "The keys of the cache, and the line that each node has of them: M modified, E exclusive, S shared, I none. Registered are the"
        " nodes that may have a line."
    )
    list_display = ("key", "state", "version", "registered", expires_in, "value")
    fields = ("key", "state", "version", "owner", "registered", expires_in, "value")
    ordering = ("key",)
    list_filter = (("state", LiveValuesFilter), ("registered", LiveValuesFilter), ("owner", LiveValuesFilter))
    search_fields = ("key", "value")
    list_per_page = list_max_show_all = 50
    actions = ("evict", "invalidate")

    def rows(self) -> list[TakenKey]:
        return rows_in_turns(lambda: take_keys(_service(), running.node().now_ms()))

    def get_list_display(self, request: HttpRequest) -> Any:
        first, *rest = super().get_list_display(request)
        nodes = getattr(request, "_members", None)
        if nodes is None:
            nodes = request._members = member_ids()  # type: ignore[attr-defined]
        return [first, *(_node_column(node) for node in nodes), *rest]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        response = super().changelist_view(request, extra_context)
        context = getattr(response, "context_data", None) or {}
        if "cl" in context:
            # The other nodes are asked about the keys of this page only.
            rows = list(context["cl"].result_list)
            lines = lines_on_all_nodes([row.key for row in rows]) if rows else {}
            for row in rows:
                row.lines = lines[row.key]
            context["cl"].result_list = rows
        return response

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        row = self.get_object(request, object_id)
        context = {"tables": [self._lines(row.key)]} if row is not None else {}
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})

    def _lines(self, key: str) -> dict[str, Any]:
        lines = lines_on_all_nodes([key])[key]
        return {
            "title": "Its line on each node",
            "columns": ("Node", "State", "Version", "Meaning"),
            "rows": [
                (node, line["state"], line["version"] or "", MEANINGS[line["state"]])
                if (line := lines.get(node)) is not None
                else (node, "?", "", MEANINGS["?"])
                for node in member_ids()
            ],
            "empty": "",
        }

    @asks_first(
        "Evict on chosen nodes",
        lambda page, rows: Plan(f"Drops the lines of {_keys_text(rows)} on these nodes. {_STAYS}"),
        NodesForm,
    )
    def evict(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        self._evict(request, rows, given["nodes"], given["reason"], "evicted")

    @asks_first(
        "Invalidate on all nodes", lambda page, rows: Plan(f"Drops the lines of {_keys_text(rows)} on every node. {_STAYS}")
    )
    def invalidate(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        self._evict(request, rows, member_ids(), given["reason"], "invalidated")

    def _evict(self, request: HttpRequest, rows: list[Any], nodes: list[str], reason: str, what: str) -> None:
        outcome = self.do_each(request, rows, EVICT_LINES, lambda row: EvictLines(key=row.key, nodes=nodes), reason)
        done = sum(bool(result.evicted) for result in outcome.results)
        report(
            self,
            request,
            done=done,
            asked=len(rows),
            what=what,
            refusal=outcome.refusal,
            nothing="the chosen nodes had no line of them",
        )


@admin.register(LineRow)
class LineRowAdmin(LiveAdmin):
    """Lines of this node, the latest first."""

    age = duration("age_ms", "age")

    contents = ("value",)
    lead = "The lines of this node, the latest first. The other nodes have lines of their own: see “Keys on all nodes”."
    list_display = ("key", "state", "version", "readable", "bytes", age, "value")
    fields = list_display
    ordering = ("age_ms",)
    list_filter = (("state", LiveValuesFilter), "readable")
    search_fields = ("key", "value")

    def rows(self) -> list[TakenLine]:
        return rows_in_turns(lambda: take_lines(_service()))
