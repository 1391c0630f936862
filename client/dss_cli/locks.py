"""Locks: who holds which, who waits and why, and how an operator takes one away."""

from __future__ import annotations

import getpass
import socket
from contextlib import aclosing
from typing import Any

from dss_cli.cluster import Cluster, CommandFailed
from dss_cli.subscriptions import events
from dss_cli.terminal import Terminal, duration
from dss_client.lock_spec import LockSpec

LS_HEAD = ("KEY", "MODE", "CLIENT", "TOKEN", "HELD FOR", "LEASE", "WAITING")
HOLDERS_HEAD = ("HELD BY", "MODE", "TOKEN", "HELD FOR", "LEASE")
WAITERS_HEAD = ("WAITING", "MODE", "SINCE", "GIVES UP IN", "KEYS")
AUDIT_HEAD = ("INDEX", "KEY", "CLIENT", "TOKEN", "BY", "REASON")


async def ls(cluster: Cluster, terminal: Terminal, prefix: str = "") -> None:
    """The keys that are held, or that clients wait for."""
    locks = await _state(cluster, prefix)
    if terminal.is_json:
        terminal.json({"locks": locks})
        return
    terminal.table(LS_HEAD, [row for lock in locks for row in _lock_rows(lock)])


async def watch(cluster: Cluster, terminal: Terminal, prefix: str = "") -> None:
    """Print the state, then each change, until interrupted."""
    async with aclosing(events(cluster, "locks.watch", prefix=prefix)) as stream:
        async for event in stream:
            if terminal.is_json:
                terminal.json(event)
            elif event["kind"] in ("state", "resync"):
                for row in (row for lock in event.get("locks") or () for row in _lock_rows(lock)):
                    terminal.write("  ".join(filter(None, row)))
            else:
                terminal.write(_event_line(event))


async def why(cluster: Cluster, terminal: Terminal, key: str, client: str | None = None) -> None:
    """Who holds a key, who waits for it, and what its holders wait for."""
    status = await cluster.call("locks.status", key=key, client=client)
    graph = await cluster.call("locks.graph")
    holders = {holder["client"] for holder in status["holders"]}
    waits = [edge for edge in graph["edges"] if edge["from"] in holders]
    if terminal.is_json:
        terminal.json({**status, "holders_wait_for": waits})
        return
    if status["holders"]:
        terminal.table(HOLDERS_HEAD, [_holder_row(holder) for holder in status["holders"]])
    else:
        terminal.write(f"{key} is not held")
    if (delay := status["delay"]) is not None:
        who = "no client" if delay["keeps_out"] == "everybody" else "no exclusive lock"
        terminal.write(f"lost by {delay['lost_by']}, so {who} gets it for {duration(delay['left_ms'])}")
    for edge in waits:
        terminal.write(f"{edge['from']} itself waits for {edge['key']}, which {edge['to']} {edge['because']}")
    if status["waiters"]:
        terminal.write("")
        terminal.table(WAITERS_HEAD, [_waiter_row(waiter) for waiter in status["waiters"]])
    if client is not None:
        terminal.write("")
        _show_chain(terminal, client, key, status.get("why"))


async def acquire(
    cluster: Cluster, terminal: Terminal, keys: list[str], client: str, *, ttl: float | None, wait: float, shared: bool
) -> None:
    """Acquire a lock for a client by its name. Nothing renews it."""
    spec = LockSpec(keys, is_multiple=len(keys) > 1, ttl=ttl, wait=wait, shared=shared, renew=False, lock_delay=0)
    answer = await cluster.call("locks.acquire", **spec.request(client), wait_ms=round(wait * 1000))
    if terminal.is_json:
        terminal.json(answer)
        return
    lease = answer["expires_in_ms"]
    until = "until it is released" if lease is None else f"for {duration(lease)}"
    terminal.write(f"{client} holds {', '.join(keys)} {until}, with the fencing token {answer['fencing_token']}")


async def release(cluster: Cluster, terminal: Terminal, key: str, client: str, token: int | None) -> None:
    """Release what a client holds.

    Raises:
        CommandFailed: it holds nothing.
    """
    answer = await cluster.call("locks.release", key=key, client=client, fencing_token=token)
    if terminal.is_json:
        terminal.json(answer)
    if not answer["released"]:
        raise CommandFailed(f"{client} does not hold {key}")
    if not terminal.is_json:
        terminal.write(f"{key} is released; {client} held it for {duration(answer['held_ms'])}")


async def force_release(
    cluster: Cluster, terminal: Terminal, key: str, client: str | None, fencing_token: int | None, reason: str, by: str | None
) -> None:
    """Take a lock away without asking its holder.

    Raises:
        CommandFailed: no client holds it.
    """
    by = by or f"{getpass.getuser()}@{socket.gethostname()}"
    token = {} if fencing_token is None else {"fencing_token": fencing_token}
    answer = await cluster.call("locks.force_release", key=key, client=client, reason=reason, by=by, **token)
    if terminal.is_json:
        terminal.json(answer)
    if not answer["released"]:
        grant = "" if fencing_token is None else f" with the fencing token {fencing_token}"
        raise CommandFailed(f"{client or 'no client'} {'does not hold' if client else 'holds'} {key}{grant}")
    if not terminal.is_json:
        for holder in answer["holders"]:
            terminal.write(f"{key} is taken from {holder['client']}, which had the fencing token {holder['fencing_token']}")


async def audit(cluster: Cluster, terminal: Terminal) -> None:
    """Forced releases, latest first."""
    answer = await cluster.call("locks.audit")
    if terminal.is_json:
        terminal.json(answer)
        return
    rows = [
        [str(one["index"]), one["key"], one["client"], str(one["fencing_token"]), one["by"], one["reason"]]
        for one in answer["forced"]
    ]
    terminal.table(AUDIT_HEAD, rows)


async def _state(cluster: Cluster, prefix: str) -> list[dict[str, Any]]:
    """The present state of all locks whose keys begin with `prefix`."""
    locks: list[dict[str, Any]] = []
    async with aclosing(events(cluster, "locks.watch", prefix=prefix)) as stream:
        async for event in stream:
            locks += event.get("locks") or ()
            if not event.get("more"):
                break
    return sorted(locks, key=lambda lock: str(lock["key"]))


def _lock_rows(lock: dict[str, Any]) -> list[list[str]]:
    waiting = str(lock["waiter_count"] or "")
    if not lock["holders"]:
        delay = lock["delay"]
        state = f"delayed for {duration(delay['left_ms'])}" if delay else "free"
        return [[lock["key"], state, "", "", "", "", waiting]]
    rows = []
    for number, holder in enumerate(lock["holders"]):
        client, mode, token, age, lease = _holder_row(holder)
        rows.append([lock["key"] if number == 0 else "", mode, client, token, age, lease, waiting if number == 0 else ""])
    if (more := lock["holder_count"] - len(lock["holders"])) > 0:
        rows.append(["", "", f"and {more} more", "", "", "", ""])
    return rows


def _holder_row(holder: dict[str, Any]) -> list[str]:
    lease = "until released" if holder["expires_in_ms"] is None else duration(holder["expires_in_ms"])
    return [holder["client"], holder["mode"], str(holder["fencing_token"]), duration(holder["age_ms"]), lease]


def _waiter_row(waiter: dict[str, Any]) -> list[str]:
    client = f"{waiter['position']}. {waiter['client']}"
    times = [duration(waiter["age_ms"]), duration(waiter["gives_up_in_ms"])]
    return [client, waiter["mode"] + (" (upgrade)" if waiter["upgrade"] else ""), *times, ", ".join(waiter["keys"])]


def _show_chain(terminal: Terminal, client: str, key: str, reason: dict[str, Any] | None) -> None:
    if reason is None:
        terminal.write(f"{client} does not wait for {key}")
        return
    terminal.write(f"{client} is number {reason['position']} in the queue:")
    for step in reason["chain"]:
        does = "holds it" if step["because"] == "holds" else "waits for it ahead of it"
        terminal.write(f"  {step['client']} waits for {step['waits_for']}: {step['held_by']} {does}")


def _event_line(event: dict[str, Any]) -> str:
    details = [
        event.get("mode", ""),
        f"token {event['fencing_token']}" if event.get("fencing_token") else "",
        event.get("reason", ""),
        event.get("detail", ""),
    ]
    named = f"{event['index']}  {event['kind']}  {event.get('key', '')}  {event.get('client', '')}"
    return "  ".join(filter(None, [named.rstrip(), *details]))
