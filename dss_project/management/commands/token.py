"""`manage.py token`: make, list, rotate and revoke the tokens of a cluster."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from dss_api.client import CallFailed, Client
from dss_api.find_cluster import URL_HELP, CannotChoose, cluster_urls, without_repeats
from dss_api.rights import FORMS
from dss_project.management.commands.status import table

PATIENCE_S = 15.0
_UNITS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}


class Command(BaseCommand):
    help = (
        "Make, list, rotate and revoke tokens. On a node's machine, with its settings, it needs no token: it proves that it has the"
        " cluster's secret."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--url", action="append", default=[], help=URL_HELP)
        what = parser.add_subparsers(dest="what", required=True, metavar="create | ls | rotate | revoke")
        create = what.add_parser("create", help="make a token, and print it once")
        create.add_argument("name", help="for people: who or what uses it")
        create.add_argument(
            "--scope", action="append", required=True, help=f"what it may do; repeat it. {FORMS}".replace("`", "")
        )
        create.add_argument(
            "--expires", default="", metavar="TIME", help="when it ends: 90d, 12h or 30m from now (default: never)"
        )
        what.add_parser("ls", help="list the tokens, without their secrets")
        rotate = what.add_parser("rotate", help="give a token another secret, and print it once")
        rotate.add_argument("id")
        rotate.add_argument(
            "--overlap", default="", metavar="TIME", help="how long the present secret stays valid: 1h (default: not)"
        )
        revoke = what.add_parser("revoke", help="end a token now, on every node")
        revoke.add_argument("id")

    def handle(self, *args: Any, **options: Any) -> None:
        say = without_repeats(partial(self.stderr.write, style_func=str))
        try:
            method, path, body = self._request(options)
            client = Client(cluster_urls(options["url"], settings.NODE, say), settings.NODE.command_token, say)
            answer = client.call(method, path, body, patience_s=PATIENCE_S, may_repeat=method == "GET")
        except (CallFailed, CannotChoose, OSError, ValueError) as error:
            raise CommandError(str(error)) from None
        if options["what"] == "ls":
            self._list(answer["tokens"])
        elif options["what"] == "revoke":
            self.stdout.write("revoked" if answer["revoked"] else f"there is no token {options['id']}")
        else:
            self.stderr.write("Keep it: it is not shown again.", style_func=str)
            self.stdout.write(answer["token"])

    def _request(self, options: dict[str, Any]) -> tuple[str, str, Any]:
        match options["what"]:
            case "create":
                body = {"name": options["name"], "scopes": options["scope"], "expires_in_ms": _duration_ms(options["expires"])}
                return "POST", "/tokens", body
            case "ls":
                return "GET", "/tokens", None
            case "rotate":
                return "POST", "/tokens/rotate", {"id": options["id"], "overlap_ms": _duration_ms(options["overlap"])}
            case _:
                if not options["id"].isalnum():
                    raise ValueError("an id has letters and digits only; `manage.py token ls` shows it")
                return "DELETE", f"/tokens/{options['id']}", None

    def _list(self, tokens: list[dict[str, Any]]) -> None:
        rows = [
            [
                token["id"],
                token["name"],
                " ".join(token["scopes"]),
                _time(token["created_ms"]),
                "expired" if token["expired"] else _time(token["expires_ms"]) or "never",
                _time(token["used_ms"]) or "not known",
            ]
            for token in tokens
        ]
        self.stdout.write(table(["ID", "NAME", "SCOPES", "CREATED", "EXPIRES", "LAST USE"], rows))


def _duration_ms(text: str) -> int:
    """Raises:
    ValueError: it is not a number and a unit.
    """
    if not text:
        return 0
    number, unit = text[:-1], text[-1:]
    if not number.isdigit() or not int(number) or unit not in _UNITS:
        raise ValueError(f"a time must be like 90d, 12h or 30m, not {text!r}")
    return int(number) * _UNITS[unit]


def _time(at_ms: int | None) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%F %R}" if at_ms else ""
