"""Any call of the API, and the readiness of a node."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from dss_cli.cluster import ASK_S, Cluster
from dss_cli.terminal import Terminal
from dss_client import DssError, WrongUse
from dss_client.clock import now

#: time between two looks at a node that is not ready
POLL_S = 0.25


def read_fields(texts: Sequence[str]) -> dict[str, Any]:
    """Fields of a call from the command line: NAME=TEXT, or NAME:=JSON.

    Raises:
        WrongUse: one is something else.
    """
    fields: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.rstrip(":"):
            raise WrongUse(f"a field must be NAME=TEXT or NAME:=JSON, not {text!r}")
        if not name.endswith(":"):
            fields[name] = value
            continue
        try:
            fields[name[:-1]] = msgspec.json.decode(value)
        except msgspec.DecodeError as error:
            raise WrongUse(f"the field {name[:-1]} is not JSON: {error}") from None
    return fields


async def call(cluster: Cluster, terminal: Terminal, operation: str, fields: dict[str, Any]) -> None:
    """Make the call and print its answer."""
    terminal.json(await cluster.call(operation, **fields))


async def ready(cluster: Cluster, terminal: Terminal, wait: float) -> None:
    """Whether the node at the first address is ready.

    Args:
        wait: for how many seconds to wait until it is.

    Raises:
        DssError: it is not.
    """
    deadline = now() + wait
    node = cluster.at(cluster.urls[0])
    while True:
        try:
            answer = await node.call("ready", ASK_S)
            break
        except DssError:
            if now() + POLL_S > deadline:
                raise
        await asyncio.sleep(POLL_S)
    if terminal.is_json:
        terminal.json(answer)
    else:
        terminal.write(f"{answer['node']} is ready; {answer['leader_id']} leads")
