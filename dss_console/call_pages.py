"""The browsable API as pages: an index of all calls by subsystem, and a page for each call with its text, its fields and a form.

A form is filled with an example, and one click sends it. It is sent to the page of the call, as an ordinary form: it needs no script. The
examples use names that begin with `example/`, so that they cannot overwrite anything. A call that acts on the whole cluster has a box that
must be ticked first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from http import HTTPStatus
from json import dumps
from time import perf_counter
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import msgspec
from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.template.loader import render_to_string
from django.urls import URLPattern, path
from django.utils.safestring import mark_safe
from django.views.decorators.http import require_http_methods, require_safe

from dss_api import guard as guards
from dss_api import running
from dss_api.caller import ANYONE, Caller
from dss_api.codec import EncodedAnswer, encode_refusal
from dss_api.errors import Refused
from dss_api.http_limits import HttpLimits
from dss_api.operation import Operation
from dss_api.routes import Headers, Route, require_possible, route_of, split_path
from dss_console.live_pages import head_view
from dss_console.page_rights import caller_of_request, may_read, readers_only

#: what the names in examples begin with, as JSON
EXAMPLES = ('"example/', '"example-')
REPEATABLE = (
    "With the field `request_id` (see `POST /request/session`), the call can be repeated at any node, and takes effect once."
)
#: the box of a call that acts on the whole cluster
CONFIRMED = "confirmed"


class Shown(NamedTuple):
    """An answer for the page."""

    status: int
    body: bytes
    #: that a program gets
    headers: Sequence[tuple[str, str]] = ()

    @property
    def reason(self) -> str:
        return HTTPStatus(self.status).phrase if self.status in set(HTTPStatus) else ""

    @property
    def is_good(self) -> bool:
        return self.status < 400

    @property
    def text(self) -> str:
        try:
            return msgspec.json.format(self.body, indent=2).decode()
        except (RecursionError, msgspec.DecodeError):
            return self.body.decode(errors="replace")


class Field(NamedTuple):
    """A field of a request."""

    name: str
    kind: str
    is_required: bool
    default: str


class Form(NamedTuple):
    """What the page shows of one call."""

    operation: Operation
    text: str
    fields: list[Field]
    content: str
    #: it changes something that all callers share: the box must be ticked
    needs_box: bool
    problem: str = ""

    @property
    def needs(self) -> str:
        return with_code(self.operation.needs.text)

    @property
    def summary(self) -> str:
        return self.operation.summary

    @property
    def target(self) -> str:
        return f"/api/call/{quote(self.operation.name)}"


def with_code(text: str) -> str:
    """Text in backticks becomes code."""
    return mark_safe(re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text)))


def acts_on_cluster(operation: Operation) -> bool:
    """Whether the example, sent as it is, could change something that others use."""
    shown = dumps(operation.example)
    return operation.is_audited and not any(mark in shown for mark in EXAMPLES)


def form_of(operation: Operation, content: str | None = None, problem: str = "") -> Form:
    """The form of a call: with the example, or with what was sent."""
    texts = [with_code(part) for part in (operation.description or operation.summary).split("\n\n")]
    if operation.takes_request_id:
        texts.append(with_code(REPEATABLE))
    return Form(
        operation,
        mark_safe("".join(f"<p>{text}</p>" for text in texts)),
        fields_of(operation),
        dumps(operation.example, indent=2, ensure_ascii=False) if content is None else content,
        acts_on_cluster(operation),
        problem,
    )


def fields_of(operation: Operation) -> list[Field]:
    """The fields that a client may send."""
    schemas, components = msgspec.json.schema_components([operation.request_with_id], ref_template="{name}")
    component = components.get(schemas[0].get("$ref", ""), schemas[0])
    tag = operation.request_with_id.__struct_config__.tag_field
    required = component.get("required", ())
    return [
        Field(
            name,
            _kind(schema),
            name in required,
            "" if name in required or schema.get("default") in (None, "") else dumps(schema["default"], ensure_ascii=False),
        )
        for name, schema in component.get("properties", {}).items()
        if name != tag
    ]


def _kind(schema: dict[str, Any]) -> str:
    """The type of a field in a few words."""
    if "enum" in schema:
        return " or ".join(str(one) for one in schema["enum"])
    if "anyOf" in schema:
        kinds = [_kind(one) for one in schema["anyOf"]]
        return " or ".join(dict.fromkeys(kind for kind in kinds if kind != "null"))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    kind = str(schema.get("type", "any JSON" if "$ref" not in schema else "object"))
    bounds = [f"{word} {schema[name]:,}" for name, word in (("minimum", "from"), ("maximum", "to")) if name in schema]
    return " ".join([kind, *bounds])


def page_of_calls(request: HttpRequest, operations: Sequence[Operation], answer: Shown | None, form: Form | None = None) -> str:
    """The page of the calls at one path."""
    forms = [form] if form is not None else [form_of(operation) for operation in operations]
    context = {
        "forms": forms,
        "answer": answer,
        "head": forms[0] if forms else None,
        "confirmed": CONFIRMED,
        **_frame(request),
    }
    return render_to_string("dss_console/call.html", context, request)


def _frame(request: HttpRequest) -> dict[str, Any]:
    """What the page around the calls needs: which node this is, and whether it can be trusted."""
    is_shown = may_read(request)
    return {
        "node_id": settings.NODE.node_id,
        "here": "api",
        "view": head_view() if is_shown else None,
        "watch": '{"head": true}' if is_shown else "",
        "needs_ticket": not guards.shared().is_open,
    }


def _request_of(route: Route, operation: Operation, content: str) -> Any:
    """What the form asks for, decoded as a request of the call.

    Raises:
        Refused: `invalid`, `too_large`.
    """
    body = content.encode()
    if len(body) > settings.NODE.body_bytes_max:
        raise HttpLimits(body_bytes_max=settings.NODE.body_bytes_max).too_large
    if not route.decoder.reads_query:
        return route.decoder.body(body)
    fields = _fields(body)
    _, parameter = split_path(operation.path)
    path_parameters = {parameter: _query_text(fields.pop(parameter, ""))} if parameter else {}
    return route.decoder.query(_query(fields).encode(), path_parameters)


def _fields(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body or b"{}", type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise Refused("invalid", f"the fields are not a JSON object: {error}") from None
    except RecursionError:
        raise Refused("invalid", "the fields are nested too deeply") from None


def _query_text(value: Any) -> str:
    return value if isinstance(value, str) else dumps(value, ensure_ascii=False)


def _query(fields: dict[str, Any]) -> str:
    return urlencode({name: _query_text(value) for name, value in fields.items()})


def _address(operation: Operation, content: str) -> str:
    """Where a call without a body is made."""
    fields = _fields(content.encode())
    prefix, parameter = split_path(operation.path)
    found = prefix + quote(_query_text(fields.pop(parameter, "")), safe="") if parameter else prefix
    return f"{found}?{_query(fields)}" if fields else found


def pages_of_calls(operations: Iterable[Operation]) -> list[URLPattern]:
    """The index, and the page of each call."""
    by_name = {operation.name: operation for operation in operations}
    by_tag: dict[str, list[Operation]] = {}
    for operation in by_name.values():
        by_tag.setdefault(operation.tag, []).append(operation)

    @require_safe
    @readers_only
    def index(request: HttpRequest) -> HttpResponse:
        groups = [(tag, [form_of(operation) for operation in found]) for tag, found in by_tag.items()]
        return render(request, "dss_console/calls.html", {"groups": groups, **_frame(request)})

    @require_http_methods(["GET", "HEAD", "POST"])
    @readers_only
    def call(request: HttpRequest, name: str) -> HttpResponse:
        operation = by_name.get(name)
        if operation is None:
            raise Http404
        if request.method != "POST":
            return _sent(request, operation, None, form_of(operation))
        content = request.POST.get("_content", "").strip()
        if operation.method == "GET":
            try:
                return HttpResponseRedirect(_address(operation, content))
            except Refused as refusal:
                return _sent(request, operation, encode_refusal(refusal), form_of(operation, content))
        if acts_on_cluster(operation) and CONFIRMED not in request.POST:
            return _sent(request, operation, None, form_of(operation, content, "Tick the box first: nothing was sent."))
        return _sent(request, operation, _made(request, operation, content), form_of(operation, content))

    return [path("api/", index, name="api-index"), path("api/call/<str:name>", call, name="api-call")]


def answer_of(route: Route, decoded: Any, caller: Caller, meta: Mapping[str, Any]) -> EncodedAnswer:
    """Make the call in the node's loop, and wait for it.

    Raises:
        Refused: by the node, or by the guard.
    """
    work = route.perform(running.node(), decoded, caller, "page", meta.get("REMOTE_ADDR") or "", _trace(meta))
    if caller.is_token:
        header = meta.get("HTTP_AUTHORIZATION", "").encode("latin-1")
        work = guards.shared().while_valid(header, work)
    return route.encoder.encode(running.await_in_loop(work))


def _trace(meta: Mapping[str, Any]) -> Headers:
    parent = meta.get("HTTP_TRACEPARENT", "")
    return ((b"traceparent", parent.encode("latin-1", "replace")),) if parent else ()


def _made(request: HttpRequest, operation: Operation, content: str) -> EncodedAnswer:
    """Make the call of a form."""
    route = route_of(operation)
    started = perf_counter()
    try:
        caller = caller_of_request(request) if route.guarded else ANYONE
        require_possible(route.needs, caller)
        answer = answer_of(route, _request_of(route, operation, content), caller, request.META)
    except Refused as refusal:
        answer = encode_refusal(refusal)
    route.observe(answer.status, perf_counter() - started)
    return answer


def _sent(request: HttpRequest, operation: Operation, answer: EncodedAnswer | None, form: Form) -> HttpResponse:
    shown = None
    if answer is not None:
        shown = Shown(answer.status, answer.body, [(name.decode().title(), value.decode()) for name, value in answer.headers])
    response = HttpResponse(page_of_calls(request, [operation], shown, form), status=answer.status if answer is not None else 200)
    response["Cache-Control"] = "no-store"
    # Django would log each refusal as a warning or an error.
    response._has_been_logged = True  # type: ignore[attr-defined]
    return response
