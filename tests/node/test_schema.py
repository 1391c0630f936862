"""The OpenAPI document is valid and complete, and describes what the entry points do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

pytestmark = pytest.mark.django_db


@pytest.fixture
def document(entry_points: Any, capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    reply = entry_points.call_drf("GET", "/api/schema")
    assert reply.status == 200
    assert "Warning" not in capfd.readouterr().err
    document: dict[str, Any] = json.loads(reply.body)
    return document


def test_it_is_valid(document: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(document).validate()
    assert document["openapi"].startswith("3.1")


def test_every_operation_is_in_it(document: dict[str, Any], demo_operations: Any) -> None:
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(operation.method, operation.path) for operation in demo_operations}


def test_a_body_with_its_limits_and_example(document: dict[str, Any]) -> None:
    media = document["paths"]["/demo/put"]["post"]["requestBody"]["content"]["application/json"]
    assert media["example"] == {"key": "colour", "value": {"is": "blue"}}
    put = document["components"]["schemas"][media["schema"]["$ref"].rpartition("/")[2]]
    assert put["required"] == ["key", "value"]
    assert put["properties"]["ttl_ms"] == {"type": "integer", "minimum": 0, "maximum": 1000, "default": 100}
    assert "op" not in put["properties"], "the tag of a command in the log is internal"


def test_parameters_of_query_and_path(document: dict[str, Any]) -> None:
    parameters = {one["name"]: one for one in document["paths"]["/demo/get"]["get"]["parameters"]}
    assert (parameters["key"]["in"], parameters["key"]["required"]) == ("query", True)
    assert parameters["limit"]["required"] is False
    (parameter,) = document["paths"]["/demo/things/{id}"]["delete"]["parameters"]
    assert (parameter["in"], parameter["required"]) == ("path", True)


def refusal(document: dict[str, Any], status: str) -> dict[str, Any]:
    """Of `POST /demo/refuse`."""
    shared = document["paths"]["/demo/refuse"]["post"]["responses"][status]["$ref"]
    found: dict[str, Any] = document["components"]["responses"][shared.removeprefix("#/components/responses/")]
    return found


def test_problems_by_status(document: dict[str, Any]) -> None:
    responses = document["paths"]["/demo/refuse"]["post"]["responses"]
    assert {"200", "400", "401", "413", "415", "423", "429", "503"} <= responses.keys()
    assert "`held`" in refusal(document, "423")["description"]
    assert "401" not in document["paths"]["/open"]["get"]["responses"]


def test_an_answer_with_ok_and_index(document: dict[str, Any]) -> None:
    def answer_of(path: str, method: str) -> Any:
        schema = document["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
        return document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]

    put = answer_of("/demo/put", "post")
    assert put["required"] == ["ok", "key", "value", "ttl_ms", "force", "index"]
    assert put["properties"]["ok"]["const"] is True
    assert "additionalProperties" not in put, "later versions may add fields"
    assert "index" not in answer_of("/demo/get", "get")["properties"]


def test_members_of_a_problem(document: dict[str, Any]) -> None:
    both, members = refusal(document, "423")["content"]["application/problem+json"]["schema"]["allOf"]
    assert both == {"$ref": "#/components/schemas/Problem"}
    assert {"holders", "position"} <= document["components"]["schemas"][members["$ref"].rpartition("/")[2]]["properties"].keys()


def test_a_response_is_described_once(document: dict[str, Any]) -> None:
    """The page of the API docs resolves the whole document, so its time grows with the size."""
    shared = document["components"]["responses"]
    used = {
        response["$ref"].removeprefix("#/components/responses/")
        for methods in document["paths"].values()
        for operation in methods.values()
        for status, response in operation["responses"].items()
        if status != "200"
    }
    assert used == set(shared)
    assert len({json.dumps(response) for response in shared.values()}) == len(shared)
