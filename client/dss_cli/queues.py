"""Topics: publish, take, look, and repair."""

from __future__ import annotations

import textwrap
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from itertools import islice
from typing import Any

import msgspec

from dss_cli.cluster import Cluster, CommandFailed
from dss_cli.terminal import Terminal, clock_time, duration, short, size, to_json
from dss_client import AsyncMessage, WrongUse

LINES_PER_CALL = 100
#: lines of settings are at most this long
SETTINGS_WIDTH = 100
#: a node lets a call wait for at most this long
POLL_S = 20.0
#: settings of a topic that a call leaves as they are when it does not name them
STAY_UNLESS_NAMED = ("engine", "acks")
LS_HEAD = ("TOPIC", "MESSAGES", "SIZE", "PUBLISHED", "DEAD", "GROUPS", "OLDEST")
GROUPS_HEAD = ("GROUP", "READY", "DELAYED", "IN FLIGHT", "DEAD", "WAITING", "ACKED", "OLDEST")
PEEK_HEAD = ("MESSAGE", "KEY", "STATE", "ATTEMPT", "PUBLISHED (UTC)", "VALUE")


def read_value(text: str, is_text: bool) -> Any:
    """A value from the command line.

    Raises:
        WrongUse: it is not JSON.
    """
    if is_text:
        return text
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise WrongUse(f"VALUE is not JSON (use --text for plain text): {error}") from None
    return msgspec.Raw(text.strip().encode())


def read_headers(texts: Iterable[str]) -> dict[str, str] | None:
    """Headers from the command line.

    Raises:
        WrongUse: one is not NAME=TEXT.
    """
    headers = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise WrongUse(f"--header must be NAME=TEXT, not {text!r}")
        headers[name] = value
    return headers or None


async def publish(cluster: Cluster, terminal: Terminal, topic: str, value: Any, fields: Mapping[str, Any]) -> None:
    """Publish one message.

    Args:
        fields: of `queue.publish`.
    """
    dedup_id = fields.get("dedup_id") or uuid.uuid4().hex
    message = {**fields, "value": value, "dedup_id": dedup_id}
    await _publish(cluster, terminal, topic, [message], shows_duplicates=bool(fields.get("dedup_id")))


async def publish_lines(
    cluster: Cluster, terminal: Terminal, topic: str, lines: Iterable[str], is_text: bool, fields: Mapping[str, Any]
) -> None:
    """Publish every line as a message, many in one call."""
    rest = (line.rstrip("\n") for line in lines)
    while batch := list(islice(rest, LINES_PER_CALL)):
        messages = [{**fields, "value": read_value(line, is_text), "dedup_id": uuid.uuid4().hex} for line in batch]
        await _publish(cluster, terminal, topic, messages)


async def _publish(
    cluster: Cluster, terminal: Terminal, topic: str, messages: list[dict[str, Any]], shows_duplicates: bool = False
) -> None:
    # Each message has a dedup_id.
    answer = await cluster.call_again("queue.publish", topic=topic, messages=messages)
    for published in answer["messages"]:
        if terminal.is_json:
            terminal.json(published)
        else:
            terminal.write(published["msg_id"] + (" duplicate" if published["duplicate"] and shows_duplicates else ""))


async def take(
    cluster: Cluster,
    terminal: Terminal,
    topic: str,
    group: str,
    *,
    limit: int | None,
    wait: float,
    visibility: float,
    ack: bool,
    is_text: bool,
) -> None:
    """Take messages and print them; each is acked after it was printed.

    Args:
        limit: None: without a limit.
        wait: for how many seconds to wait for the next message.

    Raises:
        CommandFailed: there was no message.
    """
    count = 0
    async for message in _taken(cluster, topic, group, limit, wait, visibility):
        count += 1
        if terminal.is_json:
            terminal.json(_document(message))
        else:
            terminal.write(message.value if is_text and isinstance(message.value, str) else to_json(message.value))
        if ack:
            await message.ack()
    if count == 0:
        raise CommandFailed(f"no message of {topic} is ready for {group}")


async def _taken(
    cluster: Cluster, topic: str, group: str, limit: int | None, wait: float, visibility: float
) -> AsyncIterator[AsyncMessage]:
    count = 0
    while limit is None or count < limit:
        left_s = wait
        while True:
            messages = await cluster.client.topic(topic).consume(group, 1, min(left_s, POLL_S), visibility)
            left_s -= POLL_S
            if messages or left_s <= 0:
                break
        if not messages:
            return
        count += 1
        yield messages[0]


def _document(message: AsyncMessage) -> dict[str, Any]:
    names = ("msg_id", "value", "key", "headers", "attempt", "published_ms", "receipt")
    return {name: getattr(message, name) for name in names}


async def ls(cluster: Cluster, terminal: Terminal) -> None:
    """All topics, a line each."""
    answer = await cluster.call("queue.stats")
    if terminal.is_json:
        terminal.json(answer)
        return
    rows = [
        [
            topic["topic"],
            str(topic["messages"]),
            size(topic["bytes"]),
            str(topic["published"]),
            str(topic["dead"]),
            str(topic["group_count"]),
            duration(topic["oldest_age_ms"]) if topic["messages"] else "",
        ]
        for topic in answer["topics"]
    ]
    terminal.table(LS_HEAD, rows)
    if (more := answer["topic_count"] - len(answer["topics"])) > 0:
        terminal.write(f"and {more} more")


async def show(cluster: Cluster, terminal: Terminal, topic: str) -> None:
    """A topic with its groups and settings.

    Raises:
        CommandFailed: there is none.
    """
    answer = await cluster.call("queue.stats", topic=topic)
    if terminal.is_json:
        terminal.json(answer)
    if not answer["exists"]:
        raise CommandFailed(f"there is no topic {topic}")
    if terminal.is_json:
        return
    rows = [
        [
            group["group"],
            *(str(group[name]) for name in ("ready", "delayed", "in_flight", "dead", "waiters", "acked")),
            duration(group["oldest_age_ms"]) if group["ready"] or group["in_flight"] else "",
        ]
        for group in answer["groups"]
    ]
    terminal.table(GROUPS_HEAD, rows)
    terminal.write("")
    terminal.write(
        f"{_count(answer['messages'], 'message')}, {size(answer['bytes'])}; {answer['publish_per_second']:g} published a second"
    )
    terminal.write(_lines_of(answer["settings"]))
    if "moving_from" in answer:
        terminal.write(f"moves from {answer['moving_from']} to {answer['settings']['engine']}")
    engine = answer.get("engine")
    if engine and engine["state"] != "ready":
        terminal.write(f"all numbers are those of the log: the engine redis is {engine['state']} ({engine['detail']})")


async def peek(cluster: Cluster, terminal: Terminal, topic: str, group: str | None, dead: bool, limit: int) -> None:
    """Messages of a topic, without taking them."""
    answer = await cluster.call("queue.peek", topic=topic, group=group, dead=dead or None, limit=limit)
    if terminal.is_json:
        for message in answer["messages"]:
            terminal.json(message)
        return
    rows = [
        [
            message["msg_id"],
            message["key"],
            _state(message),
            str(message.get("attempt", "")),
            clock_time(message["published_ms"]),
            short(to_json(message["value"])),
        ]
        for message in answer["messages"]
    ]
    terminal.table(PEEK_HEAD, rows)


def _state(message: dict[str, Any]) -> str:
    if message.get("reason"):
        return f"dead: {message['reason']}"
    if message.get("delayed_for_ms"):
        return f"delayed for {duration(message['delayed_for_ms'])}"
    return str(message.get("state", ""))


async def redrive(cluster: Cluster, terminal: Terminal, topic: str, group: str, msg_id: str | None) -> None:
    """Put dead letters back into the queue."""
    answer = await cluster.call("queue.redrive", topic=topic, group=group, msg_id=msg_id)
    _tell(terminal, answer, f"{_count(answer['redriven'], 'dead letter')} put back into the queue")


async def purge(cluster: Cluster, terminal: Terminal, topic: str, dead: bool, group: str | None) -> None:
    """Delete messages."""
    answer = await cluster.call("queue.purge", topic=topic, dead=dead or None, group=group)
    _tell(terminal, answer, f"{_count(answer['purged'], 'dead letter' if dead else 'message')} deleted")


async def delete(cluster: Cluster, terminal: Terminal, topic: str) -> None:
    """Delete a topic.

    Raises:
        CommandFailed: there is none.
    """
    answer = await cluster.call("queue.topic_delete", topic=topic)
    if not answer["deleted"]:
        raise CommandFailed(f"there is no topic {topic}")
    _tell(terminal, answer, f"{topic} is deleted, with {_count(answer['purged'], 'message')}")


async def configure(cluster: Cluster, terminal: Terminal, topic: str, changes: Mapping[str, int | str]) -> None:
    """Change settings of a topic, and leave the others as they are."""
    settings: dict[str, Any] = (await cluster.call("queue.stats", topic=topic)).get("settings") or {}
    for name in STAY_UNLESS_NAMED:
        settings.pop(name, None)
    answer = await cluster.call("queue.topic", **{**settings, **changes, "topic": topic})
    shown = {name: value for name, value in answer.items() if name not in ("ok", "index", "topic")}
    _tell(terminal, answer, _lines_of(shown, f"{topic}: "))


async def add_group(cluster: Cluster, terminal: Terminal, topic: str, group: str, start: str | None, msg_id: str | None) -> None:
    """Create a group before it consumes."""
    answer = await cluster.call("queue.group", topic=topic, group=group, start=start, msg_id=msg_id)
    done = "is created" if answer["created"] else "exists already"
    _tell(terminal, answer, f"{group} {done}, with {_count(answer['pending'], 'message')} to finish")


async def delete_group(cluster: Cluster, terminal: Terminal, topic: str, group: str) -> None:
    """Delete a group with its dead letters.

    Raises:
        CommandFailed: there is none.
    """
    answer = await cluster.call("queue.group_delete", topic=topic, group=group)
    if not answer["deleted"]:
        raise CommandFailed(f"{topic} has no group {group}")
    _tell(terminal, answer, f"{group} is deleted")


def _lines_of(settings: Mapping[str, Any], head: str = "") -> str:
    text = head + "  ".join(f"{name}={value}" for name, value in settings.items())
    return textwrap.fill(text, SETTINGS_WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _tell(terminal: Terminal, answer: dict[str, Any], text: str) -> None:
    if terminal.is_json:
        terminal.json(answer)
    else:
        terminal.write(text)


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
