"""The lock manager's WebSocket subscriptions: `locks.watch`, and `locks.session`, which makes a connection a session."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from dss_api.errors import Refused
from dss_api.operation import Feed, Subscription
from dss_api.result import Result
from dss_api.rights import READ, AnyIn, Either, locks
from dss_locks.answers import LockEvent, SessionEndedAnswer, SessionEvent, StateKind
from dss_locks.core.commands import CloseSession, KeepSession, RenewSession, StartSession, Watch
from dss_locks.operations import with_seal
from dss_locks.watching import SERVICE, LockWatchers

if TYPE_CHECKING:
    from dss_raft.node import Node

#: A session is renewed after a third of its lease, so two attempts may fail.
RENEWALS_PER_LEASE = 3


async def watch(node: Node, request: Watch, feed: Feed) -> Result:
    """Send the state, then every change, until cancelled."""
    if request.consistency == "linearizable":
        await node.read_index()
    kind: StateKind = "state"
    with _watchers(node).watch(request, feed) as lock_watch:
        while True:
            await lock_watch.send_state(kind, node.now_ms)
            await lock_watch.wait_for_restart()
            kind = "resync"


async def keep_session(node: Node, request: KeepSession, feed: Feed) -> Result:
    """Renew a session while the connection is open, then close it."""
    command = StartSession(client=request.client, ttl_ms=request.ttl_ms)
    starting = asyncio.ensure_future(node.submit(command))
    try:
        # If the client disconnects now, the session still starts. It is closed below.
        started = await asyncio.shield(starting)
        return started if started.code else await _keep(node, started, request.ttl_ms, feed)
    finally:
        await _close(node, starting)


async def _keep(node: Node, started: Result, ttl_ms: int, feed: Feed) -> Result:
    session: str = started.body["session"]
    shown: str = with_seal(started).body["session"]
    interval_ms = ttl_ms // RENEWALS_PER_LEASE
    with _watchers(node).session(session) as ended:
        feed.push(SessionEvent("started", shown, started.body["expires_in_ms"], started.index))
        while True:
            await asyncio.wait((ended,), timeout=interval_ms / 1000)
            if ended.done():
                break
            ping = feed.last_ping  # sent before the renewal begins, so the client may count the lease from there
            with suppress(Refused):  # no majority at the moment: the session may still be alive, try again
                renewed = await node.submit(RenewSession(session=session), timeout_ms=interval_ms)
                if not renewed.code:
                    feed.push(SessionEvent("renewed", shown, renewed.body["expires_in_ms"], renewed.index, ping))
    if ended.result() == "closed":
        return Result({"session": shown, "closed": True})
    return Result({"session": shown}, "session_lost")


async def _close(node: Node, starting: asyncio.Future[Result]) -> None:
    # Without a majority it cannot be closed; it ends with its lease.
    with suppress(Refused):
        started = await starting
        if not started.code:
            await node.submit(CloseSession(session=started.body["session"]))


def _watchers(node: Node) -> LockWatchers:
    return cast(LockWatchers, node.services[SERVICE])


_WATCH: dict[str, Any] = {"prefix": "example/orders/"}

SUBSCRIPTIONS: tuple[Subscription, ...] = (
    Subscription(
        name="locks.watch",
        request=Watch,
        handle=watch,
        event=LockEvent,
        needs=Either((READ, locks("key", "keys", "prefix"))),
        summary="Watch locks as they change hands",
        description=(
            "Watches one key, several keys, all keys with a prefix, or the keys of one client. The first event is the state "
            "(`kind: state`, in parts while `more` is true). Every later change follows with its log `index`: `queued` and "
            "`dequeued` for each queue entry, `granted`, `released`, `lost`, `delay_ended`, and `refused` for a deadlock. A "
            "`resync` sends the state again and replaces everything that was sent before."
        ),
        tag="Locks",
        example=_WATCH,
        problems=("over_limit",),
    ),
    Subscription(
        name="locks.session",
        request=KeepSession,
        handle=keep_session,
        event=SessionEvent,
        answer=SessionEndedAnswer,
        needs=AnyIn("locks", ""),
        summary="Make this connection a session",
        description=(
            "Starts a session, sends its id, and renews it while the connection is open. Its locks are released immediately when "
            "the connection closes, or after `ttl_ms` if the node fails. Ends with `session_lost` if the session is lost. Send pings "
            "(`op` `ping`): an event names the last `ping` that it answers, and `expires_in_ms` counts from when that ping was sent."
        ),
        tag="Locks",
        example={"client": "worker-1", "ttl_ms": 30000},
        problems=("session_lost", "over_limit"),
    ),
)
