"""The real API as a whole: what the four subsystems offer fits together."""

from __future__ import annotations

import json
from urllib.parse import urlencode

import msgspec
import pytest
from django.test import Client
from openapi_spec_validator import OpenAPIV31SpecValidator

from dss_api.codec import RequestDecoder
from dss_api.routes import Routes
from dss_project.registry import operations

# As api.md promises it to clients that exist already.
PROMISED = [
    "GET /health",
    "GET /raft/status",
    "GET /raft/leader",
    "POST /raft/start_election",
    "POST /lock/acquire",
    "POST /lock/release",
    "POST /queue/publish",
    "POST /queue/consume",
    "POST /queue/ack",
    "POST /cache/put",
    "POST /cache/get",
    "GET /cache/get",
]


def test_what_is_promised_is_there() -> None:
    offered = {f"{operation.method} {operation.path}" for operation in operations()}
    assert set(PROMISED) <= offered
    assert all(Routes(operations()).find(operation.path)[0] for operation in operations())


def test_an_example_is_a_request_that_decodes() -> None:
    for operation in operations():
        decoder = RequestDecoder(operation)
        if decoder.reads_query:
            decoder.query(urlencode(operation.example, doseq=True).encode())
        else:
            decoder.body(msgspec.json.encode(operation.example))


def test_the_openapi_document_is_valid_and_without_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    response = Client().get("/api/schema")
    document = json.loads(response.content)
    OpenAPIV31SpecValidator(document).validate()
    described = sum(len(methods) for methods in document["paths"].values())
    assert described == len(operations())
    assert "arning" not in capfd.readouterr().err
