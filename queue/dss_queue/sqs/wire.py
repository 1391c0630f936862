"""Answers and refusals as Amazon SQS sends them, in JSON or in the older query protocol."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from dss_api.codec import EncodedAnswer
from dss_api.errors import Refused
from dss_queue.sqs import query
from dss_queue.sqs.dialect import SQS, Dialect
from dss_queue.sqs.errors import SqsError, of_refusal

JSON_1_0 = b"application/x-amz-json-1.0"
XML = b"text/xml"
#: __type -> the code of SNS
SNS_CODES = {
    "InvalidParameterValue": "InvalidParameter",
    "InvalidMessageContents": "InvalidParameter",
    "MissingParameter": "InvalidParameter",
    "QueueDoesNotExist": "NotFound",
    "AccessDenied": "AuthorizationError",
    "OverLimit": "Throttled",
    "RequestThrottled": "Throttled",
}


def encode_error(error: SqsError) -> EncodedAnswer:
    """The whole answer."""
    if error.dialect is not None:
        request_id = str(uuid.uuid4())
        code = error.query_code if error.dialect is SQS else SNS_CODES.get(error.code, error.code)
        xml = query.error_of(code, error.detail, error.status < 500, request_id, error.dialect)
        return EncodedAnswer(error.status, xml, _headers(XML, request_id))
    body = msgspec.json.encode({"__type": f"com.amazonaws.sqs#{error.code}", "message": error.detail})
    fault = "Sender" if error.status < 500 else "Receiver"
    return EncodedAnswer(error.status, body, (*_headers(), (b"x-amzn-query-error", f"{error.query_code};{fault}".encode())))


def encode_refusal(refusal: Refused) -> EncodedAnswer:
    """The answer for a request that was refused before it became a call."""
    return encode_error(of_refusal(refusal))


def encode_answer(body: dict[str, Any], action: str, dialect: Dialect | None) -> EncodedAnswer:
    """The answer of a call that succeeded. `dialect`: of the query protocol; None: JSON."""
    if dialect is None:
        return EncodedAnswer(200, msgspec.json.encode(body), _headers())
    request_id = str(uuid.uuid4())
    xml = query.answer_of(action, msgspec.to_builtins(body), request_id, dialect)
    return EncodedAnswer(200, xml, _headers(XML, request_id))


def _headers(content_type: bytes = JSON_1_0, request_id: str = "") -> tuple[tuple[bytes, bytes], ...]:
    return (b"content-type", content_type), (b"x-amzn-requestid", (request_id or str(uuid.uuid4())).encode())
