"""The OpenAPI document, from the Structs that decode the requests and make up the answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from dss_api.attached import MEDIA_TYPE
from dss_api.operation import Operation
from dss_api.problems import PROBLEMS

REFERENCE = "#/components/schemas/"

_ALWAYS = ("invalid", "stopping")
_WITH_BODY = ("too_large", "unsupported_media_type")
_WITH_REQUEST_ID = ("request_expired", "request_id_reused", "not_supported_yet")
_GUARDED = ("unauthenticated", "forbidden", "over_limit", "no_leader", "no_quorum", "unknown_outcome", "not_ready", "skipped")

_PROBLEM: dict[str, Any] = {
    "title": "Problem",
    "description": "RFC 9457",
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "one sentence for people; names the field that is at fault, if any"},
        "code": {"type": "string", "enum": sorted(PROBLEMS), "description": "stable: for decisions of programs"},
        "ok": {"const": False},
        "index": {
            "type": "integer",
            "description": "the Raft index at which the call was refused, if a state machine refused it",
        },
    },
    "required": ["type", "title", "status", "detail", "code", "ok"],
}


#: a message with bytes attached to its JSON
_ATTACHED = {MEDIA_TYPE.decode(): {"schema": {"type": "string", "format": "binary", "description": "see dss_api/attached.py"}}}


class OpenApi:
    """Describes operations and the Structs that they refer to.

    Args:
        operations: every operation of the document.
    """

    def __init__(self, operations: Iterable[Operation]) -> None:
        operations = list(operations)
        requests = dict.fromkeys(operation.request_with_id for operation in operations)
        answers = dict.fromkeys(operation.answer for operation in operations)
        members = dict.fromkeys(problem.members for problem in PROBLEMS.values() if problem.members is not None)
        types = [*requests, *answers, *members]
        references, components = msgspec.json.schema_components(types, ref_template=REFERENCE + "{name}")
        self._names = {one: reference["$ref"].removeprefix(REFERENCE) for one, reference in zip(types, references, strict=True)}
        self._components = components
        #: name -> a response that operations share: most of them are refused in the same ways
        self._refusals: dict[str, Any] = {}
        _, of_requests = msgspec.json.schema_components(list(requests))
        for name in components.keys() - of_requests.keys():
            # Later versions may add fields to answers: clients must ignore unknown fields.
            components[name].pop("additionalProperties", None)
        for answer in answers:
            components[self._names[answer]].setdefault("required", []).insert(0, "ok")
        for one in requests:
            tag_field = one.__struct_config__.tag_field
            if tag_field:
                # The tag identifies commands in the log. Clients do not send it.
                component = components[self._names[one]]
                component["properties"].pop(tag_field, None)
                component["required"] = [field for field in component.get("required", ()) if field != tag_field]

    def components(self) -> dict[str, Any]:
        """The `components` object of the document. Call it after all operations have been described."""
        return {
            "schemas": {**self._components, "Problem": _PROBLEM},
            "responses": dict(sorted(self._refusals.items())),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "A token of the cluster, or DSS_API_TOKEN."}
            },
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
            # the right that a token needs for it (dss_api/rights.py)
            "x-right": operation.needs.text,
            "responses": self._responses(operation),
        }
        if operation.guarded:
            # Without a configured token calls are open, so both are possible.
            described["security"] = [{"bearer": []}, {}]
        if operation.method in ("GET", "DELETE"):
            if parameters := self._parameters(operation):
                described["parameters"] = parameters
        else:
            schema = {"$ref": REFERENCE + self._names[operation.request_with_id]}
            media: dict[str, Any] = {"schema": schema}
            if operation.example:
                media["example"] = operation.example
            content: dict[str, Any] = {"application/json": media}
            if hasattr(operation.request, "attach"):
                content |= _ATTACHED
            described["requestBody"] = {
                "content": content,
                "required": bool(self._component(operation.request_with_id).get("required")),
            }
        return described

    def _parameters(self, operation: Operation) -> list[dict[str, Any]]:
        component = self._component(operation.request_with_id)
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
        schema = {"$ref": REFERENCE + self._names[operation.answer]}
        responses: dict[str, Any] = {"200": {"description": "Done", "content": {"application/json": {"schema": schema}}}}
        if operation.answers_bytes:
            responses["200"]["content"] |= _ATTACHED
        codes = [*_ALWAYS, *operation.problems]
        codes += _WITH_BODY if operation.method in ("POST", "PUT") else ()
        codes += _GUARDED if operation.guarded else ()
        codes += _WITH_REQUEST_ID if operation.takes_request_id else ()
        by_status: dict[int, list[str]] = {}
        for code in dict.fromkeys(codes):
            by_status.setdefault(PROBLEMS[code].status, []).append(code)
        for status in sorted(by_status):
            described = "; ".join(f"`{code}`: {PROBLEMS[code].title}" for code in by_status[status])
            schemas: list[dict[str, Any]] = []
            for code in by_status[status]:
                if (schema := self._problem(code)) not in schemas:
                    schemas.append(schema)
            schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
            name = ".".join([str(status), *by_status[status]])
            self._refusals[name] = {"description": described, "content": {"application/problem+json": {"schema": schema}}}
            responses[str(status)] = {"$ref": f"#/components/responses/{name}"}
        return responses

    def _problem(self, code: str) -> dict[str, Any]:
        """The schema of a problem document with this code."""
        members = PROBLEMS[code].members
        problem = {"$ref": f"{REFERENCE}Problem"}
        return problem if members is None else {"allOf": [problem, {"$ref": REFERENCE + self._names[members]}]}

    def _component(self, struct: type[msgspec.Struct]) -> dict[str, Any]:
        component: dict[str, Any] = self._components[self._names[struct]]
        return component
