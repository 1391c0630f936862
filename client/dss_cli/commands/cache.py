"""`dss cache`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from dss_cli.commands.common import DssGroup, Seconds, confirm, in_cluster, yes_option
from dss_cli.terminal import Terminal

if TYPE_CHECKING:
    from dss_cli.cluster import Cluster


@click.group(cls=DssGroup)
def cache() -> None:
    """Read and write values; see where they are cached and why."""


@cache.command("get")
@click.argument("key")
@click.option("--text", is_flag=True, help="Print a JSON string as plain text.")
@in_cluster
async def cache_get(cluster: Cluster, terminal: Terminal, key: str, text: bool) -> None:
    """Print the value of KEY as JSON. Exit status 1: it has none."""
    from dss_cli import caches

    await caches.get(cluster, terminal, key, text)


@cache.command("put")
@click.argument("key")
@click.argument("value", required=False)
@click.option("--ttl", type=Seconds(zero=False), metavar="SECONDS", help="The value expires after this time. Default: it stays.")
@click.option(
    "--if-version", type=click.IntRange(min=0), metavar="N", help="Only if this is the key's version; 0: if it has no value."
)
@click.option("--new", is_flag=True, help="Only if the key has no value.")
@click.option("--text", is_flag=True, help="VALUE is plain text, not JSON.")
@in_cluster
async def cache_put(
    cluster: Cluster,
    terminal: Terminal,
    key: str,
    value: str | None,
    ttl: float | None,
    if_version: int | None,
    new: bool,
    text: bool,
) -> None:
    """Store VALUE, which is JSON, at KEY and print its version.

    Without VALUE, standard input is read.
    """
    from dss_cli import caches, queues

    if new and if_version is not None:
        raise click.UsageError("--new cannot be combined with --if-version.")
    read = queues.read_value(sys.stdin.read() if value is None else value, text)
    await caches.put(cluster, terminal, key, read, ttl, if_version, new)


@cache.command("incr", context_settings={"ignore_unknown_options": True})
@click.argument("key")
@click.argument("delta", type=int, default=1)
@click.option("--ttl", type=Seconds(zero=False), metavar="SECONDS", help="The value expires after this time. Default: as before.")
@in_cluster
async def cache_incr(cluster: Cluster, terminal: Terminal, key: str, delta: int, ttl: float | None) -> None:
    """Add DELTA (default 1) to the integer at KEY and print the sum."""
    from dss_cli import caches

    await caches.incr(cluster, terminal, key, delta, ttl)


@cache.command("delete")
@click.argument("key")
@click.option("--if-version", type=click.IntRange(min=0), metavar="N", help="Only this version.")
@in_cluster
async def cache_delete(cluster: Cluster, terminal: Terminal, key: str, if_version: int | None) -> None:
    """Delete the value of KEY. Exit status 1: it has none."""
    from dss_cli import caches

    await caches.delete(cluster, terminal, key, if_version)


@cache.command("trace")
@click.argument("key")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, metavar="N", help="At most this many.")
@in_cluster
async def cache_trace(cluster: Cluster, terminal: Terminal, key: str, limit: int) -> None:
    """Show the last transitions of KEY's lines on every node.

    The latest comes first.
    """
    from dss_cli import caches

    await caches.trace(cluster, terminal, key, limit)


@cache.command("lines")
@click.argument("key", required=False)
@click.option("--limit", type=click.IntRange(1, 1000), default=100, metavar="N", help="At most this many.")
@in_cluster
async def cache_lines(cluster: Cluster, terminal: Terminal, key: str | None, limit: int) -> None:
    """Show every node's line for KEY.

    Without KEY, the lines of one node are shown, most recently used first.
    """
    from dss_cli import caches

    await caches.lines(cluster, terminal, key, limit)


@cache.command("evict")
@click.argument("key")
@in_cluster
async def cache_evict(cluster: Cluster, terminal: Terminal, key: str) -> None:
    """Have the node at the first address give up its line for KEY. The value stays."""
    from dss_cli import caches

    await caches.evict(cluster, terminal, key)


@cache.command("stats")
@in_cluster
async def cache_stats(cluster: Cluster, terminal: Terminal) -> None:
    """Show what the cache of each node has done since the node started."""
    from dss_cli import caches

    await caches.stats(cluster, terminal)


@cache.command("demo")
@click.argument("key")
@yes_option
@in_cluster
async def cache_demo(cluster: Cluster, terminal: Terminal, key: str, yes: bool) -> None:
    """Show the line of KEY on every node while it is read and written. Overwrites its value."""
    from dss_cli import caches

    confirm(yes, f"Overwrite the value of {key}?")
    await caches.demo(cluster, terminal, key)
