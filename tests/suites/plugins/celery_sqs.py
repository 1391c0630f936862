"""Fits Celery's tests to the SQS endpoint as broker: the options of Kombu's transport, and Redis as the backend of results."""

from __future__ import annotations

import os

import celery_redis  # noqa: F401  starts the server
from celery.app.defaults import DEFAULTS

os.environ["TEST_BACKEND"] = f"redis://{os.environ['REDIS_HOST']}:{os.environ['REDIS_PORT']}"
DEFAULTS["broker_transport_options"] = {
    "is_secure": False,
    "region": "us-east-1",
    "supports_fanout": True,
    "wait_time_seconds": 1,
    "polling_interval": 0.1,
}
