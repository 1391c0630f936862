"""The users of the pages and the admin."""

from __future__ import annotations

import getpass
import secrets
import sys
from typing import Any

from dss_cli.cluster import Cluster, CommandFailed
from dss_cli.terminal import Terminal, minute
from dss_client import WrongUse

HEAD = ("NAME", "GROUP", "STATE", "CREATED", "BY", "LAST CHANGE")
GROUPS = ("viewer", "operator", "admin")
PASSWORD_BYTES = 12


def read_password() -> str:
    """Ask for a password twice; without a terminal, it is the first line of the standard input. It is never an argument: others see those.

    Raises:
        WrongUse: it is empty, or the two differ.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        password = sys.stdin.readline().rstrip("\r\n") if sys.stdin is not None else ""
    else:
        password = getpass.getpass("Password: ")
        if getpass.getpass("Again: ") != password:
            raise WrongUse("the two passwords differ")
    if not password:
        raise WrongUse("give the password at the prompt, or as a line of the standard input; --generate makes one")
    return password


def new_password(generate: bool) -> str:
    return secrets.token_urlsafe(PASSWORD_BYTES) if generate else read_password()


async def create(cluster: Cluster, terminal: Terminal, name: str, group: str, password: str, generated: bool) -> None:
    """Make a user."""
    answer = await cluster.call("users.create", name=name, group=group, password=password)
    _show(terminal, answer, password if generated else "", f"{name} is in the group {group}")


async def ls(cluster: Cluster, terminal: Terminal) -> None:
    """List the users."""
    answer = await cluster.call("users.list")
    if terminal.is_json:
        terminal.json(answer)
        return
    terminal.table(HEAD, [_row(user) for user in answer["users"]])


async def change(cluster: Cluster, terminal: Terminal, name: str, group: str | None, active: bool | None) -> None:
    """Change the group, or whether the user may log in.

    Raises:
        WrongUse: nothing is to be changed.
    """
    fields = {key: value for key, value in (("group", group), ("active", active)) if value is not None}
    if not fields:
        raise WrongUse("give --group, --disable or --enable")
    answer = await cluster.call("users.change", name=name, **fields)
    _show(terminal, answer, "", f"{name}: {answer['group']}, {_state(answer)}")


async def password(cluster: Cluster, terminal: Terminal, name: str, password: str, generated: bool) -> None:
    """Give a user another password."""
    answer = await cluster.call("users.change", name=name, password=password)
    _show(terminal, answer, password if generated else "", f"{name} has another password, and no session")


async def sign_out(cluster: Cluster, terminal: Terminal, name: str) -> None:
    """End all sessions of a user."""
    answer = await cluster.call("users.sign_out", name=name)
    _show(terminal, answer, "", f"{name} is signed out on all nodes")


async def rm(cluster: Cluster, terminal: Terminal, name: str) -> None:
    """Delete a user.

    Raises:
        CommandFailed: there is none.
    """
    answer = await cluster.call("users.delete", name=name)
    if terminal.is_json:
        terminal.json(answer)
    if not answer["deleted"]:
        raise CommandFailed(f"there is no user {name}")
    if not terminal.is_json:
        terminal.write("deleted")


def _show(terminal: Terminal, answer: dict[str, Any], generated: str, text: str) -> None:
    if generated:
        terminal.say("Keep the password: it is not shown again.")
    if terminal.is_json:
        terminal.json({**answer, "password": generated} if generated else answer)
    else:
        terminal.write(generated or text)


def _state(user: dict[str, Any]) -> str:
    return "active" if user["active"] else "disabled"


def _row(user: dict[str, Any]) -> list[str]:
    return [
        user["name"],
        user["group"],
        _state(user),
        minute(user["created_ms"]),
        user["created_by"],
        minute(user["changed_ms"]) or "never",
    ]
