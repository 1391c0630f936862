"""The OpenAPI document, from the same Structs that decode the requests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from dss_api.operation import Operation
from dss_api.problems import PROBLEMS

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


class OpenApi:
    """Describes operations and the Structs that they refer to.

    Args:
        operations: every operation of the document.
    """

    def __init__(self, operations: Iterable[Operation]) -> None:
        types = list(dict.fromkeys(one for operation in operations for one in (operation.request, operation.answer)))
        references, components = msgspec.json.schema_components(types, ref_template=REFERENCE + "{name}")
        self._names = {one: reference["$ref"].removeprefix(REFERENCE) for one, reference in zip(types, references, strict=True)}
        self._components = components
        for one, name in self._names.items():
            tag_field = one.__struct_config__.tag_field
            if tag_field:
                # The tag tells commands apart in the log. Clients do not send it.
                components[name]["properties"].pop(tag_field, None)
                components[name]["required"] = [field for field in components[name].get("required", ()) if field != tag_field]

    def components(self) -> dict[str, Any]:
        """The `components` object of the document."""
        return {
            "schemas": {**self._components, "Problem": _PROBLEM},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "description": "The node's DSS_API_TOKEN."}},
        }

    def describe(self, operation: Operation) -> dict[str, Any]:
        """The operation object of OpenAPI."""
        described: dict[str, Any] = {
            "operationId": operation.name.replace(".", "_"),
            "summary": operation.summary,
            "description": operation.description or operation.summary,
            "tags": [operation.tag],
            # its name in a WebSocket frame (websocket.py)
            "x-op": operation.name,
            "responses": self._responses(operation),
        }
        if operation.guarded:
            # Without a configured token calls are open, so both are possible.
            described["security"] = [{"bearer": []}, {}]
        if operation.method in ("GET", "DELETE"):
            if parameters := self._parameters(operation):
                described["parameters"] = parameters
        else:
            schema = {"$ref": REFERENCE + self._names[operation.request]}
            media: dict[str, Any] = {"schema": schema}
            if operation.example:
                media["example"] = operation.example
            described["requestBody"] = {
                "content": {"application/json": media},
                "required": bool(self._component(operation.request).get("required")),
            }
        return described

    def _parameters(self, operation: Operation) -> list[dict[str, Any]]:
        component = self._component(operation.request)
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

    def _responses(self, operation: Operation) -> dict[str, Any]:
        answer = self._component(operation.answer)
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

    def _component(self, struct: type[msgspec.Struct]) -> dict[str, Any]:
        component: dict[str, Any] = self._components[self._names[struct]]
        return component
