"""The requests of one operation: valid ones, and the same with hostile values in one or two fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
from msgspec import inspect
from stored_values import placeholders
from values import HOSTILE, Values, struct_info

from dss_api.codec import RequestDecoder
from dss_api.errors import Refused
from dss_api.operation import Operation, Subscription

#: How to reach a field: names of members and positions in lists. The empty path is the whole request.
Path = tuple[str | int, ...]
#: Attempts to make a valid request, or one with a certain field.
ATTEMPTS = 40
UNKNOWN_FIELD = "colour"
#: For fields that name a key: also keys whose values are hostile.
HOSTILE_KEYS = (*placeholders(), *HOSTILE)


@dataclass(frozen=True, slots=True)
class Mutation:
    """A hostile JSON text in place of a field's value."""

    path: Path
    text: str


class RequestMaker:
    """Makes requests of one operation."""

    def __init__(self, operation: Operation | Subscription, values: Values) -> None:
        self.operation = operation
        self.reads_query = operation.method in ("GET", "DELETE")
        #: every path of the request's type, one that is unknown, and the whole request
        self.paths: tuple[Path, ...] = (*_paths(struct_info(operation.request), operation.example), (UNKNOWN_FIELD,), ())
        self._values = values
        self._decode = RequestDecoder(operation)

    def singles(self) -> Iterator[tuple[Mutation, ...]]:
        """Each hostile value at each path."""
        for path in self.paths:
            for text in self._texts(path):
                yield (Mutation(path, text),)

    def pair(self) -> tuple[Mutation, ...]:
        """Two hostile values at two random paths."""
        rng = self._values.random
        paths = [rng.choice(self.paths[:-1]) for _ in range(2)]
        return tuple(Mutation(path, rng.choice(self._texts(path))) for path in paths)

    @staticmethod
    def _texts(path: Path) -> tuple[str, ...]:
        names_key = [step for step in path if isinstance(step, str)][-1:] in (["key"], ["keys"])
        return HOSTILE_KEYS if names_key else HOSTILE

    def valid(self, wanted: Path = ()) -> Any:
        """A request that the decoder accepts; if possible one that has the field at the beginning of `wanted`."""
        best = self.operation.example
        for _ in range(ATTEMPTS):
            fields = self._values.struct(self.operation.request)
            try:
                self._decode.body(encode(fields))
            except Refused:
                continue
            if not wanted or wanted[0] in fields:
                return fields
            best = fields
        return best

    def mutated(self, mutations: tuple[Mutation, ...]) -> Any:
        """A valid request, and then the mutations."""
        path = mutations[0].path
        request: Any = self.valid(() if path == (UNKNOWN_FIELD,) else path)
        for mutation in mutations:
            request = put(request, mutation.path, mutation.text.encode(errors="surrogatepass"))
        return request


def encode(value: Any) -> bytes:
    """A request as JSON. Bytes are JSON already, or something hostile in its place."""
    match value:
        case bytes():
            return value
        case dict():
            members = (json.dumps(name).encode() + b":" + encode(member) for name, member in value.items())
            return b"{" + b",".join(members) + b"}"
        case list() | tuple():
            return b"[" + b",".join(map(encode, value)) + b"]"
        case _:
            return json.dumps(value).encode()


def address(operation: Operation, request: Any) -> tuple[str, bytes]:
    """Path with query, and body, of an HTTP call."""
    path = operation.path
    if operation.method not in ("GET", "DELETE"):
        return path, encode(request)
    if not isinstance(request, dict):
        return f"{path}?{quote(encode(request))}", b""
    pairs = [(name, _text(one)) for name, value in request.items() for one in (value if isinstance(value, list) else [value])]
    prefix, brace, parameter = path.partition("{")
    if brace:
        name = parameter.rstrip("}")
        path = prefix + quote(next((text for given, text in pairs if given == name), ""), safe="")
        pairs = [(given, text) for given, text in pairs if given != name]
    return f"{path}?{urlencode(pairs)}" if pairs else path, b""


def _text(value: Any) -> bytes | str:
    """A value in a query: texts without quotes."""
    if isinstance(value, str):
        return value
    encoded = encode(value)
    try:
        decoded = json.loads(encoded)
    except (ValueError, RecursionError):
        return encoded
    return decoded.encode(errors="surrogatepass") if isinstance(decoded, str) else encoded


def put(request: Any, path: Path, value: bytes) -> Any:
    """The request with `value` at `path`. What is missing on the way is made."""
    if not path:
        return value
    step, rest = path[0], path[1:]
    if isinstance(step, int):
        items = list(request) if isinstance(request, list | tuple) and request else [None]
        items[step] = put(items[step], rest, value)
        return items
    members = dict(request) if isinstance(request, dict) else {}
    members[step] = put(members.get(step), rest, value)
    return members


def field_of(path: Path) -> str:
    """The path as a refusal's `field` names it."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def is_json_object(body: bytes) -> bool:
    """Whether a strict parser of moderate depth takes it as an object."""
    try:
        return isinstance(msgspec.json.decode(body), dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _paths(kind: inspect.Type, example: Any, before: Path = ()) -> Iterator[Path]:
    """Every path of a type. Members of a mapping are called as in the example."""
    match kind:
        case inspect.Metadata(type=inner):
            yield from _paths(inner, example, before)
        case inspect.UnionType(types=members):
            for member in members:
                yield from _paths(member, example, before)
        case inspect.StructType(fields=fields):
            for field in fields:
                name = field.encode_name
                yield (*before, name)
                yield from _paths(field.type, example.get(name) if isinstance(example, dict) else None, (*before, name))
        case inspect.ListType(item_type=item):
            yield (*before, 0)
            yield from _paths(item, None, (*before, 0))
        case inspect.DictType(value_type=value):
            name = next(iter(example)) if isinstance(example, dict) and example else "a"
            yield (*before, name)
            yield from _paths(value, None, (*before, name))
