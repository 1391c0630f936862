"""Rows of live state, as many as there are, without holding up the loop that owns the state.

Theory of operation
-------------------
1. The state belongs to the node's event loop. A list takes its rows there, `STEPS_PER_TURN` at a time, from a generator that copies
   plain values. Between two slices the loop does its other work. The rows are therefore not all from the same moment.
2. Everything else happens in the thread of the page: searching, filters and sorting look at the copies, and instances of the model are
   made for the rows of one page only. That thread and the loop share the interpreter's lock, so nothing here runs long in C: long lists
   are sorted in chunks, which are merged up to the end of the page.
3. A copy is a Struct that the garbage collector does not track (`gc=False`): a full collection stops all threads for as long as it looks at
   each tracked object.
4. A generator yields None for a step without a row, so that a step is bounded work even where rows are rare.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from heapq import merge
from itertools import islice
from types import SimpleNamespace
from typing import Any, TypeVar

from django.core.exceptions import FieldError
from django.db.models import Model, Q

from dss_api.running import call_in_loop

T = TypeVar("T")

#: Steps of a generator in one turn of the loop: a few milliseconds at most.
STEPS_PER_TURN = 200
#: Rows in a list. The rest is not shown or searched, and the list says so.
ROWS_MAX = 100_000
#: Steps for a list, with and without a row.
STEPS_MAX = 500_000
#: Longer lists are sorted in chunks of this length.
CHUNK = 4096


def rows_from_loop(take: Callable[[], T]) -> T:
    """Take a short snapshot in the thread that owns the state."""
    return call_in_loop(take)


class Taken(list[T]):
    """Rows, whether there are more, and what else a list should say about them."""

    is_cut = False
    note = ""


def rows_in_turns(begin: Callable[[], Iterator[T | None]]) -> Taken[T]:
    """The rows of a generator that runs in the thread that owns the state, a slice in each turn."""
    rows: Taken[T] = Taken()
    count = 0
    steps = rows_from_loop(begin)
    while part := rows_from_loop(lambda: list(islice(steps, STEPS_PER_TURN))):
        rows += [row for row in part if row is not None]
        count += len(part)
        if len(rows) >= ROWS_MAX or count >= STEPS_MAX:
            rows.is_cut = True
            del rows[ROWS_MAX:]
            break
    return rows


# ----------------------------------------------------------------- lookups


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _same(wanted: Any) -> Callable[[Any], bool]:
    # The admin's filters and links send text, such as "True", "1" or "3".
    is_true = isinstance(wanted, str) and wanted.lower() in ("1", "true")

    def holds(value: Any) -> bool:
        if isinstance(value, bool) and isinstance(wanted, str):
            return value == is_true
        return value == wanted or (isinstance(wanted, str) and value is not None and str(value) == wanted)

    return holds


def _one_of(wanted: Iterable[Any]) -> Callable[[Any], bool]:
    texts = {str(one) for one in wanted}
    return lambda value: value is not None and str(value) in texts


def _compared(compare: Callable[[Any, Any], bool]) -> Callable[[Any], Callable[[Any], bool]]:
    return lambda wanted: lambda value: value is not None and compare(value, type(value)(wanted))


def _texts(compare: Callable[[str, str], bool], *, fold: bool = False) -> Callable[[Any], Callable[[Any], bool]]:
    def made(wanted: Any) -> Callable[[Any], bool]:
        text = _text(wanted).lower() if fold else _text(wanted)
        if fold:
            return lambda value: compare(_text(value).lower(), text)
        return lambda value: compare(_text(value), text)

    return made


#: lookup -> makes the predicate on a value from what is wanted
_LOOKUPS: dict[str, Callable[[Any], Callable[[Any], bool]]] = {
    "exact": _same,
    "iexact": _texts(operator.eq, fold=True),
    "contains": _texts(operator.contains),
    "icontains": _texts(operator.contains, fold=True),
    "startswith": _texts(str.startswith),
    "istartswith": _texts(str.startswith, fold=True),
    "in": _one_of,
    "isnull": lambda wanted: lambda value: (value is None) == bool(wanted),
    "gt": _compared(operator.gt),
    "gte": _compared(operator.ge),
    "lt": _compared(operator.lt),
    "lte": _compared(operator.le),
}


class _Reversed:
    """Sorts in the other direction."""

    __slots__ = ("key",)

    def __init__(self, key: Any) -> None:
        self.key = key

    def __lt__(self, other: _Reversed) -> bool:
        return bool(other.key < self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Reversed) and bool(other.key == self.key)

    __hash__ = None  # type: ignore[assignment]


def _sort_key(value: Any) -> tuple[bool, Any]:
    return (value is not None, "" if value is None else value)


class LiveQuerySet:
    """The part of a QuerySet that the admin uses, over rows in memory. It never touches a database.

    A row is an instance of the model, or any object with an attribute for each of the model's fields, from which an instance is made
    when the row is shown.

    Args:
        hidden: fields that are empty in every row, and cannot be looked up.
    """

    #: Django's checks need it; no database is used.
    db = "default"

    def __init__(
        self, model: type[Model], rows: Iterable[Any], ordering: tuple[str, ...] = (), hidden: Iterable[str] = ()
    ) -> None:
        self.model = model
        self.ordering = ordering
        self._rows = rows if isinstance(rows, list) else list(rows)
        #: whether the rows have to be sorted yet
        self._unsorted = bool(ordering)
        self._distinct = False
        self._hidden = frozenset(hidden)
        self._fields = tuple(field.attname for field in model._meta.concrete_fields)
        self.query = SimpleNamespace(select_related=False, order_by=ordering, where=(), distinct=False)

    def _with(self, rows: list[Any], ordering: tuple[str, ...] | None = None, *, is_sorted: bool = False) -> LiveQuerySet:
        made = LiveQuerySet(self.model, rows, self.ordering if ordering is None else ordering, self._hidden)
        made._unsorted = bool(made.ordering) and not is_sorted
        made._distinct = self._distinct
        return made

    def _clone(self) -> LiveQuerySet:
        return self._with(self._rows, is_sorted=not self._unsorted)

    all = select_related = prefetch_related = only = defer = using = alias = annotate = lambda self, *_, **__: self._clone()

    def distinct(self, *fields: str) -> LiveQuerySet:
        """Each value once, in `values_list`."""
        made = self._clone()
        made._distinct = True
        return made

    def none(self) -> LiveQuerySet:
        return self._with([])

    @property
    def ordered(self) -> bool:
        return bool(self.ordering)

    # ---------------------------------------------------------------- filters

    def filter(self, *conditions: Q, **lookups: Any) -> LiveQuerySet:
        holds = self._predicate(reduce(operator.and_, conditions, Q(**lookups)))
        return self._with([row for row in self._rows if holds(row)], is_sorted=not self._unsorted)

    def exclude(self, *conditions: Q, **lookups: Any) -> LiveQuerySet:
        return self.filter(~reduce(operator.and_, conditions, Q(**lookups)))

    def _predicate(self, condition: Q) -> Callable[[Any], bool]:
        parts = [
            self._predicate(child) if isinstance(child, Q) else self._lookup(*child)  # type: ignore[misc]
            for child in condition.children
        ]
        negated = condition.negated
        if condition.connector == Q.AND:
            return lambda row: all(part(row) for part in parts) != negated
        if condition.connector == Q.OR:
            return lambda row: (any(part(row) for part in parts) or not parts) != negated
        return lambda row: (sum(part(row) for part in parts) % 2 == 1) != negated

    def _lookup(self, lookup: str, wanted: Any) -> Callable[[Any], bool]:
        name, _, how = lookup.partition("__")
        get = self._getter(name)
        try:
            holds = _LOOKUPS[how or "exact"](wanted)
        except KeyError:
            raise NotImplementedError(f"live rows do not support the lookup {lookup!r}") from None
        return lambda row: holds(get(row))

    def _getter(self, name: str) -> Callable[[Any], Any]:
        attribute = self.model._meta.pk.attname if name == "pk" else name
        if attribute not in self._fields:
            # A copied row has more attributes than the list shows. A lookup in an address must not reach them.
            raise FieldError(f"{self.model._meta.verbose_name} has no field {attribute!r}")
        if attribute in self._hidden:
            return lambda row: ""
        return operator.attrgetter(attribute)

    # ------------------------------------------------------------------ order

    def order_by(self, *names: Any) -> LiveQuerySet:
        """Sort by field names, `-name` for descending; None sorts before every value."""
        return self._with(self._rows, tuple(name for name in names if isinstance(name, str)))

    def _in_order(self) -> Iterator[Any]:
        """The rows in order. Only as much is sorted as is read, beyond the chunks."""
        if not self._unsorted:
            return iter(self._rows)
        keys = [(self._getter(name.removeprefix("-")), name.startswith("-")) for name in self.ordering]

        def sorted_part(rows: list[Any]) -> list[Any]:
            for get, is_reversed in reversed(keys):
                rows.sort(key=lambda row, get=get: _sort_key(get(row)), reverse=is_reversed)  # type: ignore[misc]
            return rows

        def key_of(row: Any) -> tuple[Any, ...]:
            return tuple(_Reversed(_sort_key(get(row))) if is_reversed else _sort_key(get(row)) for get, is_reversed in keys)

        parts = [sorted_part(self._rows[start : start + CHUNK]) for start in range(0, len(self._rows), CHUNK)]
        return iter(parts[0]) if len(parts) == 1 else merge(*parts, key=key_of)

    # ----------------------------------------------------------------- reading

    def _built(self, row: Any) -> Model:
        """The instance of the model that is shown for a row."""
        if isinstance(row, Model):
            for name in self._hidden:
                setattr(row, name, "")
            return row
        return self.model(**{name: "" if name in self._hidden else getattr(row, name) for name in self._fields})

    def get(self, *conditions: Q, **lookups: Any) -> Model:
        found = self.filter(*conditions, **lookups)._rows
        if not found:
            raise self.model.DoesNotExist(f"{self.model._meta.verbose_name}: this row does not exist now")
        if len(found) > 1:
            raise self.model.MultipleObjectsReturned
        return self._built(found[0])

    def first(self) -> Model | None:
        return next(iter(self), None)

    def exists(self) -> bool:
        return bool(self._rows)

    def count(self) -> int:
        return len(self._rows)

    def iterator(self, chunk_size: int | None = None) -> Iterator[Model]:
        return iter(self)

    def values_list(self, *names: str, flat: bool = False) -> list[Any]:
        getters = [self._getter(name) for name in names]
        rows = self._in_order()
        found = [getters[0](row) for row in rows] if flat else [tuple(get(row) for get in getters) for row in rows]
        return list(dict.fromkeys(found)) if self._distinct else found

    def __len__(self) -> int:
        return len(self._rows)

    def __bool__(self) -> bool:
        return bool(self._rows)

    def __iter__(self) -> Iterator[Model]:
        return (self._built(row) for row in self._in_order())

    def __getitem__(self, key: int | slice) -> Any:
        if isinstance(key, slice):
            if not self._unsorted:
                return self._with(self._rows[key], is_sorted=True)
            return self._with(list(islice(self._in_order(), key.start, key.stop, key.step)), is_sorted=True)
        return self._built(next(islice(self._in_order(), key, None)))
