"""The cache: values, and the state of their lines on every node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from dss_cli.cluster import Cluster, CommandFailed
from dss_cli.terminal import Terminal, clock_time, duration, size, to_json

WRITE_BACK_TIMEOUT_S = 15
#: the nodes apply a step within this time, unless one of them is stopped
SETTLE_TIMEOUT_S = 2
TRACE_HEAD = ("TIME (UTC)", "NODE", "FROM", "TO", "WHY", "VERSION")
LINES_HEAD = ("NODE", "KEY", "STATE", "VERSION", "SIZE", "AGE")
STATS_HEAD = ("NODE", "LINES", "SIZE", "HITS", "MISSES", "RATIO", "PUTS", "INVALIDATED", "EVICTED", "")
LEGEND = "M: written here, not yet in the backing store.  E: only here.  S: other nodes may have it.  I: no line."


async def get(cluster: Cluster, terminal: Terminal, key: str, is_text: bool) -> None:
    """Print the value.

    Raises:
        CommandFailed: there is none.
    """
    answer = await cluster.call("cache.get", key=key)
    if terminal.is_json:
        terminal.json(answer)
    if not answer["found"]:
        raise CommandFailed(f"{key} has no value")
    if not terminal.is_json:
        value = answer["value"]
        terminal.write(value if is_text and isinstance(value, str) else to_json(value))


async def put(
    cluster: Cluster, terminal: Terminal, key: str, value: Any, ttl: float | None, if_version: int | None, only_new: bool
) -> None:
    """Store a value."""
    ttl_ms = None if ttl is None else max(1, round(ttl * 1000))
    if only_new:
        answer = await cluster.call("cache.add", key=key, value=value, ttl_ms=ttl_ms)
    else:
        answer = await cluster.call("cache.put", key=key, value=value, ttl_ms=ttl_ms, if_version=if_version)
    _tell(terminal, answer, f"version {answer['version']}")


async def incr(cluster: Cluster, terminal: Terminal, key: str, delta: int, ttl: float | None) -> None:
    """Add to an integer, and print the sum."""
    ttl_ms = None if ttl is None else max(1, round(ttl * 1000))
    answer = await cluster.call("cache.incr", key=key, delta=delta, ttl_ms=ttl_ms)
    _tell(terminal, answer, str(answer["value"]))


async def delete(cluster: Cluster, terminal: Terminal, key: str, if_version: int | None) -> None:
    """Delete a value.

    Raises:
        CommandFailed: there is none.
    """
    answer = await cluster.call("cache.delete", key=key, if_version=if_version)
    if terminal.is_json:
        terminal.json(answer)
    if not answer["deleted"]:
        raise CommandFailed(f"{key} has no value")
    if not terminal.is_json:
        terminal.write(f"{key} is deleted")


async def trace(cluster: Cluster, terminal: Terminal, key: str, limit: int) -> None:
    """The last transitions of a key's lines on every node, latest first."""
    answer = await cluster.call("cache.trace", key=key, limit=limit)
    _say_unreachable(terminal, answer)
    if terminal.is_json:
        terminal.json(answer)
        return
    rows = [
        [clock_time(row["at_ms"]), row["node"], row["from"], row["to"], row["why"], str(row["version"])]
        for row in answer["transitions"]
    ]
    terminal.table(TRACE_HEAD, rows)


async def lines(cluster: Cluster, terminal: Terminal, key: str | None, limit: int) -> None:
    """Every node's line for a key, or the lines of one node."""
    answer = await cluster.call("cache.lines", key=key, limit=limit)
    _say_unreachable(terminal, answer)
    if terminal.is_json:
        terminal.json(answer)
        return
    rows = [
        [row["node"], row["key"], row["state"], str(row["version"] or ""), size(row["bytes"]), duration(row["age_ms"])]
        for row in answer["lines"]
    ]
    terminal.table(LINES_HEAD, rows)


async def evict(cluster: Cluster, terminal: Terminal, key: str) -> None:
    """The node at the first address gives up its line."""
    answer = await cluster.at(cluster.urls[0]).call("cache.evict", cluster.timeout_s, key=key)
    done = "is evicted" if answer["evicted"] else "has no line there"
    _tell(terminal, answer, f"{key} {done}" + (", and was written back first" if answer["written_back"] else ""))


async def stats(cluster: Cluster, terminal: Terminal) -> None:
    """What the cache of each node has done since the node started."""
    members = (await cluster.any().call("raft.status"))["members"]
    asked = [cluster.at(member["url"]).call("cache.stats") for member in members]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    if not any(isinstance(answer, dict) for answer in answers):
        raise next(answer for answer in answers if isinstance(answer, BaseException))
    documents, rows = [], []
    for member, answer in zip(members, answers, strict=True):
        if isinstance(answer, BaseException):
            documents.append({"node": member["id"], "trouble": str(answer)})
            rows.append([member["id"], *[""] * (len(STATS_HEAD) - 2), f"no answer: {answer}"])
        else:
            documents.append(answer)
            rows.append(_stats_row(answer))
    if terminal.is_json:
        terminal.json({"nodes": documents})
    else:
        terminal.table(STATS_HEAD, rows)


def _stats_row(answer: dict[str, Any]) -> list[str]:
    counts = [str(answer[name]) for name in ("puts", "invalidations", "evictions")]
    trouble = f"{answer['memory']}: {answer['memory_trouble']}" if answer["memory_trouble"] else ""
    figures = [str(answer["items"]), size(answer["bytes"]), str(answer["hits"]), str(answer["misses"])]
    return [answer["node"], *figures, f"{answer['hit_ratio']:.1%}", *counts, trouble]


# ------------------------------------------------------------------ demonstration

#: carries out an operation at a node, counted from 1
NodeCall = Callable[[int, str, dict[str, Any]], Awaitable[dict[str, Any]]]


async def demo(cluster: Cluster, terminal: Terminal, key: str) -> None:
    """Show the line of a key on every node while it is read and written."""
    urls = cluster.urls
    if len(urls) == 1:
        urls = [member["url"] for member in (await cluster.any().call("raft.status"))["members"]] or urls

    async def call(number: int, operation: str, fields: dict[str, Any]) -> dict[str, Any]:
        return await cluster.at(urls[(number - 1) % len(urls)]).call(operation, cluster.timeout_s, **fields)

    await show_transitions(call, len(urls), terminal, key)


async def show_transitions(
    call: NodeCall, count: int, terminal: Terminal, key: str, pause: Callable[[float], Awaitable[Any]] = asyncio.sleep
) -> None:
    """See `demo`.

    Args:
        count: the number of nodes.
        pause: waits for so many seconds.
    """

    async def get(number: int) -> str:
        answer = await call(number, "cache.get", {"key": key})
        return f"{to_json(answer['value'])}, {'hit' if answer['hit'] else 'miss'}"

    async def put(number: int, value: str) -> str:
        answer = await call(number, "cache.put", {"key": key, "value": value})
        return f"version {answer['version']}"

    async def evict(number: int) -> str:
        return "written back first" if (await call(number, "cache.evict", {"key": key}))["written_back"] else "silently"

    async def delete() -> str:
        return "deleted" if (await call(1, "cache.delete", {"key": key}))["deleted"] else "there was no value"

    async def rows() -> dict[str, dict[str, Any]]:
        return {row["node"]: row for row in (await call(1, "cache.lines", {"key": key}))["lines"]}

    async def settled_rows() -> dict[str, dict[str, Any]]:
        """A node that has not applied the step yet shows its line as it was: M or E, beside lines of other nodes."""
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while True:
            found = await rows()
            states = [row["state"] for row in found.values() if row["state"] != "I"]
            if len(states) < 2 or set(states) == {"S"} or time.monotonic() > deadline:
                return found
            await pause(0.05)

    async def wait_for_write_back() -> str:
        deadline = time.monotonic() + WRITE_BACK_TIMEOUT_S
        while any(row["state"] == "M" for row in (await rows()).values()):
            if time.monotonic() > deadline:
                return "not yet: is the backing store available?"
            await pause(0.05)
        return "the backing store has the value"

    second, third = min(2, count), min(3, count)
    steps: list[tuple[str, Callable[[], Awaitable[str]]]] = [
        ("start: delete it", delete),
        ("put on 1", lambda: put(1, "first")),
        ("read on 1", lambda: get(1)),
        ("write-back", wait_for_write_back),
        (f"read on {second}", lambda: get(second)),
        (f"read on {second} again", lambda: get(second)),
        (f"write on {third}", lambda: put(third, "second")),
        ("read on 1", lambda: get(1)),
        ("read on 1 again", lambda: get(1)),
        ("evict on 1", lambda: evict(1)),
        (f"evict on {third}", lambda: evict(third)),
    ]
    names = sorted(await rows())
    width = max(8, *(len(name) for name in names))
    if not terminal.is_json:
        terminal.write(f"{'step':20}" + "".join(f"{name:>{width + 2}}" for name in names) + "   result")
    for title, step in steps:
        result = await step()
        found = await settled_rows()
        states = {name: found[name]["state"] if name in found else "?" for name in names}
        if terminal.is_json:
            terminal.json({"step": title, "states": states, "result": result})
        else:
            terminal.write(f"{title:20}{''.join(f'{state:>{width + 2}}' for state in states.values())}   {result}")
    if not terminal.is_json:
        terminal.write(f"\n{LEGEND}")


def _tell(terminal: Terminal, answer: dict[str, Any], text: str) -> None:
    if terminal.is_json:
        terminal.json(answer)
    else:
        terminal.write(text)


def _say_unreachable(terminal: Terminal, answer: dict[str, Any]) -> None:
    if answer.get("unreachable"):
        terminal.say(f"no answer from {', '.join(answer['unreachable'])}")
