"""The real API as a whole: the operations of the four subsystems fit together."""

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

# What docs/reference/api.md promises to existing clients.
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


def test_every_promised_call_exists() -> None:
    offered = {f"{operation.method} {operation.path}" for operation in operations()}
    assert set(PROMISED) <= offered
    assert all(Routes(operations()).find(operation.path)[0] for operation in operations())


def test_every_example_can_be_decoded() -> None:
    for operation in operations():
        decoder = RequestDecoder(operation)
        if decoder.reads_query:
            decoder.query(urlencode(operation.example, doseq=True).encode())
        else:
            decoder.body(msgspec.json.encode(operation.example))


def test_no_answer_has_a_field_that_a_websocket_frame_has() -> None:
    """A frame is the answer's document with the call's `id` and the status. A second member with the name would hide it."""
    for operation in operations():
        fields = {field.encode_name for field in msgspec.structs.fields(operation.answer)}
        assert not fields & {"id", "status", "event"}, operation.name


def test_the_openapi_document_is_valid_and_without_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    response = Client().get("/api/schema")
    document = json.loads(response.content)
    OpenAPIV31SpecValidator(document).validate()
    described = sum(len(methods) for methods in document["paths"].values())
    assert described == len(operations())
    assert "arning" not in capfd.readouterr().err
