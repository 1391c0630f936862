"""`manage.py dss_worker`: run the tasks of queues."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction
from types import FrameType
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils.autoreload import run_with_reloader
from django.utils.crypto import get_random_string

from dss_client import DssError
from dss_django.tasks import DSSBackend
from dss_django.tasks.compat import LOGGER, InvalidTaskBackend, task_backends
from dss_django.tasks.worker import TaskWorker

WORKER_ID_MAX = 40
CONCURRENCY_MAX = 100
log = logging.getLogger("dss_django.tasks")


def backend_name(text: str) -> str:
    try:
        backend = task_backends[text]
    except InvalidTaskBackend as error:
        raise ArgumentTypeError(str(error)) from None
    if not isinstance(backend, DSSBackend):
        raise ArgumentTypeError(f"backend {text!r} is not a DSSBackend")
    return text


def count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ArgumentTypeError("must be greater than zero")
    return number


def concurrency(text: str) -> int:
    number = count(text)
    if number > CONCURRENCY_MAX:
        raise ArgumentTypeError(f"must be at most {CONCURRENCY_MAX}")
    return number


def worker_id(text: str) -> str:
    if not 1 <= len(text) <= WORKER_ID_MAX or not text.isprintable():
        raise ArgumentTypeError(f"must have 1 to {WORKER_ID_MAX} printable characters")
    return text


def seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 24 * 3600:
        raise ArgumentTypeError("must be 0 to 86400")
    return number


class Command(BaseCommand):
    help = "Run the tasks of queues until SIGTERM or SIGINT."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--backend", type=backend_name, default="default", dest="name", help="a name in TASKS (%(default)s)")
        parser.add_argument(
            "--queue-name",
            default="*",
            help="the queues, separated by commas; of tasks with the same priority, those of the first queue run first "
            "(%(default)s: all in QUEUES)",
        )
        parser.add_argument("--exclude-queues", default="", help="with --queue-name=*: all but these, separated by commas")
        parser.add_argument(
            "--concurrency", type=concurrency, default=1, help="how many tasks run at a time, each in a thread (%(default)s)"
        )
        parser.add_argument("--batch", action="store_true", help="run the tasks that are ready, then exit")
        parser.add_argument("--max-tasks", type=count, help="exit after this many tasks")
        parser.add_argument(
            "--grace",
            type=seconds,
            default=30.0,
            help="how many seconds running tasks have after SIGTERM, before they go back to the queue (%(default)s)",
        )
        parser.add_argument(
            "--reload",
            action=BooleanOptionalAction,
            default=settings.DEBUG,
            help="start again when the code changes; the tasks that are running then go back to the queue (DEBUG)",
        )
        parser.add_argument("--worker-id", type=worker_id, help="unique among all workers (made of the machine's name)")

    def handle(self, *, name: str, queue_name: str, exclude_queues: str, **options: Any) -> None:
        self._configure_logging(options["verbosity"])
        backend = task_backends[name]
        worker = TaskWorker(
            backend,
            _queues(backend, queue_name, exclude_queues),
            options["worker_id"] or _new_worker_id(),
            concurrency=options["concurrency"],
            is_batch=options["batch"],
            max_tasks=options["max_tasks"],
            grace=options["grace"],
        )
        if options["reload"] and not options["batch"]:
            # The autoreloader handles signals. When it ends the process, the worker gives its tasks back.
            run_with_reloader(worker.run)
            return
        before = _on_signals(worker)
        try:
            worker.run()
        except DssError as error:
            raise CommandError(str(error)) from error
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _configure_logging(self, verbosity: int) -> None:
        level = {0: logging.CRITICAL, 1: logging.INFO}.get(verbosity, logging.DEBUG)
        for logger in (logging.getLogger(LOGGER), log, logging.getLogger("dss_client")):
            logger.setLevel(level)
            if not logger.hasHandlers():
                # Without one, nothing would be shown.
                logger.addHandler(logging.StreamHandler(self.stdout))


def _queues(backend: DSSBackend, names: str, excluded: str) -> list[str]:
    known = backend.queues
    if names == "*":
        if not known:
            raise CommandError("name the queues with --queue-name, because QUEUES of the backend allows any")
        chosen = [queue for queue in sorted(known) if queue not in excluded.split(",")]
    elif excluded:
        raise CommandError("--exclude-queues can only be used with --queue-name=*")
    else:
        chosen = list(dict.fromkeys(name for name in names.split(",") if name))
        if unknown := [name for name in chosen if known and name not in known]:
            raise CommandError(f"QUEUES of the backend has no {', '.join(unknown)}")
    if not chosen:
        raise CommandError("there is no queue to take tasks from")
    return chosen


def _new_worker_id() -> str:
    machine = "".join(one if one.isalnum() and one.isascii() else "-" for one in socket.gethostname())[:20]
    return f"{machine}-{os.getpid()}-{get_random_string(8)}"


def _on_signals(worker: TaskWorker) -> dict[int, Any]:
    """The first signal stops the worker, the second one ends it: the tasks that are running go back to the queue."""
    is_first = True

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal is_first
        if is_first:
            log.warning("Received %s - shutting down gracefully... (send it again to force)", signal.strsignal(number))
            worker.stop()
        else:
            log.warning("Received %s - giving the running tasks back.", signal.strsignal(number))
            worker.leave()
        is_first = False

    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
