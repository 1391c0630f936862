"""`manage.py publish`: publish messages to a topic."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import CommandError, CommandParser

from dss_admin.cluster_command import ClusterCommand
from dss_cli import queues
from dss_cli.cluster import Cluster
from dss_cli.terminal import Terminal


class Command(ClusterCommand):
    help = (
        "Publish a message and print its msg_id. VALUE is JSON; without it standard input is read. "
        "Example: manage.py publish --topic orders --key customer-7 '{\"order\": 42}'"
    )
    timeout_s = 30.0

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--topic", required=True, help="topic that gets the message")
        parser.add_argument("--key", default="", help="routing key: messages with the same key stay in order")
        parser.add_argument("--delay-ms", type=int, default=0, help="hide the message for this time")
        parser.add_argument("--dedup-id", default="", help="a message with the same id is not stored again")
        parser.add_argument(
            "--header", action="append", default=[], metavar="NAME=TEXT", help="header of the message; may be repeated"
        )
        parser.add_argument("--text", action="store_true", help="VALUE is plain text, not JSON")
        parser.add_argument("--lines", action="store_true", help="every line of standard input is a message")
        super().add_arguments(parser)
        parser.add_argument("value", nargs="?", metavar="VALUE", help="the message, as JSON; without it standard input is read")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["lines"] and (options["value"] is not None or options["dedup_id"]):
            raise CommandError("--lines reads messages from standard input and cannot be combined with VALUE or --dedup-id")

        async def work(cluster: Cluster, terminal: Terminal) -> None:
            topic, is_text = options["topic"], options["text"]
            headers = queues.read_headers(options["header"])
            fields = {"key": options["key"], "delay_ms": options["delay_ms"], "headers": headers}
            if options["lines"]:
                await queues.publish_lines(cluster, terminal, topic, sys.stdin, is_text, fields)
                return
            text = sys.stdin.read() if options["value"] is None else options["value"]
            fields["dedup_id"] = options["dedup_id"]
            await queues.publish(cluster, terminal, topic, queues.read_value(text, is_text), fields)

        self.carry_out(options["url"], work)
