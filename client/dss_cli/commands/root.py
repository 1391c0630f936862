"""`dss` itself, with the commands that belong to no group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem, get_completion_class

from dss_cli.commands.cache import cache
from dss_cli.commands.common import DssRoot, Seconds, in_cluster
from dss_cli.commands.lock import lock
from dss_cli.commands.operate import audit, leader, limits, log, member, snapshot, token, user
from dss_cli.commands.queue import queue
from dss_cli.terminal import Terminal

if TYPE_CHECKING:
    from dss_cli.cluster import Cluster

COMPLETION_VARIABLE = "_DSS_COMPLETE"


@click.group(cls=DssRoot)
@click.version_option(package_name="dss-client", message="dss %(version)s")
def dss() -> None:
    """Locks, queues, the cache and the nodes of a Distributed Sync System.

    \b
    Exit status:
      0  done
      1  refused, or what was asked for is not there
      2  wrong usage
      3  no node answered in time
      4  the answer was lost: the call may have taken effect
    `dss lock run` has its own.
    """


@dss.command("status")
@click.option("--watch", "-w", is_flag=True, help="Repeat it until interrupted.")
@click.option("--interval", type=Seconds(zero=False), default=2, metavar="SECONDS", help="With --watch: time between two reads.")
@in_cluster
async def status(cluster: Cluster, terminal: Terminal, watch: bool, interval: float) -> None:
    """Show the members, the leader, and the progress of each node.

    With --json, each node has its whole answer to `raft.status`. With --json and --watch, a line is printed each time.
    """
    from dss_cli import status as states

    await (states.watch(cluster, terminal, interval) if watch else states.status(cluster, terminal))


@dss.command("ready")
@click.option("--wait", type=Seconds(), default=0, metavar="SECONDS", help="How long to wait until it is.")
@in_cluster
async def ready(cluster: Cluster, terminal: Terminal, wait: float) -> None:
    """Check whether the first node would answer a write now.

    The first node is the one at the first address. Exit status 1 or 3: it would not.
    """
    from dss_cli import calls

    await calls.ready(cluster, terminal, wait)


for group in (lock, queue, cache, member, leader, snapshot, token, user, audit, log, limits):
    dss.add_command(group)


def _operations(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from dss_client.operations import OPERATIONS

    return [CompletionItem(name) for name in OPERATIONS if name.startswith(incomplete)]


@dss.command("call")
@click.argument("operation", shell_complete=_operations)
@click.argument("fields", nargs=-1, metavar="[NAME=TEXT | NAME:=JSON]…")
@in_cluster
async def call(cluster: Cluster, terminal: Terminal, operation: str, fields: tuple[str, ...]) -> None:
    """Make any call of the API, and print its answer as JSON.

    OPERATION is its name on WebSocket. A number or a boolean may be given as text.

    \b
    Example:
      dss call queue.nack topic=orders group=billing msg_id=10-0 dead=true
    """
    from dss_cli import calls

    await calls.call(cluster, terminal, operation, calls.read_fields(fields))


@dss.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script for completion in a shell.

    \b
    Install it with one of:
      dss completion bash > ~/.local/share/bash-completion/completions/dss
      dss completion zsh > "${fpath[1]}/_dss"
      dss completion fish > ~/.config/fish/completions/dss.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(dss, {}, "dss", COMPLETION_VARIABLE).source())
