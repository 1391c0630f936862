"""Fits moto's tests in server mode to a node: what moto's server offers beside SQS is done here.

- Its tests begin with no queues.
- They expect moto's account. All accounts are the same for a node, which answers with the account 000000000000.
- Some of them write the name of the attribute VisibilityTimeout with a space behind it, which moto does not notice.
"""

from __future__ import annotations

import os
from typing import Any

import boto3
import pytest
import requests
from botocore.client import BaseClient
from botocore.httpsession import URLLib3Session

_URL = os.environ["TEST_SERVER_MODE_ENDPOINT"]
_ACCOUNT = b"123456789012"
_post = requests.post
_send = URLLib3Session.send
_make_call = BaseClient._make_api_call
_client = boto3.client


def _reset() -> None:
    """Delete all queues: moto's tests expect to begin with none."""
    sqs = _client("sqs", endpoint_url=_URL, region_name="us-east-1")
    for page in sqs.get_paginator("list_queues").paginate(PaginationConfig={"PageSize": 1000}):
        for url in page.get("QueueUrls", []):
            sqs.delete_queue(QueueUrl=url)


class _Done:
    status_code = 200


def _post_or_reset(url: str, *given: Any, **fields: Any) -> Any:
    if url.endswith("/moto-api/reset"):
        _reset()
        return _Done()
    return _post(url, *given, **fields)


class _Sts:
    def get_caller_identity(self) -> dict[str, str]:
        return {"Account": _ACCOUNT.decode()}


def _client_of_node(service: str, *given: Any, **fields: Any) -> Any:
    return _Sts() if service == "sts" else _client(service, *given, **fields)


def _send_to_node(session: URLLib3Session, request: Any) -> Any:
    response = _send(session, request)
    response._content = response.content.replace(b"000000000000", _ACCOUNT)
    return response


def _make_call_of_node(client: BaseClient, name: str, fields: dict[str, Any]) -> Any:
    if name == "CreateQueue" and "Attributes" in fields:
        fields = {**fields, "Attributes": {key.strip(): text for key, text in fields["Attributes"].items()}}
    return _make_call(client, name, fields)


@pytest.fixture(scope="session", autouse=True)
def _services_of_moto() -> Any:
    # moto wraps this client in turn.
    requests.post, boto3.client = _post_or_reset, _client_of_node
    URLLib3Session.send, BaseClient._make_api_call = _send_to_node, _make_call_of_node
    yield
    requests.post, boto3.client = _post, _client
    URLLib3Session.send, BaseClient._make_api_call = _send, _make_call
