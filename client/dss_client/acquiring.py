"""Acquire a lock: also after a wait that is longer than a call can be, and with an answer that was long on its way."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from dss_client.clock import now
from dss_client.core import Core, Repeat
from dss_client.errors import LockLost, LockTimeout, Unavailable, UnknownOutcome
from dss_client.held import AsyncHeld
from dss_client.lock_owners import Owners
from dss_client.lock_spec import LockSpec

#: a node lets a call wait for at most this long; a longer wait takes several calls
WAIT_S_MAX = 20.0
#: after this part of a call's wait, the next call begins
NEXT_CALL = 0.75


async def acquire(core: Core, owners: Owners, owner: str, spec: LockSpec, wait: float | None) -> AsyncHeld:
    """Acquire a lock for a thread or a task.

    Args:
        wait: seconds; None: without a limit.

    Raises:
        LockTimeout: another client holds it.
        DssError
    """
    if wait != 0:
        owners.refuse_to_wait_for_itself(owner, spec.keys, spec.shared)
    until = None if wait is None else now() + wait
    while True:
        held = await _acquire_once(core, owners, owner, spec, until)
        if not held.is_lost:
            return held
        # The answer was on its way for longer than the lease. No code of this program has relied on it yet.
        if until is not None and now() >= until:
            held.require()


async def _acquire_once(core: Core, owners: Owners, owner: str, spec: LockSpec, until: float | None) -> AsyncHeld:
    """Acquire a lock, which may be lost already."""
    name = owners.reserve(owner, spec.keys)
    held = AsyncHeld(core, owners, owner, name, spec)
    is_long = until is None or until - now() > WAIT_S_MAX
    try:
        if until is None or is_long:
            answer, sent = await _wait_long(core, spec, name, until)
        else:
            answer, sent = await _ask(core, spec, name, max(0.0, until - now()))
    except BaseException as error:
        if is_long or isinstance(error, UnknownOutcome | asyncio.CancelledError):
            # The name stays in use until the lock is certainly not held under it.
            core.spawn(_give_up(core, owners, spec, name))
        else:
            owners.give_back(name, spec.keys)
        raise
    held.granted(answer, sent)
    remaining = held.remaining
    if remaining is not None and remaining < spec.ttl_ms / 2000:
        # Little of the lease is left, because the answer was long on its way.
        try:
            await held.refresh()
        except LockLost:
            pass
        except BaseException as error:
            if isinstance(error, Unavailable | UnknownOutcome) and held.is_lost:
                return held
            core.spawn(held.release())
            raise
    return held


async def _ask(core: Core, spec: LockSpec, name: str, wait_s: float) -> tuple[dict[str, Any], float]:
    """One call. Returns the answer, and when the call was sent."""
    sent = now()
    fields = {**spec.request(name), "wait_ms": round(wait_s * 1000)}
    return await core.call("locks.acquire", fields, Repeat.NUMBERED_IF_POSSIBLE, wait_s=wait_s), sent


async def _wait_long(core: Core, spec: LockSpec, name: str, until: float | None) -> tuple[dict[str, Any], float]:
    """Wait for longer than a call can. Each call is followed by the next one before it ends: the two share a place in the queue."""
    calls: set[asyncio.Task[tuple[dict[str, Any], float]]] = set()
    try:
        while True:
            begun = now()
            wait_s = WAIT_S_MAX if until is None else max(0.0, min(until - begun, WAIT_S_MAX))
            is_last = until is not None and begun + wait_s >= until
            calls.add(asyncio.ensure_future(_ask(core, spec, name, wait_s)))
            next_at = math.inf if is_last else begun + wait_s * NEXT_CALL
            while calls and now() < next_at:
                timeout_s = None if is_last else next_at - now()
                done, calls = await asyncio.wait(calls, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                for call in done:
                    error = call.exception()
                    if error is None:
                        # The lock is held under this name, so another call that is in progress is answered, too.
                        await asyncio.gather(*calls, return_exceptions=True)
                        calls = set()
                        return call.result()
                    if not isinstance(error, LockTimeout) or (is_last and not calls):
                        raise error
    finally:
        for call in calls:
            call.cancel()


async def _give_up(core: Core, owners: Owners, spec: LockSpec, name: str) -> None:
    for _ in range(3):
        try:
            await core.call("locks.release", spec.named(name), Repeat.HARMLESS)
        except (Unavailable, UnknownOutcome):
            continue
        break
    owners.give_back(name, spec.keys)
