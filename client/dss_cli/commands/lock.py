"""`dss lock`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dss_cli.commands.common import DssGroup, Seconds, command_argument, in_cluster
from dss_cli.terminal import Terminal

if TYPE_CHECKING:
    from dss_cli.cluster import Cluster


@click.group(cls=DssGroup)
def lock() -> None:
    """Run a command under a lock; see who holds locks and why."""


@lock.command("run")
@click.argument("key")
@click.option("--also", multiple=True, metavar="KEY", help="A further key, locked in the same step; repeat it.")
@click.option(
    "--ttl",
    type=Seconds(zero=False),
    default=30,
    metavar="SECONDS",
    help="The lease, renewed at a third of it.",
)
@click.option("--wait", type=Seconds(), metavar="SECONDS", help="How long to wait for the lock. Default: no limit.")
@click.option("--shared", is_flag=True, help="Others may hold it in this mode at the same time.")
@click.option(
    "--lock-delay",
    type=Seconds(60),
    default=0,
    metavar="SECONDS",
    help="If the lock is lost, no client gets it for this long.",
)
@click.option(
    "--kill-after",
    type=Seconds(),
    default=5,
    metavar="SECONDS",
    help="When the lock is lost: time between SIGTERM and SIGKILL.",
)
@click.option("--foreground", is_flag=True, help="The command may use the terminal; signals reach only itself, not its children.")
@command_argument
@in_cluster
async def lock_run(
    cluster: Cluster,
    terminal: Terminal,
    key: str,
    also: tuple[str, ...],
    ttl: float,
    wait: float | None,
    shared: bool,
    lock_delay: float,
    kill_after: float,
    foreground: bool,
    command: tuple[str, ...],
) -> int:
    """Run COMMAND while the lock KEY is held.

    The lock is renewed while the command runs, and released when it ends. If the lock is lost, the command and everything that it has
    started get SIGTERM, and SIGKILL after --kill-after. SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on to them.

    The command finds the fencing token in DSS_FENCING_TOKEN and the key in DSS_LOCK_KEY. With --also, DSS_FENCING_TOKENS has the token of
    each key as JSON. A resource that refuses smaller tokens is safe even if this process is killed and the command goes on.

    \b
    Exit status: that of the command; 128 + N if the signal N ended it, or
      123  the lock was lost before the command ended
      124  the lock was not acquired in time
      125  no node answered, or the cluster refused the lock; the command was not run
      126  the command cannot be run
      127  the command was not found

    \b
    Example:
      dss lock run --wait 60 nightly-report -- ./make-report --all
    """
    from dss_cli import lock_run as runs

    options = runs.Options(
        keys=[key, *also],
        command=command,
        ttl=ttl,
        wait=wait,
        shared=shared,
        lock_delay=lock_delay,
        kill_after=kill_after,
        foreground=foreground,
    )
    return await runs.run(cluster, terminal, options)


@lock.command("ls")
@click.argument("prefix", default="")
@click.option("--watch", "-w", is_flag=True, help="Print each change as it happens, until interrupted.")
@in_cluster
async def lock_ls(cluster: Cluster, terminal: Terminal, prefix: str, watch: bool) -> None:
    """List the locks that are held or waited for.

    With PREFIX, only those whose keys begin with it. With --json and --watch, each event of `locks.watch` is a line.
    """
    from dss_cli import locks

    await (locks.watch if watch else locks.ls)(cluster, terminal, prefix)


@lock.command("why")
@click.argument("key")
@click.option("--client", metavar="NAME", help="Show why this client waits: the chain of clients that it waits for.")
@in_cluster
async def lock_why(cluster: Cluster, terminal: Terminal, key: str, client: str | None) -> None:
    """Show who holds KEY, and who waits for it.

    If a holder itself waits for another lock, that is shown, too.
    """
    from dss_cli import locks

    await locks.why(cluster, terminal, key, client)


@lock.command("acquire")
@click.argument("keys", nargs=-1, required=True, metavar="KEY…")
@click.option("--client", required=True, metavar="NAME", help="The owner. It keeps the lock when this command has ended.")
@click.option("--ttl", type=Seconds(), default=30, metavar="SECONDS", help="The lease; 0: until it is released.")
@click.option("--wait", type=Seconds(20), default=0, metavar="SECONDS", help="How long to wait for it, at most 20.")
@click.option("--shared", is_flag=True, help="Others may hold it in this mode at the same time.")
@in_cluster
async def lock_acquire(
    cluster: Cluster, terminal: Terminal, keys: tuple[str, ...], client: str, ttl: float, wait: float, shared: bool
) -> None:
    """Acquire a lock for a client. Nothing renews it: see `dss lock run`."""
    from dss_cli import locks

    await locks.acquire(cluster, terminal, list(keys), client, ttl=ttl or None, wait=wait, shared=shared)


@lock.command("release")
@click.argument("key")
@click.option("--client", metavar="NAME", help="The owner. With --force, take it from this one only.")
@click.option("--fencing-token", type=int, metavar="N", help="Release only the grant with this token.")
@click.option("--force", is_flag=True, help="Take it away from any holder. Needs --reason.")
@click.option("--reason", metavar="TEXT", help="Why it is forced; `dss lock audit` shows it.")
@click.option("--by", metavar="NAME", help="Who decided that, if the cluster does not know who you are. Default: your user name.")
@in_cluster
async def lock_release(
    cluster: Cluster,
    terminal: Terminal,
    key: str,
    client: str | None,
    fencing_token: int | None,
    force: bool,
    reason: str | None,
    by: str | None,
) -> None:
    """Release what a client holds, or take a lock away.

    A holder whose lock is taken away is not asked, and may go on for a while: only a resource that refuses its fencing token is safe.
    """
    from dss_cli import locks

    if force:
        if not reason:
            raise click.UsageError("--force needs --reason.")
        await locks.force_release(cluster, terminal, key, client, fencing_token, reason, by)
        return
    if not client:
        raise click.UsageError("Say whose lock it is with --client, or take it away with --force and --reason.")
    if reason or by:
        raise click.UsageError("--reason and --by are for --force.")
    await locks.release(cluster, terminal, key, client, fencing_token)


@lock.command("audit")
@in_cluster
async def lock_audit(cluster: Cluster, terminal: Terminal) -> None:
    """List the forced releases, latest first."""
    from dss_cli import locks

    await locks.audit(cluster, terminal)
