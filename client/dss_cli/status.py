"""The members of a cluster, the leader, and the progress of each node."""

from __future__ import annotations

import asyncio
from typing import Any

from dss_cli.cluster import ASK_S, Cluster
from dss_cli.find_cluster import running_clusters
from dss_cli.terminal import Terminal
from dss_client import DssError, Unavailable, UnknownOutcome

HEAD = ("NODE", "STATE", "ADDRESS", "TERM", "COMMITTED", "APPLIED", "")


async def read(cluster: Cluster) -> dict[str, Any]:
    """What each member says of itself.

    Raises:
        DssError: no node answers.
    """
    first = await cluster.any().call("raft.status")
    nodes = await asyncio.gather(*(_node(cluster, member, first) for member in first["members"]))
    pids = {node.url: node.pid for local in running_clusters().values() for node in local.nodes}
    if any(node["url"] in pids for node in nodes):
        nodes = [{**node, "pid": pids.get(node["url"])} for node in nodes]
    return {"leader_id": first["leader_id"], "cluster_version": first.get("cluster_version"), "nodes": nodes}


def show(document: dict[str, Any], terminal: Terminal) -> None:
    if terminal.is_json:
        terminal.json(document)
        return
    is_local = any("pid" in node for node in document["nodes"])
    head = [*HEAD[:2], *(["PID"] if is_local else []), *HEAD[2:]]
    terminal.table(head, [_row(node, is_local) for node in document["nodes"]])
    terminal.write(f"leader: {document['leader_id'] or 'none known'}")


async def status(cluster: Cluster, terminal: Terminal) -> None:
    show(await read(cluster), terminal)


async def watch(cluster: Cluster, terminal: Terminal, interval_s: float) -> None:
    """Show the status again and again, until interrupted. On a terminal, each replaces the one before."""
    if terminal.console is None or terminal.is_json:
        while True:
            await _show_or_say(cluster, terminal)
            await asyncio.sleep(interval_s)
    from rich.console import Console, Group
    from rich.live import Live

    shown: list[Any] = []
    # What is printed below goes to the screen that Live draws.
    screen = Terminal(shown.append, shown.append, console=_Collected(shown))
    with Live(
        console=terminal.console if isinstance(terminal.console, Console) else None, screen=True, auto_refresh=False
    ) as live:
        while True:
            shown.clear()
            await _show_or_say(cluster, screen)
            live.update(Group(*shown, "", f"every {interval_s:g} s; Ctrl-C ends it"), refresh=True)
            await asyncio.sleep(interval_s)


class _Collected:
    """Stands for a console, and keeps what is printed."""

    def __init__(self, shown: list[Any]) -> None:
        self._shown = shown

    def print(self, shown: Any, /) -> None:
        self._shown.append(shown)


async def _show_or_say(cluster: Cluster, terminal: Terminal) -> None:
    try:
        show(await read(cluster), terminal)
    except (Unavailable, UnknownOutcome) as error:
        terminal.say(f"no node answers: {error}")


async def _node(cluster: Cluster, member: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """A member. `first` is the status of the node that was asked first."""
    node = {name: member.get(name) for name in ("id", "url", "learner", "up", "outdated")}
    if member["id"] == first["node"]:
        return {**node, "status": first}
    try:
        return {**node, "status": await cluster.at(member["url"]).call("raft.status", ASK_S)}
    except Unavailable as error:
        return {**node, "status": None, "trouble": next(iter(error.troubles.values()), str(error))}
    except DssError as error:
        return {**node, "status": None, "trouble": str(error)}


def _row(node: dict[str, Any], is_local: bool) -> list[str]:
    pid = [str(node.get("pid") or "")] if is_local else []
    status = node["status"]
    if status is None:
        return [node["id"], "no answer", *pid, node["url"], "", "", "", node["trouble"]]
    figures = [str(status[name]) for name in ("term", "commit_index", "last_applied")]
    return [node["id"], status["state"]["name"].lower(), *pid, node["url"], *figures, "; ".join(_remarks(node, status))]


def _remarks(node: dict[str, Any], status: dict[str, Any]) -> list[str]:
    remarks = ["learner"] if node["learner"] else []
    if node["outdated"]:
        remarks.append(f"its disk is outdated, so it has no vote: dss member replace {node['id']}")
    # A node of an earlier release does not say all of this.
    if differing := status.get("state_hash", {}).get("differing"):
        remarks.append(f"its state differs from that of {', '.join(differing)}: see docs/how-to/state-differs.md")
    if stopped := status.get("apply_stopped"):
        remarks.append(f"it cannot apply entry {stopped['index']}: see docs/how-to/skip-an-entry.md")
    if status.get("clock", {}).get("is_wrong"):
        remarks.append(f"its clock is {status['clock']['off_by_ms'] / 1000:+.0f} s off: see docs/how-to/wrong-clock.md")
    return remarks
