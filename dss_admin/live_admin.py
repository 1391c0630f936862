"""Django's admin for the live state in a node's memory: no tables, no writes.

A subsystem declares an unmanaged model, which describes a row, and a `LiveAdmin`. Its `rows` copies plain values in the node's loop, and
builds instances of the model from them in the thread of the page: thousands of instances take longer than Raft should wait. Lists, search,
filters, sorting, pages, details and bulk actions are Django's own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import reduce
from types import SimpleNamespace
from typing import Any

from django.contrib import admin, messages
from django.db.models import Model, Q
from django.http import HttpRequest

from dss_admin.callers import access_of, admin_caller
from dss_api import running
from dss_api.durations import duration_text
from dss_api.errors import Refused
from dss_api.operation import Operation
from dss_api.result import Result
from dss_api.rights import OPERATE, READ, Need
from dss_api.routes import ADMIN, route_of
from dss_api.running import await_in_loop, call_in_loop

#: `rows_from_loop(function)` takes the snapshot for `rows` in the thread that owns the state.
rows_from_loop = call_in_loop


def duration(field: str, label: str, none: str = "") -> Any:
    """A column that shows the field, in milliseconds, as text and sorts by its value. `none` is shown for None."""

    @admin.display(description=label, ordering=field)
    def column(row: Model) -> str:
        ms = getattr(row, field)
        return none if ms is None else duration_text(ms)

    column.__name__ = field
    return column


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _same(value: Any, wanted: Any) -> bool:
    # The admin's filters and links send text, such as "True", "1" or "3".
    if isinstance(value, bool) and isinstance(wanted, str):
        return value == (wanted.lower() in ("1", "true"))
    return value == wanted or (isinstance(wanted, str) and value is not None and str(value) == wanted)


_LOOKUPS: dict[str, Callable[[Any, Any], bool]] = {
    "exact": _same,
    "iexact": lambda value, wanted: _text(value).lower() == _text(wanted).lower(),
    "contains": lambda value, wanted: _text(wanted) in _text(value),
    "icontains": lambda value, wanted: _text(wanted).lower() in _text(value).lower(),
    "startswith": lambda value, wanted: _text(value).startswith(_text(wanted)),
    "istartswith": lambda value, wanted: _text(value).lower().startswith(_text(wanted).lower()),
    "in": lambda value, wanted: any(_same(value, one) for one in wanted),
    "isnull": lambda value, wanted: (value is None) == bool(wanted),
    "gt": lambda value, wanted: value is not None and operator.gt(value, type(value)(wanted)),
    "gte": lambda value, wanted: value is not None and operator.ge(value, type(value)(wanted)),
    "lt": lambda value, wanted: value is not None and operator.lt(value, type(value)(wanted)),
    "lte": lambda value, wanted: value is not None and operator.le(value, type(value)(wanted)),
}


class LiveQuerySet:
    """The part of a QuerySet that the admin uses, over a list of model instances. It never touches a database."""

    #: Django's checks need it; no database is used.
    db = "default"

    def __init__(self, model: type[Model], rows: Iterable[Model], ordering: tuple[str, ...] = ()) -> None:
        self.model = model
        self.ordering = ordering
        self._rows = list(rows)
        self.query = SimpleNamespace(select_related=False, order_by=ordering, where=(), distinct=False)

    def _with(self, rows: Iterable[Model], ordering: tuple[str, ...] | None = None) -> LiveQuerySet:
        return LiveQuerySet(self.model, rows, self.ordering if ordering is None else ordering)

    def _clone(self) -> LiveQuerySet:
        return self._with(self._rows)

    all = distinct = select_related = prefetch_related = only = defer = using = alias = annotate = lambda self, *_, **__: (
        self._clone()
    )

    def none(self) -> LiveQuerySet:
        return self._with(())

    @property
    def ordered(self) -> bool:
        return bool(self.ordering)

    def filter(self, *conditions: Q, **lookups: Any) -> LiveQuerySet:
        condition = reduce(operator.and_, conditions, Q(**lookups))
        return self._with(row for row in self._rows if self._holds(condition, row))

    def exclude(self, *conditions: Q, **lookups: Any) -> LiveQuerySet:
        return self.filter(~reduce(operator.and_, conditions, Q(**lookups)))

    def _holds(self, condition: Q, row: Model) -> bool:
        results = (
            self._holds(child, row) if isinstance(child, Q) else self._matches(row, *child)  # type: ignore[misc]
            for child in condition.children
        )
        if condition.connector == Q.AND:
            held = all(results)
        elif condition.connector == Q.OR:
            held = any(results) or not condition.children
        else:
            held = sum(results) % 2 == 1
        return held != condition.negated

    def _matches(self, row: Model, lookup: str, wanted: Any) -> bool:
        name, _, how = lookup.partition("__")
        try:
            return _LOOKUPS[how or "exact"](getattr(row, self._attribute(name)), wanted)
        except KeyError:
            raise NotImplementedError(f"live rows do not support the lookup {lookup!r}") from None

    def _attribute(self, name: str) -> str:
        return self.model._meta.pk.name if name == "pk" else name

    def order_by(self, *names: Any) -> LiveQuerySet:
        """Sort by field names, `-name` for descending; None sorts before every value."""
        rows = list(self._rows)
        texts = [name for name in names if isinstance(name, str)]
        for name in reversed(texts):
            attribute = self._attribute(name.removeprefix("-"))
            rows.sort(key=lambda row, a=attribute: _sort_key(getattr(row, a)), reverse=name.startswith("-"))  # type: ignore[misc]
        return self._with(rows, tuple(texts))

    def get(self, *conditions: Q, **lookups: Any) -> Model:
        found = self.filter(*conditions, **lookups)._rows
        if not found:
            raise self.model.DoesNotExist(f"{self.model._meta.verbose_name}: this row does not exist now")
        if len(found) > 1:
            raise self.model.MultipleObjectsReturned
        return found[0]

    def first(self) -> Model | None:
        return self._rows[0] if self._rows else None

    def exists(self) -> bool:
        return bool(self._rows)

    def count(self) -> int:
        return len(self._rows)

    def iterator(self, chunk_size: int | None = None) -> Iterator[Model]:
        return iter(self._rows)

    def values_list(self, *names: str, flat: bool = False) -> list[Any]:
        attributes = [self._attribute(name) for name in names]
        if flat:
            return [getattr(row, attributes[0]) for row in self._rows]
        return [tuple(getattr(row, name) for name in attributes) for row in self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __bool__(self) -> bool:
        return bool(self._rows)

    def __iter__(self) -> Iterator[Model]:
        return iter(self._rows)

    def __getitem__(self, key: int | slice) -> Any:
        return self._with(self._rows[key]) if isinstance(key, slice) else self._rows[key]


def _sort_key(value: Any) -> tuple[bool, Any]:
    return (value is not None, "" if value is None else value)


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
        rows = model_admin.get_queryset(request).values_list(field_path, flat=True)
        self.values = sorted({_text(value) for value in rows})[: self.CHOICES_MAX]

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

    show_facets = admin.ShowFacets.NEVER
    list_per_page = 100
    #: The list is in memory anyway.
    list_max_show_all = 5000

    def rows(self) -> list[Any]:
        """Instances of the model, from one snapshot: `return [Row(...) for fields in rows_from_loop(take)]`."""
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
            # Lookups, such as `?value__startswith=a`, must not tell what is in a hidden field either.
            for name in self._hidden(request):
                for row in cached:
                    setattr(row, name, "")
            request._live_rows = cached  # type: ignore[attr-defined]
        queryset = LiveQuerySet(self.model, cached)
        ordering = self.get_ordering(request)
        return queryset.order_by(*ordering) if ordering else queryset

    def get_list_display(self, request: HttpRequest) -> Any:
        return [name for name in super().get_list_display(request) if name not in self._hidden(request)]

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
        needs: Need | None = None,
    ) -> list[Any]:
        """Run an action: make a call for each row until one is refused, and show the refusal. Returns the results before it.

        The calls are recorded in the audit trail, with this user.

        Args:
            request_of: the request of the call for a row.
            needs: the right to act in the admin, if it is another one than that of the operation.
        """
        route = route_of(operation if needs is None else replace(operation, needs=needs))
        caller = admin_caller(request)
        address = request.META.get("REMOTE_ADDR") or ""
        results: list[Any] = []
        for row in rows:
            try:
                result = await_in_loop(route.perform(running.node(), request_of(row), caller, ADMIN, address))
            except Refused as refusal:
                self.message_user(request, f"{row}: {refusal.detail or refusal.code}", messages.ERROR)
                break
            if isinstance(result, Result) and result.code:
                self.message_user(request, f"{row}: {result.body.get('detail') or result.code}", messages.ERROR)
                break
            results.append(result)
        return results

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return bool(super().has_change_permission(request))
