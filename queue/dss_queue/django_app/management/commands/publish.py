"""`manage.py publish`: publish messages to a topic."""

from __future__ import annotations

import sys
import uuid
from functools import partial
from itertools import islice
from typing import Any

import msgspec
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from dss_api.client import CallFailed, Client
from dss_api.find_cluster import URL_HELP, CannotChoose, cluster_urls, without_repeats
from dss_queue.answers import PublishAnswer

LINES_PER_CALL = 100
PATIENCE_S = 30.0


class Command(BaseCommand):
    help = (
        "Publish a message and print its msg_id. VALUE is JSON; without it standard input is read. "
        "Example: manage.py publish --topic orders --key customer-7 '{\"order\": 42}'"
    )
    requires_system_checks: list[str] = []

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
        parser.add_argument("--url", action="append", default=[], help=URL_HELP)
        parser.add_argument("value", nargs="?", metavar="VALUE", help="the message, as JSON; without it standard input is read")

    def handle(self, *args: Any, **options: Any) -> None:
        headers = dict(_header(text) for text in options["header"]) or None
        common = {"key": options["key"], "delay_ms": options["delay_ms"], "headers": headers}
        say = without_repeats(partial(self.stderr.write, style_func=str))
        try:
            client = Client(cluster_urls(options["url"], settings.NODE, say), settings.NODE.command_token, say)
        except (CannotChoose, ValueError) as error:
            raise CommandError(str(error)) from None
        try:
            if not options["lines"]:
                text = sys.stdin.read() if options["value"] is None else options["value"]
                self._publish(client, options, [common | {"value": _value(text, options["text"])}])
                return
            if options["value"] is not None or options["dedup_id"]:
                raise CommandError("--lines reads messages from standard input and cannot be combined with VALUE or --dedup-id")
            lines = (line.rstrip("\n") for line in sys.stdin)
            while batch := list(islice(lines, LINES_PER_CALL)):
                self._publish(client, options, [common | {"value": _value(line, options["text"])} for line in batch])
        except (CallFailed, OSError) as error:
            raise CommandError(str(error)) from None
        finally:
            client.close()

    def _publish(self, client: Client, options: dict[str, Any], messages: list[dict[str, Any]]) -> None:
        for message in messages:
            # Without an id, a call that is sent again could be stored twice.
            message["dedup_id"] = options["dedup_id"] or uuid.uuid4().hex
        call = {"topic": options["topic"], "messages": messages}
        answer: PublishAnswer = client.post("/queue/publish", call, PublishAnswer, patience_s=PATIENCE_S)
        for published in answer.messages or ():
            self.stdout.write(published.msg_id + (" duplicate" if published.duplicate and options["dedup_id"] else ""))


def _value(text: str, is_text: bool) -> Any:
    if is_text:
        return text
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise CommandError(f"VALUE is not JSON (use --text for plain text): {error}") from None
    return msgspec.Raw(text.strip().encode())


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise CommandError(f"--header must be NAME=TEXT, not {text!r}")
    return name, value
