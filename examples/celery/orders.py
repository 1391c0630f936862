"""The tasks of the example. The worker and run.py import this module."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery, Task
from kombu import Queue

NODES = "dss://" + os.environ.get("DSS_URLS", "").replace("http://", "")

app = Celery("orders", broker=f"{NODES}/example-celery", backend=f"{NODES}/example-celery")
app.conf.update(
    # A task is done when it has ended, and not when it has begun: nothing is lost when a worker is killed.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=2,
    task_queues=[Queue("celery", max_priority=9)],
    task_default_queue="celery",
    task_track_started=True,
    broker_connection_retry_on_startup=True,
)


@app.task
def price_of(article: int) -> int:
    time.sleep(0.05)
    return article * 10


@app.task
def total(prices: list[int]) -> int:
    return sum(prices)


@app.task
def book(customer: str, step: int) -> tuple[str, int]:
    return customer, step


@app.task(bind=True, max_retries=5)
def pay(self: Task, amount: int) -> dict[str, Any]:
    """The provider does not answer at first."""
    if self.request.retries < 2:
        raise self.retry(countdown=0.2)
    return {"paid": amount, "attempts": self.request.retries + 1}
