"""The OpenAPI document, from the same Structs that decode the requests."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from drf_spectacular.openapi import AutoSchema

from dss_project.api.operation import Operation
from dss_project.api.problems import PROBLEMS

REFERENCE = "#/components/schemas/"

_ALWAYS = ("invalid", "stopping")
_WITH_BODY = ("too_large", "unsupported_media_type")
_GUARDED = ("unauthenticated", "forbidden", "over_limit", "no_leader", "no_quorum", "unknown_outcome")

_PROBLEM: dict[str, Any] = {
    "title": "Problem",
    "description": "RFC 9457. Calls may add members of their own.",
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "one sentence for a person; names the field when one is at fault"},
        "code": {"type": "string", "enum": sorted(PROBLEMS), "description": "stable: what programs decide by"},
        "ok": {"const": False},
        "field": {"type": "string", "description": "what is at fault, when one field is"},
    },
    "required": ["type", "title", "status", "detail", "code", "ok"],
}


class OperationSchema(AutoSchema):
    """Describes an `OperationView`; other views are DRF's and Django's own and stay out of the document."""

    def get_operation(self, path: str, path_regex: str, path_prefix: str, method: str, registry: Any) -> dict[str, Any] | None:
        operation = getattr(self.view, "operations", {}).get(method)
        return None if operation is None else describe(operation)


def describe(operation: Operation) -> dict[str, Any]:
    """The operation object of OpenAPI."""
    described: dict[str, Any] = {
        "operationId": operation.name.replace(".", "_"),
        "summary": operation.summary,
        "description": operation.description or operation.summary,
        "tags": [operation.tag],
        # how a WebSocket frame names it (socket.py)
        "x-op": operation.name,
        "responses": _responses(operation),
    }
    if operation.guarded:
        # Without a configured token calls are open, so both are possible.
        described["security"] = [{"bearer": []}, {}]
    if operation.method in ("GET", "DELETE"):
        if parameters := _parameters(operation):
            described["parameters"] = parameters
    else:
        schema = {"$ref": REFERENCE + _names()[operation.request]}
        media: dict[str, Any] = {"schema": schema}
        if operation.example:
            media["example"] = operation.example
        described["requestBody"] = {
            "content": {"application/json": media},
            "required": bool(_component(operation.request).get("required")),
        }
    return described


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    component = _component(operation.request)
    required = component.get("required", ())
    parameters = []
    for name, schema in component.get("properties", {}).items():
        in_path = f"{{{name}}}" in operation.path
        parameter = {
            "name": name,
            "in": "path" if in_path else "query",
            "required": in_path or name in required,
            "schema": schema,
        }
        if name in operation.example:
            parameter["example"] = operation.example[name]
        parameters.append(parameter)
    return parameters


def _responses(operation: Operation) -> dict[str, Any]:
    answer = _component(operation.answer)
    properties = {"ok": {"const": True}, **answer.get("properties", {})}
    if operation.method != "GET":
        properties["index"] = {"type": "integer", "description": "the Raft index at which the call took effect"}
    schema = {"type": "object", "properties": properties, "required": ["ok", *answer.get("required", ())]}
    responses: dict[str, Any] = {"200": {"description": "Done", "content": {"application/json": {"schema": schema}}}}
    codes = [*_ALWAYS, *operation.problems]
    codes += _WITH_BODY if operation.method in ("POST", "PUT") else ()
    codes += _GUARDED if operation.guarded else ()
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys(codes):
        by_status.setdefault(PROBLEMS[code].status, []).append(code)
    for status in sorted(by_status):
        described = "; ".join(f"`{code}`: {PROBLEMS[code].title}" for code in by_status[status])
        content = {"application/problem+json": {"schema": {"$ref": f"{REFERENCE}Problem"}}}
        responses[str(status)] = {"description": described, "content": content}
    return responses


@cache
def schemas() -> tuple[dict[Any, str], dict[str, Any]]:
    """Component names by Struct, and the components."""
    from dss_project.api.registry import operations

    types = list(dict.fromkeys(one for operation in operations() for one in (operation.request, operation.answer)))
    references, components = msgspec.json.schema_components(types, ref_template=REFERENCE + "{name}")
    names = {one: reference["$ref"].removeprefix(REFERENCE) for one, reference in zip(types, references, strict=True)}
    for one, name in names.items():
        tag_field = one.__struct_config__.tag_field
        if tag_field:
            # How the log tells commands apart is not the client's business.
            components[name]["properties"].pop(tag_field, None)
            components[name]["required"] = [field for field in components[name].get("required", ()) if field != tag_field]
    return names, components


def _names() -> dict[Any, str]:
    return schemas()[0]


def _component(struct: type[msgspec.Struct]) -> dict[str, Any]:
    names, components = schemas()
    component: dict[str, Any] = components[names[struct]]
    return component


def add_components(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """drf-spectacular's hook: what the operations refer to."""
    components = result.setdefault("components", {})
    components["schemas"] = {**schemas()[1], "Problem": _PROBLEM}
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer", "description": "The node's DSS_API_TOKEN."}}
    return result
