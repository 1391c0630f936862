"""A Celery app whose tasks leave a line each in a file."""

from __future__ import annotations

import json
import os
import time

from celery import Celery
from kombu.transport import SQS

# In kombu 5.7, a receive that fails has an empty list as its answer. This method expects an object: after its error, the queue is
# not polled again, and the worker is idle until it is restarted.
_on_messages_ready = SQS.Channel._on_messages_ready
SQS.Channel._on_messages_ready = lambda self, url, name, answer: _on_messages_ready(self, url, name, answer or {})

app = Celery("counting", broker=os.environ["COUNTING_BROKER"], backend=os.environ["COUNTING_BACKEND"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    broker_connection_retry_on_startup=True,
    broker_transport_options={"visibility_timeout": 5, **json.loads(os.environ["COUNTING_OPTIONS"])},
    result_expires=600,
)


@app.task(ignore_result=True)
def count(number: int) -> None:
    with open(os.environ["COUNTING_FILE"], "a") as file:
        file.write(f"{number}\n")


@app.task
def add(*numbers: int) -> int:
    return sum(numbers)


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(ignore_result=True)
def slow(number: int) -> None:
    time.sleep(0.05)
    count(number)
