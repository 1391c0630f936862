"""`manage.py publish`: put messages into a topic."""

from __future__ import annotations

import sys
import uuid
from itertools import islice
from typing import Any

import msgspec
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from dss_queue.answers import PublishAnswer
from dss_queue.client import CallFailed, Client

LINES_PER_CALL = 100
PATIENCE_S = 30.0


class Command(BaseCommand):
    help = (
        "Publish a message: VALUE is JSON, or standard input when it is missing. Prints the msg_id. "
        "Example: manage.py publish --topic orders --key customer-7 '{\"order\": 42}'"
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--topic", required=True)
        parser.add_argument("--key", default="", help="routing key: messages that share one stay in order")
        parser.add_argument("--delay-ms", type=int, default=0)
        parser.add_argument("--dedup-id", default="", help="a repeat with the same one is not stored again")
        parser.add_argument("--header", action="append", default=[], metavar="NAME=TEXT")
        parser.add_argument("--text", action="store_true", help="VALUE is plain text, not JSON")
        parser.add_argument("--lines", action="store_true", help="every line of standard input is a message")
        parser.add_argument("--url", action="append", help="a node's address; several: the next one when one does not answer")
        parser.add_argument("value", nargs="?", metavar="VALUE")

    def handle(self, *args: Any, **options: Any) -> None:
        headers = dict(_header(text) for text in options["header"]) or None
        common = {"key": options["key"], "delay_ms": options["delay_ms"], "headers": headers}
        try:
            client = Client(options["url"] or [settings.NODE.url], settings.NODE.api_token)
        except ValueError as error:
            raise CommandError(str(error)) from None
        try:
            if not options["lines"]:
                text = sys.stdin.read() if options["value"] is None else options["value"]
                self._publish(client, options, [common | {"value": _value(text, options["text"])}])
                return
            if options["value"] is not None or options["dedup_id"]:
                raise CommandError("--lines takes its messages from standard input, without VALUE and --dedup-id")
            lines = (line.rstrip("\n") for line in sys.stdin)
            while batch := list(islice(lines, LINES_PER_CALL)):
                self._publish(client, options, [common | {"value": _value(line, options["text"])} for line in batch])
        except CallFailed as error:
            raise CommandError(str(error)) from None
        except OSError as error:
            raise CommandError(f"no node answers: {error}") from None
        finally:
            client.close()

    def _publish(self, client: Client, options: dict[str, Any], messages: list[dict[str, Any]]) -> None:
        for message in messages:
            # Without an id of its own a call that is sent again could be stored twice.
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
        raise CommandError(f"VALUE is not JSON (--text takes it as it is): {error}") from None
    return msgspec.Raw(text.strip().encode())


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise CommandError(f"--header must be NAME=TEXT, not {text!r}")
    return name, value
