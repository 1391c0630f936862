"""What the WebSocket door offers of the lock manager beyond its operations: watching, and a connection that is a session."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec

from dss_api.errors import Refused
from dss_api.operation import Feed, Subscription
from dss_api.result import Result
from dss_locks.core.commands import CloseSession, KeepSession, RenewSession, StartSession, Watch
from dss_locks.watching import SERVICE, LockEvent, LockWatchers, StateKind

if TYPE_CHECKING:
    from dss_raft.node import Node

#: A session is renewed when a third of its lease has passed: two attempts may fail.
RENEWALS_PER_LEASE = 3


class SessionEvent(msgspec.Struct, omit_defaults=True):
    """What a kept session tells. A client that has heard of no renewal for `expires_in_ms` must take its locks for lost."""

    kind: Literal["started", "renewed"]
    #: give it to `locks.acquire`
    session: str
    expires_in_ms: int
    index: int


async def watch(node: Node, request: Watch, feed: Feed) -> Result:
    """Tells the state, then every change, until it is cancelled."""
    if request.consistency == "linearizable":
        await node.read_index()
    kind: StateKind = "state"
    with _watchers(node).watch(request, feed) as lock_watch:
        while True:
            await lock_watch.tell_state(kind, node.now_ms)
            await lock_watch.until_anew()
            kind = "resync"


async def keep_session(node: Node, request: KeepSession, feed: Feed) -> Result:
    """Keeps a session for as long as the connection lives, and closes it then."""
    command = StartSession(client=request.client, ttl_ms=request.ttl_ms)
    starting = asyncio.ensure_future(node.submit(command))
    try:
        # When the client goes now the session starts nevertheless, and is closed below.
        started = await asyncio.shield(starting)
        return started if started.code else await _keep(node, started, request.ttl_ms, feed)
    finally:
        await _close(node, starting)


async def _keep(node: Node, started: Result, ttl_ms: int, feed: Feed) -> Result:
    session: str = started.body["session"]
    interval_ms = ttl_ms // RENEWALS_PER_LEASE
    with _watchers(node).session(session) as ended:
        feed.push(SessionEvent("started", session, started.body["expires_in_ms"], started.index))
        while True:
            await asyncio.wait((ended,), timeout=interval_ms / 1000)
            if ended.done():
                break
            with suppress(Refused):  # no majority just now: the lease says for how long that may go on
                renewed = await node.submit(RenewSession(session=session), timeout_ms=interval_ms)
                if not renewed.code:
                    feed.push(SessionEvent("renewed", session, renewed.body["expires_in_ms"], renewed.index))
    if ended.result() == "closed":
        return Result({"session": session, "closed": True})
    return Result({"session": session}, "session_lost")


async def _close(node: Node, starting: asyncio.Future[Result]) -> None:
    # Without a majority it cannot be closed: its lease then ends it.
    with suppress(Refused):
        started = await starting
        if not started.code:
            await node.submit(CloseSession(session=started.body["session"]))


def _watchers(node: Node) -> LockWatchers:
    return cast(LockWatchers, node.services[SERVICE])


_WATCH: dict[str, Any] = {"prefix": "orders/"}

SUBSCRIPTIONS: tuple[Subscription, ...] = (
    Subscription(
        name="locks.watch",
        request=Watch,
        handle=watch,
        event=LockEvent,
        summary="Watch locks as they change hands",
        description=(
            "Of one key, several, all that begin with a prefix, or one client's. First comes the state (`kind: state`, in parts "
            "while `more`), then every later change with the `index` of its entry: `queued` and `dequeued` for each place in a "
            "queue, `granted`, `released`, `lost`, `delay_ended`, and `refused` for a deadlock. After a `resync`, which tells the "
            "state anew, what was known before no longer counts."
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
        summary="Make this connection a session",
        description=(
            "Starts a session, tells its name, and renews it while the connection lives. When the connection closes all its locks "
            "are free at once; when its node dies, after `ttl_ms`. Ends with `session_lost` when the session was lost."
        ),
        tag="Locks",
        example={"client": "worker-1", "ttl_ms": 30000},
        problems=("session_lost", "over_limit"),
    ),
)
