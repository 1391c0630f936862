"""From a request's bytes to its Struct, and from a Result to an answer's bytes: the same for every door.

Decoding is lax about types ("1000" is 1000) and strict about everything else. Whatever is wrong becomes `Refused("invalid")`
with a detail that names the field.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from dss_api.errors import Refused
from dss_api.operation import Operation, Subscription
from dss_api.problems import PROBLEMS, problem_document
from dss_api.result import Result

#: More parameters than that is no query of ours.
QUERY_FIELDS_MAX = 64

JSON_HEADERS = ((b"content-type", b"application/json"),)
PROBLEM_HEADERS = ((b"content-type", b"application/problem+json"),)

_encode = msgspec.json.Encoder().encode


class Answer(NamedTuple):
    """What a door sends back. The headers are complete but for Content-Length."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    #: to be called when the client has gone before it could be sent
    undo: Callable[[], Awaitable[None]] | None = None


class RequestDecoder:
    """Decodes the requests of one operation."""

    def __init__(self, operation: Operation | Subscription) -> None:
        self.type = operation.request
        self.reads_query = operation.method in ("GET", "DELETE")
        self._decode_json = msgspec.json.Decoder(operation.request, strict=False).decode
        self._list_fields = frozenset(
            field.encode_name for field in _struct_info(operation.request).fields if _is_list(field.type)
        )

    def body(self, body: bytes) -> Any:
        """Decode a JSON body; an empty one is `{}`.

        Raises:
            Refused: `invalid`.
        """
        try:
            if not body.isascii():
                # A Raw field is taken over as it stands, so msgspec does not look inside it.
                body.decode()
            return self._decode_json(body or b"{}")
        except msgspec.ValidationError as error:
            raise _invalid(str(error)) from None
        except UnicodeDecodeError:
            raise Refused("invalid", "the body is not valid UTF-8") from None
        except msgspec.DecodeError as error:
            raise Refused("invalid", f"the body is not valid JSON: {_plain(str(error))}") from None
        except RecursionError:
            raise Refused("invalid", "the body is nested too deeply") from None

    def query(self, query: bytes, path_parameters: dict[str, str] | None = None) -> Any:
        """Decode a query string, and what the path holds.

        Raises:
            Refused: `invalid`.
        """
        values: dict[str, Any] = {}
        for name, value in _query_pairs(query):
            if name in self._list_fields:
                values.setdefault(name, []).append(value)
            elif name in values:
                raise Refused("invalid", f"`{name}` is given twice", field=name)
            else:
                values[name] = value
        for name, value in (path_parameters or {}).items():
            if name in values:
                raise Refused("invalid", f"`{name}` stands in the path already", field=name)
            values[name] = value
        try:
            return msgspec.convert(values, self.type, strict=False)
        except msgspec.ValidationError as error:
            raise _invalid(str(error)) from None


def _struct_info(struct: type[msgspec.Struct]) -> msgspec.inspect.StructType:
    info = msgspec.inspect.type_info(struct)
    assert isinstance(info, msgspec.inspect.StructType)
    return info


def _is_list(info: Any) -> bool:
    members = info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)
    return any(isinstance(member, (msgspec.inspect.ListType, msgspec.inspect.VarTupleType)) for member in members)


def _query_pairs(query: bytes) -> list[tuple[str, str]]:
    if not query:
        return []
    try:
        text = query.decode()
        if "%" not in text and "+" not in text and "&" not in text:
            name, _, value = text.partition("=")
            return [(name, value)]
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=QUERY_FIELDS_MAX)
    except UnicodeDecodeError:
        raise Refused("invalid", "the query is not valid UTF-8") from None
    except ValueError:
        raise Refused("invalid", f"the query has more than {QUERY_FIELDS_MAX} parameters") from None


_AT_PATH = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`\$(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]+)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>.*)`$", re.DOTALL)
_NAMED = re.compile(r"`(?P<field>\w+)`")
_OF_MSGSPEC = ("Expected ", "Invalid ", "Object ", "Input ", "JSON ", "Integer ")


def _invalid(text: str) -> Refused:
    """Put msgspec's message, or a `__post_init__`'s, in words that name the field."""
    match = _AT_PATH.match(text)
    assert match is not None
    what, path = match["what"], (match["path"] or "").lstrip(".")
    for pattern, words in ((_MISSING, "is missing"), (_UNKNOWN, "is not a field of this call")):
        if found := pattern.match(what):
            field = f"{path}.{found['field']}" if path else found["field"]
            return Refused("invalid", f"`{field}` {words}", field=field)
    if not path:
        if what.startswith(_OF_MSGSPEC):
            return Refused("invalid", f"the request must be a JSON object: {_plain(what)}")
        named = _NAMED.search(what)
        return Refused("invalid", what, **({"field": named["field"]} if named else {}))
    if "matching regex" in what:
        what = "has characters that are not allowed here"
    return Refused("invalid", f"`{path}`: {_plain(what)}", field=path)


def _plain(text: str) -> str:
    return text.replace("`", "").replace("JSON is malformed: ", "")


def encode_result(result: Result) -> Answer:
    """The answer to a call that was carried out, or refused by a state machine."""
    if result.code:
        extra = {**result.body, "index": result.index} if result.index else dict(result.body)
        return _problem(result.code, extra.pop("detail", ""), extra)
    document = {"ok": True, **result.body}
    if result.index:
        document["index"] = result.index
    return Answer(200, _encode(document), JSON_HEADERS)


def encode_refusal(refusal: Refused, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Answer:
    """The answer to a call that was refused on its way."""
    return _problem(refusal.code, refusal.detail, refusal.extra, headers)


def _problem(code: str, detail: str, extra: dict[str, Any], headers: tuple[tuple[bytes, bytes], ...] = ()) -> Answer:
    problem = PROBLEMS[code]
    if problem.retry_after_s is not None:
        headers = (*headers, (b"retry-after", str(problem.retry_after_s).encode()))
    if problem.status == 401:
        headers = (*headers, (b"www-authenticate", b"Bearer"))
    return Answer(problem.status, _encode(problem_document(code, detail, extra)), (*PROBLEM_HEADERS, *headers))
