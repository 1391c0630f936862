"""Values for any field: valid ones, made from its type, and the hostile ones that every field is tried with."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect

from dss_api.fields import WAIT_MS_MAX

#: Names that are used again and again, so that calls meet each other's locks, topics and keys.
NAMES = ("a", "b", "c", "orders", "é", "a/b c")
#: Integers at which something changes: a sign, 32, 53 and 64 bits, and beyond.
EDGES = tuple(
    sign * edge
    for edge in (0, 1, 2**31 - 1, 2**31, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1, 2**64, 10**40)
    for sign in (1, -1)
)

_DIGITS = "9" * 5000
_LONG, _TOO_LONG = 20_000, 300_000

#: JSON texts. Most are valid JSON; the last ones are not.
HOSTILE: tuple[str, ...] = (
    *dict.fromkeys(str(edge) for edge in EDGES),
    _DIGITS,
    *("0.5", "-0.0", "1.0", "1e3", "9.3e18", "1e308", "1e400", "-1e400", "5e-324", "1e-400", "0." + _DIGITS),
    *(json.dumps(text) for text in ("0", "-1", str(2**31), str(2**63), str(2**64), str(10**40), "1.0", "1e3", " 1", _DIGITS)),
    *("true", "false", '"true"', "null", '"null"', '"NaN"'),
    *(
        "[]",
        "{}",
        "[null]",
        "[0]",
        '["a", "a"]',
        '[["a"]]',
        '{"a": 1}',
        '{"": null}',
        '{"a": 18446744073709551616}',
        '[{"a": {}}]',
    ),
    *(
        '""',
        '"a"',
        '"node-1"',
        '"é"',
        '"\\ud83d\\ude00"',
        '"a\\nb"',
        '"\\u0000"',
        '"\\ud800"',
        '"../.."',
        '"%00"',
        '"<b>`x`</b>"',
    ),
    *(json.dumps("k" * length) for length in (512, 513, _LONG, _TOO_LONG)),
    json.dumps("é" * 257),
    *("[" * depth + "]" * depth for depth in (100, 900, 50_000)),
    *('{"a":' * depth + "1" + "}" * depth for depth in (100, 900)),
    json.dumps(list(range(2000))),
    json.dumps({f"m{number}": number for number in range(2000)}),
    *("NaN", "Infinity", "-Infinity", "01", "nil", "'a'", '"open', "[1,]", "{a: 1}", ""),
)


class Seen:
    """What earlier answers contained, by field name: message ids, receipts, sessions, tokens, versions."""

    def __init__(self) -> None:
        self._by_name: dict[str, deque[Any]] = {}

    def add(self, document: Any, name: str = "") -> None:
        """Remember all texts and integers in an answer."""
        if isinstance(document, dict):
            for key, value in document.items():
                self.add(value, str(key))
        elif isinstance(document, list):
            for value in document[:20]:
                self.add(value, name)
        elif isinstance(document, str | int) and not isinstance(document, bool):
            self._by_name.setdefault(_stem(name), deque(maxlen=40)).append(document)

    def of(self, name: str, wanted: type) -> list[Any]:
        """Values of a field that is called `name`, or nearly."""
        return [value for value in self._by_name.get(_stem(name), ()) if type(value) is wanted]


def _stem(name: str) -> str:
    """`if_version`, `base_version` and `version` mean the same thing, and so do `receipts` and `receipt`."""
    return name.removeprefix("if_").removeprefix("base_").removesuffix("s")


@cache
def struct_info(struct: type[msgspec.Struct]) -> inspect.StructType:
    """The fields of a Struct."""
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    return info


def can_wait(struct: type[msgspec.Struct]) -> bool:
    """Whether a call has a field with the longest wait as its maximum."""
    return any(is_wait(field.type) for field in struct_info(struct).fields)


def is_wait(kind: inspect.Type) -> bool:
    """Whether a field says how long a call waits."""
    return isinstance(kind, inspect.IntType) and kind.le == WAIT_MS_MAX


class Values:
    """Makes values from types. A Struct is a dict of its fields, and bytes are JSON.

    Args:
        seen: where texts and integers are taken from.
        edges: the share of integers that are edges, whether the type accepts them or not.
        build: makes a Struct from its fields, instead of a dict.
        any_key: further names for the fields `key` and `keys`.
        names: what texts are chosen from.
    """

    def __init__(
        self,
        rng: random.Random,
        seen: Seen,
        *,
        edges: float = 0.0,
        build: bool = False,
        any_key: Callable[[], str] | None = None,
        names: Sequence[str] = NAMES,
    ) -> None:
        self.random = rng
        self._names = names
        self.seen = seen
        self._any_key = any_key
        self._edges = edges
        self._build = build

    def struct(self, struct: type[msgspec.Struct]) -> Any:
        """A Struct, or its fields. Each optional field is given or not."""
        return self.of("", struct_info(struct))

    def of(self, name: str, kind: inspect.Type) -> Any:
        """A value of the field `name`."""
        rng = self.random
        match kind:
            case inspect.Metadata(type=inner):
                return self.of(name, inner)
            case inspect.UnionType(types=members):
                return self.of(name, rng.choice(members))
            case inspect.LiteralType(values=values):
                return rng.choice(values)
            case inspect.NoneType():
                return None
            case inspect.BoolType():
                return rng.random() < 0.5
            case inspect.FloatType():
                return rng.choice([0.0, 0.5, -1e308, 5e-324])
            case inspect.IntType():
                return self._integer(name, kind)
            case inspect.StrType():
                return self._text(name, kind)
            case inspect.BytesType() | inspect.RawType():
                return self.json_value()
            case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
                least = kind.min_length or 0
                return [self.of(name, item) for _ in range(least + rng.choice([0, 0, 1, 1, 2, 5]))][: kind.max_length]
            case inspect.TupleType(item_types=items):
                return tuple(self.of(name, item) for item in items)
            case inspect.DictType(key_type=key, value_type=value):
                count = (kind.min_length or 0) + rng.choice([0, 1, 3])
                return {self.of(name, key): self.of(name, value) for _ in range(count)}
            case inspect.StructType():
                return self._struct(kind)
            case _:
                raise NotImplementedError(f"`{name}` has the type {kind}: teach the fuzzer to make one")

    def json_value(self) -> bytes:
        """Valid JSON of a value, often an integer at an edge."""
        rng = self.random
        return str(rng.choice(EDGES)).encode() if rng.random() < 0.5 else rng.choice([b'"text"', b"{}", b"[1]", b"null", b"0.5"])

    def _struct(self, info: inspect.StructType) -> Any:
        fields = {
            field.name if self._build else field.encode_name: self.of(field.encode_name, field.type)
            for field in info.fields
            if field.required or self.random.random() < 0.5
        }
        return info.cls(**fields) if self._build else fields

    def _integer(self, name: str, kind: inspect.IntType) -> int:
        rng = self.random
        if rng.random() < self._edges:
            return rng.choice(EDGES)
        least = max(-(2**63) if kind.ge is None else kind.ge, -(2**63))
        most = min(2**63 - 1 if kind.le is None else kind.le, 2**63 - 1)
        known = self.seen.of(name, int)
        usual = [0, 1, 2, 5, 100, 5000, 2**20, least, most]
        return min(max(rng.choice(known if known and rng.random() < 0.6 else usual), least), most)

    def _text(self, name: str, kind: inspect.StrType) -> str:
        rng = self.random
        if self._any_key is not None and _stem(name) == "key" and rng.random() < 0.5:
            return self._any_key()
        known = self.seen.of(name, str)
        if known and rng.random() < 0.7:
            return rng.choice(known)
        least = kind.min_length or 0
        return "" if not least and rng.random() < 0.2 else rng.choice(self._names)
