"""`manage.py consume`: run a command for each message of a topic."""

from __future__ import annotations

import shutil
import signal
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from dss_queue.client import CallFailed, Client
from dss_queue.worker import Options, Worker


class Command(BaseCommand):
    help = (
        "Run a command for each message, with the message's JSON on its standard input and DSS_MESSAGE_ID, _TOPIC, _GROUP, _KEY, "
        "_ATTEMPT and _HEADERS in its environment. Exit 0 is the ack; anything else brings the message back later. "
        "Example: manage.py consume --topic orders --group billing -- ./send-invoice --now"
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        defaults = Options(topic="", group="", command=())
        parser.add_argument("--topic", required=True)
        parser.add_argument("--group", required=True)
        parser.add_argument("--url", action="append", help="a node's address; several: the next one when one does not answer")
        parser.add_argument("--concurrency", type=int, default=defaults.concurrency, help="commands at a time")
        parser.add_argument(
            "--visibility-ms", type=int, default=defaults.visibility_ms, help="extended every third of it while the command runs"
        )
        parser.add_argument("--backoff-ms", type=int, default=defaults.backoff_ms, help="after a failure, doubled each time")
        parser.add_argument("--backoff-ms-max", type=int, default=defaults.backoff_ms_max)
        parser.add_argument("--grace-s", type=float, default=defaults.grace_s, help="at SIGTERM, running commands get so long")
        parser.add_argument("--limit", type=int, default=0, help="end after so many messages")
        parser.add_argument("--until-empty", action="store_true", help="end when there is nothing to take")
        parser.add_argument("--text", action="store_true", help="give a JSON string to the command as plain text")
        parser.add_argument("run", nargs="+", metavar="COMMAND", help="after --: the command and its arguments")

    def handle(self, *args: Any, **options: Any) -> None:
        command = options["run"]
        if shutil.which(command[0]) is None:
            raise CommandError(f"there is no command {command[0]!r}")
        for name in ("concurrency", "visibility_ms"):
            if options[name] < 1:
                raise CommandError(f"--{name.replace('_', '-')} must be at least 1")
        urls = options["url"] or [settings.NODE.url]
        names = set(Options.__struct_fields__) & options.keys()
        told = Options(command=command, **{name: options[name] for name in names})
        worker = Worker(told, lambda: Client(urls, settings.NODE.api_token), self.stderr.write)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: worker.stop())
        try:
            worker.run()
        except (CallFailed, ValueError) as error:
            raise CommandError(str(error)) from None
        self.stderr.write(f"{worker.done} done, {worker.failed} failed")
