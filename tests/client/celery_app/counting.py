"""A Celery app whose tasks leave a line each in a file."""

from __future__ import annotations

import os
import time

from celery import Celery

app = Celery("counting", broker=os.environ["COUNTING_BROKER"], backend=os.environ["COUNTING_BACKEND"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    broker_connection_retry_on_startup=True,
    broker_transport_options={"visibility_timeout": 5, "timeout": 60},
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
