"""`dss queue`."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import click

from dss_cli.commands.common import DssGroup, Seconds, confirm, in_cluster, yes_option
from dss_cli.terminal import Terminal

if TYPE_CHECKING:
    from dss_cli.cluster import Cluster


@click.group(cls=DssGroup)
def queue() -> None:
    """Publish and consume messages; look at topics and repair them."""


@queue.command("publish")
@click.argument("topic")
@click.argument("value", required=False)
@click.option(
    "--key", default="", show_default=False, metavar="KEY", help="Routing key: messages with the same key stay in order."
)
@click.option("--delay", type=Seconds(), default=0, metavar="SECONDS", help="Hide the message for this time.")
@click.option("--dedup-id", metavar="ID", help="A message with the same id is not stored again.")
@click.option("--header", multiple=True, metavar="NAME=TEXT", help="Header of the message; repeat it.")
@click.option("--text", is_flag=True, help="VALUE is plain text, not JSON.")
@click.option("--lines", is_flag=True, help="Every line of standard input is a message.")
@in_cluster
async def queue_publish(
    cluster: Cluster,
    terminal: Terminal,
    topic: str,
    value: str | None,
    key: str,
    delay: float,
    dedup_id: str | None,
    header: tuple[str, ...],
    text: bool,
    lines: bool,
) -> None:
    """Publish a message to TOPIC and print its id.

    VALUE is JSON; without it, standard input is read.

    \b
    Example:
      dss queue publish orders '{"order": 42}' --key customer-7
    """
    from dss_cli import queues

    headers = queues.read_headers(header)
    fields = {"key": key, "delay_ms": round(delay * 1000), "dedup_id": dedup_id, "headers": headers}
    if lines:
        if value is not None or dedup_id:
            raise click.UsageError("--lines reads messages from standard input and cannot be combined with VALUE or --dedup-id.")
        await queues.publish_lines(cluster, terminal, topic, sys.stdin, text, fields)
        return
    read = queues.read_value(sys.stdin.read() if value is None else value, text)
    await queues.publish(cluster, terminal, topic, read, fields)


@queue.command("consume")
@click.argument("topic")
@click.option("--group", required=True, metavar="GROUP", help="Consumer group; each group gets every message.")
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="End after this many messages. Default without COMMAND: 1."
)
@click.option("--follow", "-f", is_flag=True, help="Without COMMAND: go on until interrupted.")
@click.option(
    "--wait",
    type=Seconds(),
    default=0,
    metavar="SECONDS",
    help="Without COMMAND: how long to wait for the next message.",
)
@click.option("--no-ack", is_flag=True, help="Without COMMAND: do not acknowledge; the messages come back after --visibility.")
@click.option(
    "--visibility",
    type=Seconds(zero=False),
    default=15,
    metavar="SECONDS",
    help="For how long a message is hidden from the group. While COMMAND runs, it is extended.",
)
@click.option("--concurrency", type=click.IntRange(1, 1000), default=1, metavar="N", help="Commands that run at the same time.")
@click.option("--backoff", type=Seconds(), default=1, metavar="SECONDS", help="Delay after a failure, doubled each time.")
@click.option("--backoff-max", type=Seconds(), default=300, metavar="SECONDS", help="Longest delay after a failure.")
@click.option("--grace", type=Seconds(), default=30, metavar="SECONDS", help="Time for running commands after SIGTERM.")
@click.option("--until-empty", is_flag=True, help="End when no message is ready.")
@click.option("--text", is_flag=True, help="Print a JSON string, or pass it to the command, as plain text.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND…]")
@in_cluster
async def queue_consume(
    cluster: Cluster,
    terminal: Terminal,
    topic: str,
    group: str,
    limit: int | None,
    follow: bool,
    wait: float,
    no_ack: bool,
    visibility: float,
    concurrency: int,
    backoff: float,
    backoff_max: float,
    grace: float,
    until_empty: bool,
    text: bool,
    command: tuple[str, ...],
) -> None:
    """Take messages of TOPIC: print them, or run COMMAND for each.

    Without COMMAND, each message is printed and then acknowledged. With --json, it is printed with its key, headers and receipt.

    COMMAND gets the value as JSON on its standard input, and DSS_MESSAGE_ID, _TOPIC, _GROUP, _KEY, _ATTEMPT and _HEADERS in its
    environment. Exit status 0 acknowledges the message; otherwise it is delivered again later. SIGTERM and Ctrl-C let running commands
    finish; a second one ends them.

    \b
    Examples:
      dss queue consume orders --group billing
      dss queue consume orders --group billing --concurrency 4 -- ./send-invoice --now
    """
    if command:
        _refuse_with_command(follow, wait, no_ack)
        await _run_command(
            cluster,
            terminal,
            topic=topic,
            group=group,
            command=command,
            concurrency=concurrency,
            visibility_ms=round(visibility * 1000),
            backoff_ms=round(backoff * 1000),
            backoff_ms_max=round(backoff_max * 1000),
            grace_s=grace,
            limit=limit or 0,
            until_empty=until_empty,
            text=text,
        )
        return
    from dss_cli import queues

    endless = follow or until_empty
    await queues.take(
        cluster,
        terminal,
        topic,
        group,
        limit=limit if limit is not None or endless else 1,
        wait=float("inf") if follow else wait,
        visibility=visibility,
        ack=not no_ack,
        is_text=text,
    )


def _refuse_with_command(follow: bool, wait: float, no_ack: bool) -> None:
    for name, given in (("--follow", follow), ("--wait", wait), ("--no-ack", no_ack)):
        if given:
            raise click.UsageError(f"{name} cannot be combined with a command.")


async def _run_command(cluster: Cluster, terminal: Terminal, **options: object) -> None:
    from dss_cli.consume import CommandWorker, Options

    command = options["command"]
    assert isinstance(command, tuple)
    if shutil.which(command[0]) is None:
        raise click.UsageError(f"Command not found: {command[0]!r}.")
    worker = CommandWorker(cluster, Options(**options), terminal.say)  # type: ignore[arg-type]
    await worker.run()
    if terminal.is_json:
        terminal.json({"done": worker.done, "failed": worker.failed})
    else:
        terminal.say(f"{worker.done} done, {worker.failed} failed")


@queue.command("ls")
@in_cluster
async def queue_ls(cluster: Cluster, terminal: Terminal) -> None:
    """List the topics."""
    from dss_cli import queues

    await queues.ls(cluster, terminal)


@queue.command("show")
@click.argument("topic")
@in_cluster
async def queue_show(cluster: Cluster, terminal: Terminal, topic: str) -> None:
    """Show the groups of TOPIC, and its settings."""
    from dss_cli import queues

    await queues.show(cluster, terminal, topic)


@queue.command("peek")
@click.argument("topic")
@click.option("--group", metavar="GROUP", help="Only what this group has not finished.")
@click.option("--dead", is_flag=True, help="The dead letters of the group.")
@click.option("--limit", type=click.IntRange(1, 1000), default=10, metavar="N", help="At most this many.")
@in_cluster
async def queue_peek(cluster: Cluster, terminal: Terminal, topic: str, group: str | None, dead: bool, limit: int) -> None:
    """Show messages of TOPIC without taking them.

    With --json, each message is a line.
    """
    from dss_cli import queues

    if dead and not group:
        raise click.UsageError("--dead needs --group: each group has its own dead letters.")
    await queues.peek(cluster, terminal, topic, group, dead, limit)


@queue.command("redrive")
@click.argument("topic")
@click.option("--group", required=True, metavar="GROUP", help="The group whose dead letters are put back.")
@click.option("--msg-id", metavar="ID", help="Only this one.")
@in_cluster
async def queue_redrive(cluster: Cluster, terminal: Terminal, topic: str, group: str, msg_id: str | None) -> None:
    """Put dead letters of TOPIC back into the queue."""
    from dss_cli import queues

    await queues.redrive(cluster, terminal, topic, group, msg_id)


@queue.command("purge")
@click.argument("topic")
@click.option("--dead", is_flag=True, help="Delete dead letters instead of messages.")
@click.option("--group", metavar="GROUP", help="With --dead: only those of this group.")
@yes_option
@in_cluster
async def queue_purge(cluster: Cluster, terminal: Terminal, topic: str, dead: bool, group: str | None, yes: bool) -> None:
    """Delete all messages of TOPIC, for every group."""
    from dss_cli import queues

    if group and not dead:
        raise click.UsageError("--group needs --dead: messages are deleted for all groups.")
    confirm(yes, f"Delete all {'dead letters' if dead else 'messages'} of {topic}?")
    await queues.purge(cluster, terminal, topic, dead, group)


@queue.command("set")
@click.argument("topic")
@click.option(
    "--max-attempts", type=int, metavar="N", help="Deliveries to a group before a message becomes a dead letter; 0: no limit."
)
@click.option("--dead-letter-topic", metavar="TOPIC", help="Where dead letters move; '': they stay with their group.")
@click.option("--backoff-ms", type=int, metavar="MS", help="Delay before the second delivery, doubled for each further one.")
@click.option(
    "--retention-ms", type=int, metavar="MS", help="How long a message is kept for groups that have not taken it; 0: no limit."
)
@click.option("--dedup-window-ms", type=int, metavar="MS", help="How long a dedup id is remembered.")
@click.option("--keep-ms", type=int, metavar="MS", help="How long a finished message stays for groups that come later.")
@click.option("--max-bytes", type=int, metavar="BYTES", help="How much the topic may hold.")
@click.option("--engine", type=click.Choice(["raft", "redis"]), help="Where the messages are. Another engine moves the topic.")
@click.option(
    "--acks", type=click.Choice(["primary", "replica", "fsync"]), help="With redis: where a change must be before it is answered."
)
@in_cluster
async def queue_set(cluster: Cluster, terminal: Terminal, topic: str, **settings: int | str | None) -> None:
    """Change settings of TOPIC. Those that are not named stay as they are.

    Creates the topic if there is none.
    """
    from dss_cli import queues

    await queues.configure(cluster, terminal, topic, {name: value for name, value in settings.items() if value is not None})


@queue.command("delete")
@click.argument("topic")
@yes_option
@in_cluster
async def queue_delete(cluster: Cluster, terminal: Terminal, topic: str, yes: bool) -> None:
    """Delete TOPIC with everything in it.

    With its messages, dead letters, groups and settings.
    """
    from dss_cli import queues

    confirm(yes, f"Delete {topic} with everything in it?")
    await queues.delete(cluster, terminal, topic)


@queue.command("add-group")
@click.argument("topic")
@click.argument("group")
@click.option(
    "--start", type=click.Choice(["first", "now"]), help="Begin with the oldest message that is kept (default), or now."
)
@click.option("--msg-id", metavar="ID", help="Begin with this message.")
@in_cluster
async def queue_add_group(
    cluster: Cluster, terminal: Terminal, topic: str, group: str, start: str | None, msg_id: str | None
) -> None:
    """Create GROUP before it consumes."""
    from dss_cli import queues

    await queues.add_group(cluster, terminal, topic, group, start, msg_id)


@queue.command("delete-group")
@click.argument("topic")
@click.argument("group")
@yes_option
@in_cluster
async def queue_delete_group(cluster: Cluster, terminal: Terminal, topic: str, group: str, yes: bool) -> None:
    """Delete GROUP of TOPIC with its dead letters."""
    from dss_cli import queues

    confirm(yes, f"Delete the group {group} of {topic} with its dead letters?")
    await queues.delete_group(cluster, terminal, topic, group)
