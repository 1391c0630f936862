"""`manage.py audit`: the audit trail as JSON lines."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from dss_api.client import CallFailed, Client
from dss_api.find_cluster import URL_HELP, CannotChoose, cluster_urls, without_repeats

PATIENCE_S = 15.0
PAGE = 1000


class Command(BaseCommand):
    help = "Print the audit trail as JSON lines. It says what operators did, who they were, and from where; oldest first."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--url", action="append", default=[], help=URL_HELP)
        parser.add_argument(
            "--after", type=int, default=0, metavar="INDEX", help="only records behind this one, to continue an export"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        say = without_repeats(partial(self.stderr.write, style_func=str))
        after = options["after"]
        try:
            client = Client(cluster_urls(options["url"], settings.NODE, say), settings.NODE.command_token, say)
            while True:
                page = client.call("GET", f"/audit?after={after}&limit={PAGE}", patience_s=PATIENCE_S)
                for record in page["records"]:
                    self.stdout.write(json.dumps(record, ensure_ascii=False))
                if len(page["records"]) < PAGE:
                    return
                after = page["records"][-1]["index"]
        except (CallFailed, CannotChoose, OSError, ValueError) as error:
            raise CommandError(str(error)) from None
