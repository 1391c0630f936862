"""The tokens of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dss_cli.cluster import Cluster, CommandFailed
from dss_cli.terminal import Terminal, minute
from dss_client import WrongUse

HEAD = ("ID", "NAME", "SCOPES", "CREATED", "EXPIRES", "LAST USE", "KEY")
_UNITS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}


def read_duration_ms(text: str) -> int:
    """A duration from the command line: 90d, 12h or 30m; "" is 0.

    Raises:
        WrongUse: it is something else.
    """
    if not text:
        return 0
    number, unit = text[:-1], text[-1:]
    if not number.isdigit() or not int(number) or unit not in _UNITS:
        raise WrongUse(f"a time must be like 90d, 12h or 30m, not {text!r}")
    return int(number) * _UNITS[unit]


async def create(cluster: Cluster, terminal: Terminal, name: str, scopes: Sequence[str], expires: str) -> None:
    """Make a token, and print it once."""
    expires_in_ms = read_duration_ms(expires)
    _show_once(terminal, await cluster.call("tokens.create", name=name, scopes=list(scopes), expires_in_ms=expires_in_ms))


async def ls(cluster: Cluster, terminal: Terminal) -> None:
    """List the tokens, without their secrets."""
    answer = await cluster.call("tokens.list")
    if terminal.is_json:
        terminal.json(answer)
        return
    terminal.table(HEAD, [_row(token) for token in answer["tokens"]])


async def rotate(cluster: Cluster, terminal: Terminal, token_id: str, overlap: str) -> None:
    """Give a token another secret, and print it once."""
    overlap_ms = read_duration_ms(overlap)
    _show_once(terminal, await cluster.call("tokens.rotate", id=token_id, overlap_ms=overlap_ms))


async def revoke(cluster: Cluster, terminal: Terminal, token_id: str) -> None:
    """End a token now, on every node.

    Raises:
        CommandFailed: there is none.
    """
    if not token_id.isalnum():
        raise WrongUse("an id has letters and digits only; `dss token ls` shows it")
    answer = await cluster.call("tokens.revoke", id=token_id)
    if terminal.is_json:
        terminal.json(answer)
    if not answer["revoked"]:
        raise CommandFailed(f"there is no token {token_id}")
    if not terminal.is_json:
        terminal.write("revoked")


def _show_once(terminal: Terminal, answer: dict[str, Any]) -> None:
    terminal.say("Keep it: it is not shown again.")
    if terminal.is_json:
        terminal.json(answer)
    else:
        terminal.write(answer["token"])


def _row(token: dict[str, Any]) -> list[str]:
    return [
        token["id"],
        token["name"],
        " ".join(token["scopes"]),
        minute(token["created_ms"]),
        "expired" if token["expired"] else minute(token["expires_ms"]) or "never",
        minute(token["used_ms"]) or "not known",
        "old" if token.get("old_key") else "",
    ]
