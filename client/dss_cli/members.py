"""Changes of members, and of the leader."""

from __future__ import annotations

import asyncio
from typing import Any

from dss_cli.cluster import ASK_S, Cluster, CommandFailed
from dss_cli.terminal import Terminal
from dss_client import DssError

#: time between two looks at a new member
POLL_S = 0.5
HEAD = ("NODE", "ADDRESS", "ROLE", "UP", "VERSIONS", "")


async def ls(cluster: Cluster, terminal: Terminal) -> None:
    """The members as one node sees them."""
    status = await cluster.any().call("raft.status")
    if terminal.is_json:
        names = ("node", "leader_id", "cluster_version", "members")
        terminal.json({name: status.get(name) for name in names})
        return
    terminal.table(HEAD, [_row(member, status["leader_id"]) for member in status["members"]])


async def add(cluster: Cluster, terminal: Terminal, node_id: str, address: str) -> None:
    """Add a node that waits to be added."""
    _show(terminal, await cluster.call("raft.add_member", id=node_id, url=address))


async def remove(cluster: Cluster, terminal: Terminal, node_id: str, *, force: bool = False, reason: str = "") -> None:
    """Remove a node permanently; its process ends."""
    forced = {"force": True, "reason": reason} if force else {}
    _show(terminal, await cluster.call("raft.remove_member", id=node_id, **forced))


async def replace(cluster: Cluster, terminal: Terminal, node_id: str, address: str = "") -> None:
    """Remove, add, and wait for the vote. Each step is left out when it is done, so the command can be repeated.

    Raises:
        CommandFailed: something must be done first.
    """
    try:
        await _replace(cluster, terminal, node_id, address)
    except DssError as error:
        raise CommandFailed(f"{error}\nRun the command again: it continues where it stopped") from None
    if terminal.is_json:
        terminal.json({"ok": True, "id": node_id, "replaced": True})
    else:
        terminal.write(f"{node_id} is a voter again")


async def transfer(cluster: Cluster, terminal: Terminal, node_id: str = "") -> None:
    """Make another node the leader; "" for the one that is most up to date."""
    answer = await cluster.call("raft.transfer", to=node_id)
    if terminal.is_json:
        terminal.json(answer)
    else:
        terminal.write(f"{answer['leader_id']} leads")


async def election(cluster: Cluster, terminal: Terminal, *, force: bool = False) -> None:
    """The node at the first address campaigns."""
    answer = await cluster.at(cluster.urls[0]).call("raft.start_election", ASK_S, force=force)
    if terminal.is_json:
        terminal.json(answer)
    else:
        terminal.write(f"{answer['node']} campaigns")


async def leader(cluster: Cluster, terminal: Terminal) -> None:
    """Which node leads.

    Raises:
        CommandFailed: none is known.
    """
    answer = await cluster.any().call("raft.leader")
    if terminal.is_json:
        terminal.json(answer)
    if answer["leader_id"] is None:
        raise CommandFailed("no leader is known")
    if not terminal.is_json:
        terminal.write(answer["leader_id"])


def _show(terminal: Terminal, answer: dict[str, Any]) -> None:
    if terminal.is_json:
        terminal.json(answer)
        return
    for member in answer["members"]:
        terminal.write(f"{member['id']}  {member['url']}{'  (learner)' if member['learner'] else ''}")


def _row(member: dict[str, Any], leader_id: str | None) -> list[str]:
    role = "leader" if member["id"] == leader_id else "learner" if member["learner"] else "voter"
    versions = member.get("supported_versions")
    shown = f"{versions['min']} to {versions['max']}" if versions else ""
    remark = f"its disk is outdated, so it has no vote: dss member replace {member['id']}" if member.get("outdated") else ""
    return [member["id"], member["url"], role, "yes" if member["up"] else "no", shown, remark]


async def _replace(cluster: Cluster, terminal: Terminal, node_id: str, address: str) -> None:
    tell = terminal.say if terminal.is_json else terminal.write
    member = await _member(cluster, node_id)
    if member is not None and not member["learner"]:
        address = address or member["url"]
        await cluster.call("raft.remove_member", id=node_id)
        tell(f"{node_id} is removed; its old data has no vote any longer")
        member = None
    if member is None:
        if not address:
            raise CommandFailed(f"{node_id} is not a member now. Say where the new node is: --address http://HOST:PORT")
        await cluster.call("raft.add_member", id=node_id, url=address)
        tell(f"{node_id} is added as a learner at {address}; waiting until it has the log")
    said = ""
    while True:
        member = await _member(cluster, node_id)
        if member is not None and not member["learner"]:
            return
        wanted = _wanted(node_id, member)
        if wanted and wanted != said:
            terminal.say(wanted)
            said = wanted
        await asyncio.sleep(POLL_S)


def _wanted(node_id: str, member: dict[str, Any] | None) -> str:
    """What the operator has to do before the node can get the log."""
    if member is not None and not member["up"]:
        return f"{node_id} is not there: start it with an empty data directory"
    if member is not None and member["outdated"]:
        return f"{node_id} has an outdated data directory: stop it, and start it with an empty one"
    return ""


async def _member(cluster: Cluster, node_id: str) -> dict[str, Any] | None:
    """The member as the cluster sees it; None if it is not one."""
    members: list[dict[str, Any]] = (await cluster.call("raft.status"))["members"]
    if not members:
        raise CommandFailed("the node that was asked is new and belongs to no cluster. Ask another one: --url http://HOST:PORT")
    return next((member for member in members if member["id"] == node_id), None)
