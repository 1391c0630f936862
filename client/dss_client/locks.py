"""Locks for asyncio: a grant with its lease, and the object with the names of redis-py.

The client counts a lease from the moment at which it *sent* the call, on a clock that goes on while the process is paused, and leaves a
hundredth of it for the difference of the clocks. So the lock is lost here before its lease ends at the node, however long an answer
was on its way.

The owner of a lock, as the cluster sees it, is the thread (or the task) that acquires it. That is why the cluster can find a deadlock
between threads. A key that the same thread holds already through another lock object is asked for under another owner's name: two lock
objects never share a grant.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import uuid
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import EllipsisType, TracebackType
from typing import Any

from dss_client.clock import now
from dss_client.core import REPEATED, Core, Repeat
from dss_client.errors import (
    Deadlock,
    DssError,
    LockLost,
    LockNotHeld,
    LockTimeout,
    NotHolder,
    Unavailable,
    UnknownOutcome,
    WrongUse,
)

log = logging.getLogger("dss_client")

#: a node lets a call wait for at most this long; a longer wait takes several calls
WAIT_S_MAX = 20.0
#: after this part of a call's wait, the next call begins
NEXT_CALL = 0.75
#: this part of a lease is left for the difference of the clocks
MARGIN = 0.01
#: a renewal goes to another node after this part of the lease without an answer
ATTEMPT = 1 / 6
ATTEMPT_S_MIN = 0.2
LEASE_OVER = "the lease is over"


class Owners:
    """The names under which one client holds locks, and which it uses at present.

    Args:
        name: of the process, for people who look at the holders.
    """

    def __init__(self, name: str) -> None:
        self._prefix = f"{name}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._count = itertools.count(1)
        self._of_tasks: weakref.WeakKeyDictionary[asyncio.Task[Any], str] = weakref.WeakKeyDictionary()
        #: (owner's name, key) of grants, and of calls whose outcome is not known yet
        self.used: set[tuple[str, str]] = set()
        self.held: dict[str, list[AsyncHeld]] = {}

    def make(self) -> str:
        """A name for a thread or a task."""
        return f"{self._prefix}/{next(self._count)}"

    def of_task(self) -> str:
        task = asyncio.current_task()
        if task is None:
            return self.make()
        name = self._of_tasks.get(task)
        if name is None:
            name = self._of_tasks[task] = self.make()
        return name

    def reserve(self, owner: str, keys: Sequence[str]) -> str:
        """A name like `owner` that is not in use for any of the keys."""
        name = owner
        for number in itertools.count(2):
            if not any((name, key) in self.used for key in keys):
                break
            name = f"{owner}.{number}"
        self.used.update((name, key) for key in keys)
        return name

    def give_back(self, name: str, keys: Sequence[str]) -> None:
        self.used.difference_update([(name, key) for key in keys])

    def refuse_to_wait_for_itself(self, owner: str, keys: Sequence[str], shared: bool) -> None:
        """Waiting for a lock that the same thread keeps renewing would never end.

        Raises:
            Deadlock
        """
        for key in keys:
            for held in self.held.get(key, ()):
                if held.owner == owner and held.renews and not (shared and held.shared) and not held.is_over:
                    step = {"client": held.name, "waits_for": key, "held_by": held.name, "because": "holds"}
                    raise Deadlock(
                        f"this thread or task holds {key!r} already through another lock object",
                        status=409,
                        fields={"deadlock": True, "cycle": [step]},
                    )


class LostEvent:
    """Set when the lock is lost. For asyncio."""

    def __init__(self, held: AsyncHeld) -> None:
        self._held = held
        self._event = asyncio.Event()

    def is_set(self) -> bool:
        """Whether the lock is lost. It looks at the clock, so it is right immediately after the process was paused."""
        return self._held.is_lost

    async def wait(self) -> bool:
        """Wait until the lock is lost. It returns no earlier, also after the lock was released."""
        return await self._event.wait()

    def set(self) -> None:
        """For this library."""
        self._event.set()

    def set_in_child(self) -> None:
        """For this library. No task of the parent may be woken up here."""
        self._event = asyncio.Event()
        self._event.set()


class AsyncHeld:
    """A lock that this client holds. `AsyncLock` gives it to `async with`.

    Attributes:
        keys: of the lock.
        shared: its mode.
        name: the owner, as the cluster shows it.
        owner: the thread or task; `name` may have a suffix.
        token: the fencing token. Give it to the resource that the lock protects, and let it refuse smaller ones.
        tokens: the fencing token of each key.
        lost: an event.
    """

    def __init__(self, core: Core, owners: Owners, owner: str, name: str, spec: LockSpec) -> None:
        self._core = core
        self._owners = owners
        self._spec = spec
        self.owner = owner
        self.name = name
        self.keys = spec.keys
        self.shared = spec.shared
        self.renews = spec.renew and spec.ttl_ms > 0
        self.token = 0
        self.tokens: dict[str, int] = {}
        self.lost = LostEvent(self)
        self.on_lost: Callable[[], None] | None = None
        self._ttl_ms = spec.ttl_ms
        #: by `clock.now`; None: held until released
        self._until: float | None = None
        self._lost_because = ""
        self._is_released = False
        self._timer: asyncio.TimerHandle | None = None
        self._renewing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "released" if self._is_released else "lost" if self.is_lost else "held"
        return f"<{', '.join(self.keys)}: {state}, token {self.token}>"

    # ------------------------------------------------------------ state

    @property
    def is_lost(self) -> bool:
        """Whether it ended before it was released."""
        # Other threads ask, too, so this changes nothing.
        return bool(self._lost_because) or (not self._is_released and self._until is not None and now() >= self._until)

    @property
    def was_released(self) -> bool:
        """Whether `release` was called, or an ack has released it."""
        return self._is_released

    @property
    def is_over(self) -> bool:
        """Whether it was released or is lost."""
        return self._is_released or self.is_lost

    @property
    def remaining(self) -> float | None:
        """How many seconds the lease still lasts by this client's clock. None: the lock is held until it is released."""
        return None if self._until is None else max(0.0, self._until - now())

    def require(self) -> None:
        """Check that the lock is held.

        Raises:
            LockNotHeld: it was released.
            LockLost: it is lost.
        """
        if self._is_released:
            raise LockNotHeld(f"the lock {self._label} was released already")
        if self.is_lost:
            raise self._loss()

    # ------------------------------------------------------------ calls

    async def release(self) -> None:
        """Give the lock back.

        Raises:
            LockNotHeld: it was released already.
            LockLost: it was lost before.
            DssError: no node answered. The lock ends with its lease.
        """
        if self._is_released:
            raise LockNotHeld(f"the lock {self._label} was released already")
        was_lost = self.is_lost
        self.released()
        try:
            answer = await self._core.call("locks.release", self._named(), Repeat.HARMLESS)
        except (NotHolder, LockLost) as error:
            if error.was_repeated and not was_lost:
                # The first attempt has released it, or the lease has ended since. It was held when the block ended.
                return
            self._lost_because = self._lost_because or error.detail
            raise self._loss() from None
        if was_lost:
            raise self._loss()
        if not answer["released"] and REPEATED not in answer:
            self._lost_because = "it was taken away"
            raise self._loss()

    async def owned(self) -> bool:
        """Ask the cluster whether the fencing token is still the holder's."""
        if self.is_over:
            return False
        for key, token in self.tokens.items():
            answer = await self._core.call("locks.check", {"key": key, "fencing_token": token}, Repeat.READ)
            if not answer["valid"]:
                return False
        return True

    async def extend(self, additional_time: float, replace_ttl: bool = False) -> bool:
        """Make the lease longer by `additional_time` seconds, or exactly that long. Later renewals keep the length."""
        self.require()
        if self._until is None:
            raise WrongUse("the lock has no lease: it is held until it is released")
        remaining = 0.0 if replace_ttl else self.remaining or 0.0
        await self._renew_now(max(1, round((remaining + additional_time) * 1000)))
        return True

    async def reacquire(self) -> bool:
        """Start the lease again with the length that the lock was made with."""
        self.require()
        if self._until is None:
            raise WrongUse("the lock has no lease: it is held until it is released")
        await self._renew_now(self._spec.ttl_ms)
        return True

    # ------------------------------------------------- for this library

    def granted(self, answer: dict[str, Any], sent: float) -> None:
        self.token = answer["fencing_token"]
        self.tokens = answer.get("fencing_tokens") or {self.keys[0]: self.token}
        for key in self.keys:
            self._owners.held.setdefault(key, []).append(self)
        self._lease(sent + answer.get("waited_ms", 0) / 1000, answer["expires_in_ms"])

    async def refresh(self) -> None:
        """Renew it now, because little of the lease is left."""
        if not self.renews:
            await self._renew_now(self._ttl_ms)
            return
        self._begin_renewal()
        if self._renewing is not None:
            await asyncio.shield(self._renewing)

    def released(self) -> None:
        """It was released, or will be: renew it no longer."""
        self._is_released = True
        self._forget()

    def for_ack(self) -> list[dict[str, Any]]:
        """As `release` of `queue.ack` needs it."""
        self.require()
        return [{"key": key, "client": self.name, "fencing_token": token} for key, token in self.tokens.items()]

    def lose_in_child(self) -> None:
        """This is the child of a fork: the lock is the parent's."""
        self._lost_because = self._lost_because or "it belongs to the process that forked this one"
        self._timer = None
        self.lost.set_in_child()

    @property
    def ttl_s(self) -> float:
        return self._ttl_ms / 1000

    @property
    def _label(self) -> str:
        return ", ".join(repr(key) for key in self.keys)

    def _named(self) -> dict[str, Any]:
        named = self._spec.named(self.name)
        if len(set(self.tokens.values())) == 1:
            named["fencing_token"] = self.token
        return named

    def _loss(self) -> LockLost:
        return LockLost(
            f"the lock {self._label} is lost: {self._lost_because or LEASE_OVER}", status=409, fields={"keys": list(self.keys)}
        )

    def _lease(self, start: float, expires_in_ms: int | None) -> None:
        if expires_in_ms is None:
            self._until = None
            return
        # An answer never shortens what an earlier one has promised.
        until = start + expires_in_ms / 1000 * (1 - MARGIN)
        self._until = until if self._until is None else max(self._until, until)
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        if self.renews:
            self._timer = loop.call_later(max(0.0, start + expires_in_ms / 3000 - now()), self._begin_renewal)
        else:
            self._timer = loop.call_later(max(0.0, self._until - now()), self._time_is_over)

    def _time_is_over(self) -> None:
        if self.is_lost:
            self._lose(LEASE_OVER)
        elif not self._is_released and self._until is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.001, self._until - now()), self._time_is_over)

    def _begin_renewal(self) -> None:
        if self._renewing is None and not self.is_over:
            self._renewing = asyncio.ensure_future(self._renew())
            self._core.keep(self._renewing)

    async def _renew(self) -> None:
        """Renew until an answer comes or the lease is over."""
        try:
            while not self.is_over:
                try:
                    await self._renew_now(self._ttl_ms)
                    return
                except LockLost:
                    return
                except (Unavailable, UnknownOutcome) as error:
                    log.warning("the lock %s cannot be renewed: %s", self._label, error)
                except DssError as error:
                    log.warning("the renewal of the lock %s is refused: %s", self._label, error)
                await asyncio.sleep(min(0.1, self.remaining or 0.0) + 0.001)
            if self.is_lost:
                self._lose(LEASE_OVER)
        finally:
            self._renewing = None

    async def _renew_now(self, ttl_ms: int) -> None:
        sent = now()
        left_s = max(0.001, self.remaining or 0.0)
        attempt_s = max(ATTEMPT_S_MIN, self._ttl_ms / 1000 * ATTEMPT)
        fields = {**self._named(), "ttl_ms": ttl_ms}
        if ttl_ms < self._ttl_ms and self._until is not None:
            # A shorter lease counts from now on, whenever the answer comes.
            self._until = min(self._until, sent + ttl_ms / 1000 * (1 - MARGIN))
        try:
            answer = await self._core.call("locks.renew", fields, Repeat.HARMLESS, timeout_s=left_s, attempt_s=attempt_s)
        except (LockLost, NotHolder) as error:
            self._lose(error.detail)
            raise self._loss() from None
        if self.is_over:
            # The answer came too late for this machine's clock.
            return
        self._ttl_ms = ttl_ms
        self._lease(sent, answer["expires_in_ms"])

    def _lose(self, why: str) -> None:
        self._lost_because = self._lost_because or why
        self._forget()
        self.lost.set()
        if self.on_lost is not None:
            self.on_lost()

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._owners.give_back(self.name, self.keys)
        for key in self.keys:
            held = self._owners.held.get(key)
            if held is not None and self in held:
                held.remove(self)
                if not held:
                    del self._owners.held[key]


class LockSpec:
    """What a lock is made with."""

    def __init__(
        self,
        keys: Iterable[str],
        *,
        is_multiple: bool,
        ttl: float | None,
        wait: float | None,
        shared: bool,
        renew: bool,
        lock_delay: float,
        meta: Mapping[str, str] | None = None,
    ) -> None:
        self.keys = tuple(dict.fromkeys(keys))
        if not self.keys or not all(isinstance(key, str) for key in self.keys):
            raise WrongUse("a lock has one or more keys, which are strings")
        if ttl is not None and not ttl > 0:
            raise WrongUse(f"`ttl` is in seconds and more than 0, or None, not {ttl!r}")
        if wait is not None and not wait >= 0:
            raise WrongUse(f"`wait` is in seconds, or None, not {wait!r}")
        self._is_multiple = is_multiple
        self.ttl_ms = 0 if ttl is None else max(1, round(ttl * 1000))
        self.wait = wait
        self.shared = shared
        self.renew = renew
        self._lock_delay_ms = round(lock_delay * 1000)
        self._meta = meta

    def named(self, client: str) -> dict[str, Any]:
        return {"keys": list(self.keys), "client": client} if self._is_multiple else {"key": self.keys[0], "client": client}

    def request(self, client: str) -> dict[str, Any]:
        request = {**self.named(client), "ttl_ms": self.ttl_ms}
        if self.shared:
            request["mode"] = "shared"
        if self._lock_delay_ms:
            request["lock_delay_ms"] = self._lock_delay_ms
        if self._meta is not None:
            request["meta"] = self._meta
        return request


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


class AsyncLock:
    """A lock that can be acquired and released, again and again. It holds one grant at a time.

    The names are those of redis-py. `async with` raises `LockTimeout` where `acquire` returns False.
    """

    def __init__(self, core: Callable[[], Core], owners: Callable[[], Owners], spec: LockSpec) -> None:
        self._core = core
        self._owners = owners
        self._spec = spec
        self.held: AsyncHeld | None = None

    @property
    def token(self) -> int | None:
        """The fencing token; None while it is not held."""
        return self.held.token if self.held is not None else None

    async def acquire(self, blocking: bool = True, wait: float | EllipsisType | None = ...) -> bool:
        """Acquire the lock. False: another client holds it.

        Args:
            blocking: False: do not wait.
            wait: seconds, instead of those that the lock was made with.
        """
        try:
            await self._acquire(wait_of(self._spec, blocking, wait))
        except LockTimeout:
            return False
        return True

    async def release(self) -> None:
        """See `AsyncHeld.release`."""
        held = self._require()
        self.held = None
        await held.release()

    async def extend(self, additional_time: float, replace_ttl: bool = False) -> bool:
        """See `AsyncHeld.extend`."""
        return await self._require().extend(additional_time, replace_ttl)

    async def reacquire(self) -> bool:
        """See `AsyncHeld.reacquire`."""
        return await self._require().reacquire()

    async def owned(self) -> bool:
        """Whether this object holds the lock, as the cluster knows it."""
        return self.held is not None and await self.held.owned()

    async def locked(self) -> bool:
        """Whether any client holds the lock (one of the locks)."""
        return await locked(self._core(), self._spec.keys)

    async def __aenter__(self) -> AsyncHeld:
        return await self._acquire(self._spec.wait)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        held, self.held = self.held, None
        if held is not None:
            await leave(held.release, held, error)

    async def _acquire(self, wait: float | None) -> AsyncHeld:
        if self.held is not None:
            if not self.held.is_over:
                raise WrongUse("this object holds the lock already; make another one with `lock()` for each task")
            self.held = None
        owners = self._owners()
        self.held = await acquire(self._core(), owners, owners.of_task(), self._spec, wait)
        return self.held

    def _require(self) -> AsyncHeld:
        if self.held is None:
            raise LockNotHeld(f"the lock {', '.join(self._spec.keys)} is not held by this object")
        return self.held


def wait_of(spec: LockSpec, blocking: bool, wait: float | EllipsisType | None) -> float | None:
    if not blocking:
        return 0.0
    return spec.wait if isinstance(wait, EllipsisType) else wait


async def locked(core: Core, keys: Iterable[str]) -> bool:
    for key in keys:
        answer = await core.call("locks.status", {"key": key}, Repeat.READ)
        if answer["locked"]:
            return True
    return False


async def leave(release: Callable[[], Awaitable[None]], held: AsyncHeld, error: BaseException | None) -> None:
    """The end of `async with`: release, unless it happened in the block. An error of the block is not replaced."""
    if held.was_released:
        return
    try:
        await release()
    except DssError as trouble:
        note(trouble, error)


def leave_with(release: Callable[[], None], held: AsyncHeld, error: BaseException | None) -> None:
    """`leave` for `with`."""
    if held.was_released:
        return
    try:
        release()
    except DssError as trouble:
        note(trouble, error)


def note(trouble: DssError, error: BaseException | None) -> None:
    """Raise the trouble of a release, or add it to the error of the block."""
    if error is None:
        raise trouble
    error.add_note(f"The lock was not released: {trouble}")
