"""Django's admin for the live state in a node's memory: no tables, no writes.

A subsystem declares an unmanaged model, which describes a row, and a `LiveAdmin`. Its `rows` copies plain values in the node's loop, a
slice in each turn (`live_rows.py`). Lists, search, filters, sorting, pages, details and bulk actions are Django's own. Actions ask before
they do anything (`actions.py`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from heapq import nsmallest
from typing import Any, NamedTuple

from django.contrib import admin, messages
from django.db.models import Model, Q
from django.forms import Media
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path
from django.utils.text import capfirst
from msgspec import ValidationError

from dss_admin import live_rows
from dss_admin.actions import Refusal, action_named, list_actions, report
from dss_admin.callers import access_of, admin_caller
from dss_admin.live_rows import LiveQuerySet, rows_from_loop, rows_in_turns
from dss_api import running
from dss_api.durations import duration_text
from dss_api.errors import Refused
from dss_api.operation import Operation
from dss_api.result import Result
from dss_api.rights import OPERATE, READ, Need
from dss_api.routes import ADMIN, route_of
from dss_api.running import await_in_loop

__all__ = [
    "LiveAdmin",
    "LiveQuerySet",
    "LiveValuesFilter",
    "Outcome",
    "beginning",
    "duration",
    "rows_from_loop",
    "rows_in_turns",
]


def duration(field: str, label: str, none: str = "") -> Any:
    """A column that shows the field, in milliseconds, as text and sorts by its value. `none` is shown for None."""

    @admin.display(description=label, ordering=field)
    def column(row: Model) -> str:
        ms = getattr(row, field)
        return none if ms is None else duration_text(ms)

    column.__name__ = field
    return column


#: Characters of a long text in a list; its page shows all.
TEXT_IN_LIST_MAX = 160


def beginning(field: str, label: str = "") -> Any:
    """A column that shows the beginning of a long text."""

    @admin.display(description=label or field, ordering=field)
    def column(row: Model) -> str:
        text: str = getattr(row, field)
        return text if len(text) <= TEXT_IN_LIST_MAX else f"{text[:TEXT_IN_LIST_MAX]}…"

    column.__name__ = field
    return column


class LiveValuesFilter(admin.FieldListFilter):
    """A filter by the current values: `list_filter = [("topic", LiveValuesFilter)]`."""

    #: With more choices, the search box is easier to use.
    CHOICES_MAX = 50

    def __init__(
        self, field: Any, request: HttpRequest, params: dict[str, Any], model: Any, model_admin: Any, field_path: str
    ) -> None:
        self.parameter = field_path
        super().__init__(field, request, params, model, model_admin, field_path)
        chosen = self.used_parameters.get(field_path)
        self.chosen = chosen[-1] if isinstance(chosen, list) else chosen
        rows = model_admin.get_queryset(request).order_by().values_list(field_path, flat=True)
        values = {"" if value is None else str(value) for value in rows}
        #: how many more there are
        self.more = len(values) - self.CHOICES_MAX
        self.values = nsmallest(self.CHOICES_MAX, values)
        if self.chosen is not None and self.chosen not in self.values:
            self.values.insert(0, self.chosen)

    def expected_parameters(self) -> list[str]:
        return [self.parameter]

    def has_output(self) -> bool:
        return bool(self.values)

    def choices(self, changelist: Any) -> Iterator[dict[str, Any]]:
        yield {
            "selected": self.chosen is None,
            "query_string": changelist.get_query_string(remove=[self.parameter]),
            "display": "All",
        }
        for value in self.values:
            yield {
                "selected": self.chosen == value,
                "query_string": changelist.get_query_string({self.parameter: value}),
                "display": value or "(none)",
            }
        if self.more > 0:
            yield {
                "selected": False,
                "query_string": changelist.get_query_string(),
                "display": f"{self.more:,} more: use the search",
            }


class Outcome(NamedTuple):
    """What the calls of an action did: the results of those that were carried out, and why the next one was not."""

    results: list[Any]
    refusal: Refusal | None = None

    def count(self, field: str) -> int:
        """How many rows were changed, as the results say in a field."""
        return sum(int(result.body[field] if isinstance(result, Result) else getattr(result, field)) for result in self.results)


#: The admin's scripts that lists need. Lists have no popups and no prepopulated fields.
LIST_SCRIPTS = Media(js=["admin/js/core.js", "admin/js/actions.js"])
#: Django's template for forms ends with a script that needs jQuery.
FORM_SCRIPTS = Media(js=["admin/js/vendor/jquery/jquery.min.js", "admin/js/jquery.init.js", "admin/js/core.js"])


class LiveAdmin(admin.ModelAdmin):
    """Lists live rows. A subclass defines `rows`, and may define actions, which make calls through `do_each`.

    Reading needs the model's `view` permission. An action declares `permissions=["operate"]`, which is the `change` permission. The groups
    of the cluster's users have the permissions that their rights give them: `view_needs` and `act_needs`.
    """

    #: the right to see the rows
    view_needs: Need = READ
    #: the right to act on them
    act_needs: Need = OPERATE
    #: text fields with messages or cached values; for users who may not do everything they are empty, and cannot be looked up
    contents: tuple[str, ...] = ()

    #: one or two sentences above the list
    lead = ""
    #: names of the actions on the list as a whole
    list_actions: tuple[str, ...] = ()

    show_facets = admin.ShowFacets.NEVER
    list_per_page = 100
    list_max_show_all = 1000
    change_list_template = "admin/live_list.html"
    change_form_template = "admin/live_row.html"

    @property
    def media(self) -> Media:
        return FORM_SCRIPTS

    def rows(self) -> list[Any]:
        """The rows: `return rows_in_turns(lambda: take(state))`. Each has an attribute for each field of the model, or is an instance."""
        raise NotImplementedError

    def get_queryset(self, request: HttpRequest) -> Any:
        # One snapshot per request, so that the list, its filters and the selected rows of an action agree.
        cached = getattr(request, "_live_rows", None)
        if cached is None:
            try:
                cached = self.rows()
            except Refused as refusal:
                messages.error(request, f"This node has no live state to show: {refusal.detail or refusal.code}.")
                cached = []
            request._live_rows = cached  # type: ignore[attr-defined]
        # Lookups, such as `?value__startswith=a`, must not tell what is in a hidden field either.
        queryset = LiveQuerySet(self.model, cached, hidden=self._hidden(request))
        ordering = self.get_ordering(request)
        return queryset.order_by(*ordering) if ordering else queryset

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        may_act = self.has_operate_permission(request)
        context = {
            "title": capfirst(self.opts.verbose_name_plural),
            "lead": self.lead,
            "list_actions": list_actions(self) if may_act else (),
            "rows_max": f"{live_rows.ROWS_MAX:,}",
            **(extra_context or {}),
        }
        response = super().changelist_view(request, context)
        if hasattr(response, "context_data") and response.context_data is not None:
            rows = getattr(request, "_live_rows", None)
            response.context_data["is_cut"] = getattr(rows, "is_cut", False)
            response.context_data["note"] = getattr(rows, "note", "")
            response.context_data["media"] = LIST_SCRIPTS
        return response

    def get_urls(self) -> list[URLPattern]:
        meta = self.model._meta
        acting = path(
            "do/<str:name>/",
            self.admin_site.admin_view(lambda request, name: action_named(self, request, name)),
            name=f"{meta.app_label}_{meta.model_name}_do",
        )
        return [acting, *super().get_urls()]

    def get_list_display(self, request: HttpRequest) -> Any:
        hidden = self._hidden(request)
        return [name for name in super().get_list_display(request) if getattr(name, "__name__", name) not in hidden]

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return [name for name in super().get_fields(request, obj) if name not in self._hidden(request)]

    def get_search_fields(self, request: HttpRequest) -> Any:
        return [name for name in super().get_search_fields(request) if name not in self._hidden(request)]

    def lookup_allowed(self, lookup: str, value: Any, request: Any = None) -> bool:
        if lookup.partition("__")[0] in (self.contents if request is None else self._hidden(request)):
            return False
        return bool(super().lookup_allowed(lookup, value, request))

    def _hidden(self, request: HttpRequest) -> tuple[str, ...]:
        return () if not self.contents or access_of(request.user).everything else self.contents

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        """Every word must occur in one of `search_fields`."""
        fields = [name.lstrip("^=@") for name in self.get_search_fields(request)]
        for word in search_term.split() if fields else ():
            queryset = queryset.filter(reduce(operator.or_, (Q(**{f"{name}__icontains": word}) for name in fields)))
        return queryset, False

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        actions = super().get_actions(request)
        actions.pop("delete_selected", None)
        return actions

    def do_each(
        self,
        request: HttpRequest,
        rows: Iterable[Any],
        operation: Operation,
        request_of: Callable[[Any], Any],
        reason: str,
        needs: Need | None = None,
    ) -> Outcome:
        """Make a call for each row until one is refused.

        The calls are recorded in the audit trail, with this user and the reason.

        Args:
            request_of: the request of the call for a row.
            needs: the right to act in the admin, if it is another one than that of the operation.
        """
        route = route_of(operation if needs is None else replace(operation, needs=needs))
        caller = admin_caller(request, reason)
        address = request.META.get("REMOTE_ADDR") or ""
        results: list[Any] = []
        for row in rows:
            try:
                result = await_in_loop(route.perform(running.node(), request_of(row), caller, ADMIN, address))
            except Refused as refusal:
                return Outcome(results, Refusal(str(row), refusal.code, refusal.detail or refusal.code))
            except (ValidationError, ValueError) as error:
                return Outcome(results, Refusal(str(row), "invalid", str(error)))
            if isinstance(result, Result) and result.code:
                return Outcome(results, Refusal(str(row), result.code, str(result.body.get("detail") or result.code)))
            results.append(result)
        return Outcome(results)

    def report_each(
        self, request: HttpRequest, outcome: Outcome, field: str, rows: Sequence[Any], *, nothing: str, what: str = ""
    ) -> None:
        """Say what the calls of `do_each` for these rows did.

        Args:
            field: of the results: whether, or how often, a call changed something.
            nothing: why a call that was carried out may have changed nothing.
            what: "released", as in "2 released"; by default the field's name.
        """
        done = outcome.count(field)
        report(self, request, done=done, asked=len(rows), what=what or field, refusal=outcome.refusal, nothing=nothing)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return bool(super().has_change_permission(request))
