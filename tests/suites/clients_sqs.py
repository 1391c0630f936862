"""Programs that use SQS, against the SQS endpoint at `SQS_URL`. A client that is not installed is skipped."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import uuid
from typing import Any

import pytest

URL = os.environ["SQS_URL"]
OPTIONS = {
    "endpoint_url": URL,
    "region_name": "us-east-1",
    "aws_access_key_id": "any",
    "aws_secret_access_key": "any",
}
PATIENCE_S = 60


def new_name() -> str:
    return f"q-{uuid.uuid4().hex[:12]}"


def aws(*arguments: str) -> Any:
    """The answer to a command of the AWS CLI."""
    command = [sys.executable, "-m", "awscli", "--endpoint-url", URL, "--output", "json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    return json.loads(done.stdout) if done.stdout.strip() else {}


def test_aws_cli() -> None:
    pytest.importorskip("awscli")
    name = new_name()
    url = aws("sqs", "create-queue", "--queue-name", name, "--attributes", "VisibilityTimeout=60")["QueueUrl"]
    topic = aws("sns", "create-topic", "--name", name)["TopicArn"]
    arn = aws("sqs", "get-queue-attributes", "--queue-url", url, "--attribute-names", "QueueArn")["Attributes"]["QueueArn"]
    raw = "RawMessageDelivery=true"
    aws("sns", "subscribe", "--topic-arn", topic, "--protocol", "sqs", "--notification-endpoint", arn, "--attributes", raw)
    aws("sqs", "send-message", "--queue-url", url, "--message-body", "first")
    aws("sns", "publish", "--topic-arn", topic, "--message", "second")
    received = aws("sqs", "receive-message", "--queue-url", url, "--max-number-of-messages", "10")["Messages"]
    assert [one["Body"] for one in received] == ["first", "second"]
    for one in received:
        aws("sqs", "delete-message", "--queue-url", url, "--receipt-handle", one["ReceiptHandle"])
    aws("sqs", "delete-queue", "--queue-url", url)


def test_aioboto3() -> None:
    aioboto3 = pytest.importorskip("aioboto3")

    async def use() -> None:
        async with aioboto3.Session().client("sqs", **OPTIONS) as sqs:
            url = (await sqs.create_queue(QueueName=new_name()))["QueueUrl"]
            waiting = asyncio.create_task(sqs.receive_message(QueueUrl=url, WaitTimeSeconds=20))
            await sqs.send_message(QueueUrl=url, MessageBody="m")
            (message,) = (await waiting)["Messages"]
            assert message["Body"] == "m"
            await sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
            await sqs.delete_queue(QueueUrl=url)

    asyncio.run(use())


def test_dramatiq_sqs() -> None:
    dramatiq = pytest.importorskip("dramatiq")
    dramatiq_sqs = pytest.importorskip("dramatiq_sqs")
    broker = dramatiq_sqs.SQSBroker(namespace=new_name(), **OPTIONS)
    dramatiq.set_broker(broker)
    seen: set[int] = set()
    all_seen = threading.Event()

    def remember(number: int) -> None:
        seen.add(number)
        if len(seen) == 50:
            all_seen.set()

    actor = dramatiq.actor(remember, broker=broker)
    worker = dramatiq.Worker(broker, worker_timeout=100)
    worker.start()
    try:
        for number in range(50):
            actor.send(number)
        assert all_seen.wait(PATIENCE_S), len(seen)
    finally:
        worker.stop()


def test_celery() -> None:
    celery = pytest.importorskip("celery")
    from celery.contrib.testing.worker import start_worker

    app = celery.Celery("clients", broker=URL.replace("http://", "sqs://any:any@"))
    queue = new_name()
    app.conf.update(
        task_default_queue=queue,
        broker_transport_options={"is_secure": False, "region": "us-east-1", "wait_time_seconds": 1, "polling_interval": 0.1},
    )
    seen: set[int] = set()
    all_seen = threading.Event()

    @app.task
    def remember(number: int) -> None:
        seen.add(number)
        if len(seen) == 50:
            all_seen.set()

    with start_worker(app, pool="threads", concurrency=2, perform_ping_check=False, shutdown_timeout=PATIENCE_S):
        for number in range(50):
            remember.delay(number)
        assert all_seen.wait(PATIENCE_S), len(seen)
