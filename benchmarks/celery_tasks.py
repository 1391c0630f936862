"""The Celery app of bench_celery.py: its worker and its producer import it."""

from __future__ import annotations

import json
import os
import socket

from celery import Celery

app = Celery("bench", broker=os.environ["BENCH_BROKER"])
app.conf.update(
    broker_transport_options=json.loads(os.environ["BENCH_OPTIONS"]),
    broker_connection_retry_on_startup=True,
    task_default_queue="bench",
    task_ignore_result=True,
    worker_enable_remote_control=False,
)
_socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


@app.task
def note(number: int) -> None:
    """Tell the benchmark that this task was executed."""
    _socket.sendto(number.to_bytes(4), os.environ["BENCH_SOCKET"])
