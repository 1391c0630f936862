"""Fits moto's tests in server mode to a node: what moto's server offers beside SQS is done here."""

from __future__ import annotations

import os
from typing import Any

import boto3
import pytest
import requests

_URL = os.environ["TEST_SERVER_MODE_ENDPOINT"]
_post = requests.post
#: before moto replaces it
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


@pytest.fixture(scope="session", autouse=True)
def _resets_of_moto() -> Any:
    requests.post = _post_or_reset
    yield
    requests.post = _post
