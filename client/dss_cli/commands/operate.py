"""`dss member`, `leader`, `snapshot`, `token`, `user`, `audit`, `log` and `limits`: for those who operate the cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dss_cli.commands.common import Common, DssCommand, DssGroup, in_cluster
from dss_cli.terminal import Terminal

if TYPE_CHECKING:
    from dss_cli.cluster import Cluster

# ---------------------------------------------------------------------- member


@click.group(cls=DssGroup)
def member() -> None:
    """List, add, remove and replace members."""


@member.command("ls")
@in_cluster
async def member_ls(cluster: Cluster, terminal: Terminal) -> None:
    """List the members as one node sees them."""
    from dss_cli import members

    await members.ls(cluster, terminal)


@member.command("add")
@click.argument("id")
@click.argument("address")
@in_cluster
async def member_add(cluster: Cluster, terminal: Terminal, id: str, address: str) -> None:
    """Add the node ID, which was started with DSS_JOIN=true.

    ADDRESS is that of its service, such as http://10.0.0.4:8104. The node is a learner until it has caught up.
    """
    from dss_cli import members

    await members.add(cluster, terminal, id, address)


@member.command("remove")
@click.argument("id")
@click.option("--force", is_flag=True, help="Remove it even if no spare voter is left then. Needs --reason.")
@click.option("--reason", default="", show_default=False, metavar="TEXT", help="Why it is forced, for the log.")
@in_cluster
async def member_remove(cluster: Cluster, terminal: Terminal, id: str, force: bool, reason: str) -> None:
    """Remove the node ID permanently; its process stops.

    If its disk is lost, use `dss member replace`.
    """
    from dss_cli import members

    if force and not reason:
        raise click.UsageError("--force needs --reason.")
    await members.remove(cluster, terminal, id, force=force, reason=reason)


@member.command("replace")
@click.argument("id")
@click.option(
    "--address", default="", show_default=False, metavar="URL", help="The service address of the new node, if it is another one."
)
@in_cluster
async def member_replace(cluster: Cluster, terminal: Terminal, id: str, address: str) -> None:
    """Replace the node ID, whose data is lost.

    It is removed, and the empty node that takes its place is added under the same name. Waits until that node has its vote. The
    command can be repeated: it continues where it stopped.
    """
    from dss_cli import members

    await members.replace(cluster, terminal, id, address)


# ---------------------------------------------------------------------- leader


@click.group(cls=DssGroup)
def leader() -> None:
    """Show the leader, or choose another one."""


@leader.command("show")
@in_cluster
async def leader_show(cluster: Cluster, terminal: Terminal) -> None:
    """Print the name of the leader. Exit status 1: none is known."""
    from dss_cli import members

    await members.leader(cluster, terminal)


@leader.command("transfer")
@click.argument("id", default="")
@in_cluster
async def leader_transfer(cluster: Cluster, terminal: Terminal, id: str) -> None:
    """Have the leader hand over to another node.

    Without ID, the node that is most up to date is chosen.
    """
    from dss_cli import members

    await members.transfer(cluster, terminal, id)


@leader.command("election")
@click.option("--force", is_flag=True, help="Raise the term even if a leader is alive.")
@in_cluster
async def leader_election(cluster: Cluster, terminal: Terminal, force: bool) -> None:
    """Have the node at the first address campaign.

    Without --force, a live leader stays.
    """
    from dss_cli import members

    await members.election(cluster, terminal, force=force)


# -------------------------------------------------------------------- snapshot


@click.group(cls=DssGroup)
def snapshot() -> None:
    """Save the state of a cluster to a file, and check such a file.

    A new cluster is started from a file on the machine of its node, with `dss-node snapshot restore`.
    """


@snapshot.command("save")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--local", is_flag=True, help="Save what one node has applied; this works without a majority, too.")
@in_cluster
async def snapshot_save(cluster: Cluster, terminal: Terminal, file: Path, local: bool) -> None:
    """Save the state of a running cluster to FILE.

    It contains every value and every lock, so only you may read the file.
    """
    from dss_cli import snapshots

    await snapshots.save(cluster, terminal, file, local=local)


@snapshot.command("info")
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_context
def snapshot_info(context: click.Context, file: Path) -> None:
    """Check FILE, and print what it contains. No cluster is needed."""
    from dss_cli import snapshots

    snapshots.info(context.ensure_object(Common).terminal(), file)


# ----------------------------------------------------------------------- token


@click.group(cls=DssGroup)
def token() -> None:
    """Make, list, rotate and revoke tokens.

    On a node's machine, with its settings, no token is needed for this: the command proves that it has the cluster's secret.
    """


@token.command("create")
@click.argument("name")
@click.option(
    "--scope", multiple=True, required=True, metavar="SCOPE", help="What it may do, such as `locks:orders/`; repeat it."
)
@click.option(
    "--expires", default="", show_default=False, metavar="TIME", help="When it ends: 90d, 12h or 30m from now. Default: never."
)
@in_cluster
async def token_create(cluster: Cluster, terminal: Terminal, name: str, scope: tuple[str, ...], expires: str) -> None:
    """Make a token, and print it once.

    NAME is for people: who or what uses it.
    """
    from dss_cli import tokens

    await tokens.create(cluster, terminal, name, scope, expires)


@token.command("ls")
@in_cluster
async def token_ls(cluster: Cluster, terminal: Terminal) -> None:
    """List the tokens, without their secrets."""
    from dss_cli import tokens

    await tokens.ls(cluster, terminal)


@token.command("rotate")
@click.argument("id")
@click.option(
    "--overlap",
    default="",
    show_default=False,
    metavar="TIME",
    help="How long the present secret stays valid, such as 1h. Default: not.",
)
@in_cluster
async def token_rotate(cluster: Cluster, terminal: Terminal, id: str, overlap: str) -> None:
    """Give the token ID another secret, and print it once."""
    from dss_cli import tokens

    await tokens.rotate(cluster, terminal, id, overlap)


@token.command("revoke")
@click.argument("id")
@in_cluster
async def token_revoke(cluster: Cluster, terminal: Terminal, id: str) -> None:
    """End the token ID now, on every node."""
    from dss_cli import tokens

    await tokens.revoke(cluster, terminal, id)


# ------------------------------------------------------------------------ user


@click.group(cls=DssGroup)
def user() -> None:
    """Make, list, change, sign out and delete users of the pages.

    On a node's machine, with its settings, no token is needed for this: the command proves that it has the cluster's secret.
    """


_group = click.Choice(["viewer", "operator", "admin"])
_generate = click.option("--generate", is_flag=True, help="Make a random password, and print it once.")


@user.command("create")
@click.argument("name")
@click.option("--group", type=_group, required=True, help="What the user may do.")
@_generate
@in_cluster
async def user_create(cluster: Cluster, terminal: Terminal, name: str, group: str, generate: bool) -> None:
    """Make the user NAME.

    Asks for the password. Without a terminal, it is the first line of the standard input.
    """
    from dss_cli import users

    await users.create(cluster, terminal, name, group, users.new_password(generate), generate)


@user.command("ls")
@in_cluster
async def user_ls(cluster: Cluster, terminal: Terminal) -> None:
    """List the users."""
    from dss_cli import users

    await users.ls(cluster, terminal)


@user.command("change")
@click.argument("name")
@click.option("--group", type=_group, default=None, help="Another group.")
@click.option("--disable/--enable", "disabled", default=None, help="Allow no login, or allow it again.")
@in_cluster
async def user_change(cluster: Cluster, terminal: Terminal, name: str, group: str | None, disabled: bool | None) -> None:
    """Change the user NAME. Ends all sessions."""
    from dss_cli import users

    await users.change(cluster, terminal, name, group, None if disabled is None else not disabled)


@user.command("password")
@click.argument("name")
@_generate
@in_cluster
async def user_password(cluster: Cluster, terminal: Terminal, name: str, generate: bool) -> None:
    """Give the user NAME another password. Ends all sessions.

    Asks for the password. Without a terminal, it is the first line of the standard input.
    """
    from dss_cli import users

    await users.password(cluster, terminal, name, users.new_password(generate), generate)


@user.command("sign-out")
@click.argument("name")
@in_cluster
async def user_sign_out(cluster: Cluster, terminal: Terminal, name: str) -> None:
    """End all sessions of the user NAME, on every node."""
    from dss_cli import users

    await users.sign_out(cluster, terminal, name)


@user.command("rm")
@click.argument("name")
@in_cluster
async def user_rm(cluster: Cluster, terminal: Terminal, name: str) -> None:
    """Delete the user NAME."""
    from dss_cli import users

    await users.rm(cluster, terminal, name)


# ----------------------------------------------------------------------- audit


@click.command("audit", cls=DssCommand)
@click.option(
    "--after",
    type=click.IntRange(min=0),
    default=0,
    metavar="INDEX",
    help="Only records after this index, to continue an export.",
)
@in_cluster
async def audit(cluster: Cluster, terminal: Terminal, after: int) -> None:
    """Show what operators did, who they were, and from where.

    The oldest comes first. With --json, each record is a line.
    """
    from dss_cli import audit as trail

    await trail.ls(cluster, terminal, after)


# ------------------------------------------------------------------ log, limits


@click.group(cls=DssGroup)
def log() -> None:
    """Show an entry of the replicated log, or skip it."""


@log.command("show")
@click.argument("index", type=click.IntRange(min=1))
@in_cluster
async def log_show(cluster: Cluster, terminal: Terminal, index: int) -> None:
    """Print the entry INDEX as a node stores it."""
    from dss_cli import replicated_log

    await replicated_log.show(cluster, terminal, index)


@log.command("skip")
@click.argument("index", type=click.IntRange(min=1))
@click.option("--reason", required=True, metavar="TEXT", help="For the log.")
@in_cluster
async def log_skip(cluster: Cluster, terminal: Terminal, index: int, reason: str) -> None:
    """Have every node give the entry INDEX no effect.

    For an entry that no node can apply. Its calls are refused.
    """
    from dss_cli import replicated_log

    await replicated_log.skip(cluster, terminal, index, reason)


@click.group(cls=DssGroup)
def limits() -> None:
    """Show and change the limits of the replicated state."""


@limits.command("ls")
@in_cluster
async def limits_ls(cluster: Cluster, terminal: Terminal) -> None:
    """List the limits, and how much of each is in use."""
    from dss_cli import replicated_log

    await replicated_log.limits(cluster, terminal)


@limits.command("set")
@click.argument("limits", nargs=-1, required=True, metavar="NAME=NUMBER…")
@in_cluster
async def limits_set(cluster: Cluster, terminal: Terminal, limits: tuple[str, ...]) -> None:
    """Change limits on all nodes: all of them, or none.

    \b
    Example:
      dss limits set queue_bytes_max=268435456 cache_keys_max=100000
    """
    from dss_cli import replicated_log

    maxima = {}
    for text in limits:
        name, _, number = text.partition("=")
        if not name or not number.isdigit():
            raise click.UsageError(f"A limit must be NAME=NUMBER, not {text!r}.")
        maxima[name] = int(number)
    await replicated_log.set_limits(cluster, terminal, maxima)
