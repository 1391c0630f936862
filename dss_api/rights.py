"""What a token may do: its scopes, and the right that each operation needs.

Theory of operation
-------------------
1. A *scope* is a text: `read`, `operate`, `cluster`, `all`, `locks:PREFIX`, `queue:PREFIX:publish` (or `consume`, `manage`),
   `cache:PREFIX:read` (or `write`). A prefix matches every name that begins with it; the empty prefix matches all names.
2. `Access` is what the scopes of one caller allow. A name is covered if one of the prefixes begins it. Names are compared as the state
   machines compare them: code point by code point, without any normalization.
3. Each operation declares its *need* once (`Operation.needs`). A need with prefixes names the fields that carry the keys or topics. It is
   met only if there is at least one name and *every* name is covered: a call that touches several keys is allowed for all or refused.
4. A need is checked twice: `is_possible` before the body is read, without a request, and `is_met` with the decoded request.

Pure: no I/O, clock or state. Nothing here knows tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from dss_api.fields import BYTES_PER_NAME_MAX

ALL = "all"
#: scopes without a prefix
PLAIN = ("read", "operate", "cluster", ALL)
#: the scopes of operators, whose changing calls are audited
OPERATORS = frozenset(("operate", "cluster", ALL))
#: area -> its actions; "" for an area whose scopes have no action
AREAS: dict[str, tuple[str, ...]] = {
    "locks": ("",),
    "queue": ("publish", "consume", "manage"),
    "cache": ("read", "write"),
}
SCOPES_PER_TOKEN_MAX = 32
#: "queue:", a prefix and ":publish"
SCOPE_LENGTH_MAX = BYTES_PER_NAME_MAX + 32


def split_scope(scope: str) -> tuple[str, str, str]:
    """(area, prefix, action) of a scope; a plain scope is an area alone.

    Raises:
        ValueError: says what a scope must look like.
    """
    area, colon, rest = scope.partition(":")
    if area in PLAIN and not colon:
        return area, "", ""
    if area == "locks" and colon:
        prefix, action = rest, ""
    elif area in AREAS and colon and rest.count(":"):
        prefix, _, action = rest.rpartition(":")
    else:
        raise ValueError(f"{scope!r} is not a scope: {FORMS}")
    if action not in AREAS[area]:
        raise ValueError(f"{scope!r} must end with one of {', '.join(f':{one}' for one in AREAS[area])}")
    if len(prefix.encode()) > BYTES_PER_NAME_MAX or any(ord(one) < 0x20 or 0x7F <= ord(one) < 0xA0 for one in prefix):
        raise ValueError(f"the prefix in {scope!r} must be at most {BYTES_PER_NAME_MAX} bytes without control characters")
    return area, prefix, action


FORMS = (
    "use `read`, `operate`, `cluster`, `all`, `locks:PREFIX`, `queue:PREFIX:publish`, `queue:PREFIX:consume`, `queue:PREFIX:manage`, "
    "`cache:PREFIX:read` or `cache:PREFIX:write`"
)


class Access:
    """What the scopes of one caller allow. A text that is not a scope allows nothing: a later release may know it."""

    __slots__ = ("_prefixes", "everything", "plain")

    def __init__(self, scopes: Iterable[str]) -> None:
        plain = set()
        prefixes: dict[tuple[str, str], tuple[str, ...]] = {}
        for scope in scopes:
            try:
                area, prefix, action = split_scope(scope)
            except ValueError:
                continue
            if area in PLAIN:
                plain.add(area)
            else:
                prefixes[area, action] = (*prefixes.get((area, action), ()), prefix)
        self.everything = ALL in plain
        self.plain = frozenset(plain)
        self._prefixes = prefixes

    def prefixes(self, area: str, action: str) -> tuple[str, ...]:
        """The prefixes of this area and action. A name that begins with one of them is covered."""
        return self._prefixes.get((area, action), ())

    def has(self, area: str, action: str) -> bool:
        """Whether there is any prefix of this area and action."""
        return (area, action) in self._prefixes


EVERYTHING = Access((ALL,))
#: what the users of each group may do
OF_GROUP = {"viewer": Access(("read",)), "operator": Access(("read", "operate")), "admin": EVERYTHING}


# -------------------------------------------------------------------- needs


class Need:
    """The right that an operation needs. By default: any token."""

    @property
    def text(self) -> str:
        """For people: "`read`, or `locks:…` for `key`"."""
        return "any token"

    @property
    def is_open(self) -> bool:
        """No token at all is needed."""
        return False

    def is_possible(self, access: Access) -> bool:
        """Whether some request could be allowed. Checked before the request is read."""
        return True

    def is_met(self, access: Access, request: Any) -> bool:
        """Whether this request is allowed."""
        return self.is_possible(access)

    def paths(self) -> Iterator[tuple[str, str]]:
        """(area, field) of each field whose names are checked; "items.key" is a field of each member of a list."""
        yield from ()

    def plain_scopes(self) -> frozenset[str]:
        """The plain scopes among the alternatives."""
        return frozenset()


class _Open(Need):
    text = "none: no token is needed"
    is_open = True


@dataclass(frozen=True)
class Plain(Need):
    """A scope without a prefix."""

    scope: str

    def __post_init__(self) -> None:
        assert self.scope in PLAIN

    @property
    def text(self) -> str:
        return f"`{self.scope}`"

    def is_possible(self, access: Access) -> bool:
        return access.everything or self.scope in access.plain

    def plain_scopes(self) -> frozenset[str]:
        return frozenset((self.scope,))


@dataclass(frozen=True)
class Prefixed(Need):
    """A scope whose prefix begins every name in these fields.

    Attributes:
        optional: met also if the request has none of the fields: a part of a call that it need not have.
    """

    area: str
    action: str
    fields: tuple[str, ...]
    optional: bool = False

    def __post_init__(self) -> None:
        assert self.action in AREAS[self.area]
        assert self.fields

    @property
    def text(self) -> str:
        names = " and ".join(f"`{field}`" for field in self.fields)
        scope = f"{self.area}:…:{self.action}" if self.action else f"{self.area}:…"
        return f"`{scope}` for {'each of ' if self.optional else ''}{names}"

    def is_possible(self, access: Access) -> bool:
        return self.optional or access.everything or access.has(self.area, self.action)

    def is_met(self, access: Access, request: Any) -> bool:
        if access.everything:
            return True
        prefixes = access.prefixes(self.area, self.action)
        count = 0
        for field in self.fields:
            for name in names_in(request, field):
                if not name and self.optional:
                    continue
                if not name.startswith(prefixes):
                    return False
                count += 1
        return self.optional or count > 0

    def paths(self) -> Iterator[tuple[str, str]]:
        for field in self.fields:
            yield self.area, field


@dataclass(frozen=True)
class AnyIn(Need):
    """Any prefix of this area: for a call that names no key."""

    area: str
    action: str

    @property
    def text(self) -> str:
        return f"any `{self.area}:…{f':{self.action}' if self.action else ''}`"

    def is_possible(self, access: Access) -> bool:
        return access.everything or access.has(self.area, self.action)


@dataclass(frozen=True)
class _Several(Need):
    parts: tuple[Need, ...]

    def paths(self) -> Iterator[tuple[str, str]]:
        for part in self.parts:
            yield from part.paths()

    def plain_scopes(self) -> frozenset[str]:
        return frozenset().union(*(part.plain_scopes() for part in self.parts))


@dataclass(frozen=True)
class Either(_Several):
    """One of these is enough."""

    @property
    def text(self) -> str:
        return ", or ".join(part.text for part in self.parts)

    def is_possible(self, access: Access) -> bool:
        return any(part.is_possible(access) for part in self.parts)

    def is_met(self, access: Access, request: Any) -> bool:
        return any(part.is_met(access, request) for part in self.parts)


@dataclass(frozen=True)
class Every(_Several):
    """All of these."""

    @property
    def text(self) -> str:
        return "; ".join(part.text for part in self.parts)

    def is_possible(self, access: Access) -> bool:
        return all(part.is_possible(access) for part in self.parts)

    def is_met(self, access: Access, request: Any) -> bool:
        return all(part.is_met(access, request) for part in self.parts)


def names_in(request: Any, field: str) -> Sequence[str]:
    """Every name in the field of a decoded request; none if it is absent. A field inside a list is "list.field"."""
    if "." in field:
        first, _, rest = field.partition(".")
        value = getattr(request, first)
        return () if value is None or value is msgspec.UNSET else [name for member in value for name in names_in(member, rest)]
    value = getattr(request, field)
    if isinstance(value, str):
        return (value,)
    return () if value is None or value is msgspec.UNSET else value  # type: ignore[no-any-return]


OPEN: Need = _Open()
ANY_TOKEN = Need()
READ: Need = Plain("read")
OPERATE: Need = Plain("operate")
CLUSTER: Need = Plain("cluster")
ONLY_ALL: Need = Plain(ALL)


def locks(*fields: str, optional: bool = False) -> Need:
    return Prefixed("locks", "", fields, optional)


def queue(action: str, *fields: str, optional: bool = False) -> Need:
    return Prefixed("queue", action, fields, optional)


def cache(action: str, *fields: str) -> Need:
    return Prefixed("cache", action, fields)


def check(need: Need, request: type[msgspec.Struct]) -> None:
    """Check that the request has every field that the need names.

    Raises:
        ValueError: it has not.
    """
    for _, path in need.paths():
        at: Any = request
        for name in path.split("."):
            fields = {one.name: one.type for one in msgspec.structs.fields(at)} if at is not None else {}
            if name not in fields:
                raise ValueError(f"{request.__name__} has no field {path}, which its operation's need names")
            at = _struct_in(fields[name])


def _struct_in(declared: Any) -> type[msgspec.Struct] | None:
    """The Struct in a field's type: of a list's members, or of an optional field."""
    if isinstance(declared, type) and issubclass(declared, msgspec.Struct):
        return declared
    for part in getattr(declared, "__args__", ()):
        if (found := _struct_in(part)) is not None:
            return found
    return None
