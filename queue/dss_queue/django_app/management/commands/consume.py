"""`manage.py consume`: run a command for each message of a topic."""

from __future__ import annotations

import shutil
from typing import Any

from django.core.management.base import CommandError, CommandParser

from dss_admin.cluster_command import ClusterCommand
from dss_cli.cluster import Cluster
from dss_cli.consume import CommandWorker, Options
from dss_cli.terminal import Terminal
from dss_client import WrongUse


class Command(ClusterCommand):
    help = (
        "Run a command for each message of a topic. The message's JSON is on the command's standard input; DSS_MESSAGE_ID, _TOPIC, "
        "_GROUP, _KEY, _ATTEMPT and _HEADERS are in its environment. Exit code 0 acknowledges the message; otherwise it is delivered "
        "again later. "
        "Example: manage.py consume --topic orders --group billing -- ./send-invoice --now"
    )

    def add_arguments(self, parser: CommandParser) -> None:
        defaults = Options(topic="", group="", command=())
        parser.add_argument("--topic", required=True, help="topic whose messages are consumed")
        parser.add_argument("--group", required=True, help="consumer group; each group gets every message")
        super().add_arguments(parser)
        parser.add_argument("--concurrency", type=int, default=defaults.concurrency, help="commands that run at the same time")
        parser.add_argument(
            "--visibility-ms",
            type=int,
            default=defaults.visibility_ms,
            help="visibility timeout; extended regularly while the command runs",
        )
        parser.add_argument(
            "--backoff-ms", type=int, default=defaults.backoff_ms, help="delay after a failure; doubled each time"
        )
        parser.add_argument("--backoff-ms-max", type=int, default=defaults.backoff_ms_max, help="longest delay after failures")
        parser.add_argument(
            "--grace-s", type=float, default=defaults.grace_s, help="time for running commands to end after SIGTERM"
        )
        parser.add_argument("--limit", type=int, default=0, help="end after this number of messages")
        parser.add_argument("--until-empty", action="store_true", help="end when no message is available")
        parser.add_argument("--text", action="store_true", help="pass a JSON string to the command as plain text")
        parser.add_argument("run", nargs="+", metavar="COMMAND", help="after --: the command and its arguments")

    def handle(self, *args: Any, **options: Any) -> None:
        command = options["run"]
        if shutil.which(command[0]) is None:
            raise CommandError(f"Command not found: {command[0]!r}")
        names = set(Options.__struct_fields__) & options.keys()
        try:
            worker_options = Options(command=command, **{name: options[name] for name in names})
        except WrongUse as error:
            raise CommandError(str(error)) from None

        async def work(cluster: Cluster, terminal: Terminal) -> None:
            worker = CommandWorker(cluster, worker_options, terminal.say)
            await worker.run()
            terminal.say(f"{worker.done} done, {worker.failed} failed")

        self.carry_out(options["url"], work)
