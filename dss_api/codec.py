"""From a request's bytes to its Struct, and from an operation's result to an answer's bytes: the same for every entry point.

Decoding is lax about types ("1000" is 1000) and strict about everything else. Anything wrong becomes `Refused("invalid")` with a
detail that names the field. Encoding sends what the operation's answer Struct declares, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import structlog

from dss_api import attached
from dss_api.answer import Answer
from dss_api.attached import Parts
from dss_api.errors import Refused
from dss_api.operation import Message, Operation, Subscription
from dss_api.problems import PROBLEMS, problem_document
from dss_api.request_id import FIELD as REQUEST_ID
from dss_api.request_id import Identified, split
from dss_api.result import Result
from dss_api.security_headers import NOSNIFF

log = structlog.get_logger("api")

#: Parameters in a query string.
QUERY_FIELDS_MAX = 64
#: The text of every `internal` refusal.
INTERNAL = "internal error; see the node's log"

JSON = b"application/json"
JSON_HEADERS = ((b"content-type", b"application/json"), NOSNIFF)
ATTACHED_HEADERS = ((b"content-type", attached.MEDIA_TYPE), NOSNIFF)
PROBLEM_HEADERS = ((b"content-type", b"application/problem+json"), NOSNIFF)

_encode = attached.encode_text
_REQUEST_ID = REQUEST_ID.encode()
#: A field's name may be written with escapes.
_ESCAPE = b"\\u"


class EncodedAnswer(msgspec.Struct, gc=False):
    """The answer that an entry point sends. The headers are complete except for Content-Length."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    #: called if the client disconnected before the answer could be sent
    undo: Callable[[], Awaitable[None]] | None = None
    #: bytes that belong to the body; see attached.py
    parts: tuple[memoryview, ...] = ()

    @property
    def payload(self) -> bytes:
        """The body with what is attached."""
        return attached.message(self.body, self.parts) if self.parts else self.body


class RequestDecoder:
    """Decodes the requests of one operation. A request with a `request_id` is decoded as `Identified`."""

    def __init__(self, operation: Operation | Subscription | Message) -> None:
        self.type = operation.request
        self._name = operation.name
        self._type_with_id = operation.request_with_id if isinstance(operation, Operation) else operation.request
        self._takes_id = self._type_with_id is not self.type
        self.reads_query = operation.method in ("GET", "DELETE")
        self._decode_json = msgspec.json.Decoder(operation.request, strict=False).decode
        self._decode_with_id = msgspec.json.Decoder(self._type_with_id, strict=False).decode
        self._list_fields = _list_fields(operation.request)

    def typed_body(self, content_type: bytes, body: bytes) -> Any:
        """Decode a body whose Content-Type must be JSON, with bytes attached or without, unless it is empty.

        Raises:
            Refused: `invalid`, `unsupported_media_type`.
        """
        if body and content_type != JSON and (media_type := content_type.partition(b";")[0].strip().lower()) != JSON:
            if media_type == attached.MEDIA_TYPE:
                if not attached.is_attached(body):
                    raise Refused("invalid", "the body does not begin with a zero byte and the length of its JSON document")
                try:
                    return self.body(*attached.split(body))
                except ValueError as error:
                    raise Refused("invalid", str(error)) from None
            raise Refused("unsupported_media_type", "send the body as `Content-Type: application/json`")
        return self.body(body)

    def body(self, body: bytes, parts: Parts | None = None) -> Any:
        """Decode a JSON body; an empty one is `{}`.

        Args:
            parts: what is attached to it.

        Raises:
            Refused: `invalid`.
        """
        request = self._decode(body)
        if parts is not None:
            _attach(request, parts)
        return request

    def _decode(self, body: bytes) -> Any:
        try:
            if not body.isascii():
                # msgspec copies a Raw field without checking its encoding.
                body.decode()
            if self._takes_id and (_REQUEST_ID in body or _ESCAPE in body):
                return split(self._decode_with_id(body), self.type, self._name)
            return self._decode_json(body or b"{}")
        except msgspec.ValidationError as error:
            raise invalid(str(error)) from None
        except UnicodeDecodeError:
            raise Refused("invalid", "the body is not valid UTF-8") from None
        except msgspec.DecodeError as error:
            raise Refused("invalid", f"the body is not valid JSON: {_plain(str(error))}") from None
        except RecursionError:
            raise Refused("invalid", "the body is nested too deeply") from None

    def query(self, query: bytes, path_parameters: dict[str, str] | None = None) -> Any:
        """Decode a query string, and the parameters that the path contains.

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
                raise Refused("invalid", f"`{name}` is already given in the path", field=name)
            values[name] = value
        try:
            if REQUEST_ID in values and self._takes_id:
                return split(msgspec.convert(values, self._type_with_id, strict=False), self.type, self._name)
            return msgspec.convert(values, self.type, strict=False)
        except msgspec.ValidationError as error:
            raise invalid(str(error)) from None


def _attach(request: Any, parts: Parts) -> None:
    """Give the request the bytes that are attached."""
    fields = request.request if type(request) is Identified else request
    if not hasattr(fields, "attach"):
        raise Refused("invalid", "this call takes no values that are bytes, so nothing can be attached to it")
    try:
        fields.attach(parts)
    except ValueError as error:
        raise Refused("invalid", str(error), field="value") from None
    if parts.left:
        raise Refused("invalid", f"{parts.left} bytes are attached that no `value` counts", field="value")


# Cached: several operations share a Struct, and nodes of tests are forked from a process that has asked for all of them.
_schema_of = cache(lambda answer: msgspec.json.schema_components([answer])[1])


@cache
def _list_fields(request: type[msgspec.Struct]) -> frozenset[str]:
    info = msgspec.inspect.type_info(request)
    assert isinstance(info, msgspec.inspect.StructType)
    return frozenset(field.encode_name for field in info.fields if _is_list(field.type))


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
_OF_MSGSPEC = ("Expected ", "Invalid ", "Object ", "Input ", "JSON ", "Integer ", "Number ")


def invalid(text: str) -> Refused:
    """Turn the message of msgspec or of a `__post_init__` into a refusal that names the field."""
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


class AnswerEncoder:
    """Encodes the results of one operation.

    A handler returns the operation's answer Struct, or the `Result` of a state machine, which is converted to the Struct. If a field is
    not declared, or a declared one is missing, the answer is `internal`, and the log names the field.

    Args:
        name: name of the operation.
    """

    def __init__(self, name: str, answer: type[Answer]) -> None:
        assert issubclass(answer, Answer)
        self.name = name
        self.answer = answer
        #: Without Structs inside, the constructor checks all names. It is faster than `convert`, which checks types as well.
        self._is_flat = len(_schema_of(answer)) == 1

    def encode(self, result: Result | Answer, attaches: bool = False) -> EncodedAnswer:
        """The answer to a call that was carried out, or refused by a state machine.

        Args:
            attaches: attach values that are bytes; otherwise they are Base64.
        """
        if isinstance(result, Result):
            if result.code:
                extra = {**result.body, "index": result.index} if result.index else dict(result.body)
                return _problem(result.code, extra.pop("detail", ""), extra)
            try:
                answer = self._build(result.body, result.index)
            except (TypeError, msgspec.ValidationError) as error:
                return self._undeclared(str(error))
        elif type(result) is self.answer:
            answer = result
        else:
            return self._undeclared(f"expected {self.answer.__name__}, got {type(result).__name__}")
        if attaches:
            body, parts = attached.encode(answer)
            if parts:
                return EncodedAnswer(200, body, ATTACHED_HEADERS, parts=tuple(parts))
        return EncodedAnswer(200, _encode(answer), JSON_HEADERS)

    def _build(self, body: dict[str, Any], index: int) -> Answer:
        if self._is_flat:
            return self.answer(**body, index=index) if index else self.answer(**body)  # type: ignore[call-arg]
        return msgspec.convert({**body, "index": index} if index else body, self.answer)

    def _undeclared(self, error: str) -> EncodedAnswer:
        log.error("api.undeclared_answer", operation=self.name, error=error)
        return encode_refusal(Refused("internal", INTERNAL))


class EventEncoder:
    """Encodes the events of one subscription.

    An event is the subscription's event Struct, or a Struct with a subset of its fields.
    """

    def __init__(self, subscription: Subscription) -> None:
        self.name = subscription.name
        self._fields = frozenset(subscription.event.__struct_encode_fields__)
        self._known: set[type[msgspec.Struct]] = {subscription.event}

    def encode(self, event: msgspec.Struct, attaches: bool = False) -> tuple[bytes, list[memoryview]]:
        """The event, and what is attached to it.

        Raises:
            Refused: `internal`; the log names the fields that are not declared.
        """
        if type(event) not in self._known:
            undeclared = sorted(frozenset(event.__struct_encode_fields__) - self._fields)
            if undeclared:
                log.error("api.undeclared_event", subscription=self.name, fields=undeclared)
                raise Refused("internal", INTERNAL)
            self._known.add(type(event))
        return attached.encode(event) if attaches else (_encode(event), [])


def encode_refusal(refusal: Refused, headers: tuple[tuple[bytes, bytes], ...] = ()) -> EncodedAnswer:
    """The answer to a call that was refused before or while it was carried out."""
    return _problem(refusal.code, refusal.detail, refusal.extra, headers)


def _problem(code: str, detail: str, extra: dict[str, Any], headers: tuple[tuple[bytes, bytes], ...] = ()) -> EncodedAnswer:
    problem = PROBLEMS[code]
    if problem.retry_after_s is not None:
        headers = (*headers, (b"retry-after", str(problem.retry_after_s).encode()))
    if problem.status == 401:
        headers = (*headers, (b"www-authenticate", b"Bearer"))
    body = _encode(problem_document(code, detail, extra))
    return EncodedAnswer(problem.status, body, (*PROBLEM_HEADERS, *headers))
