"""A lock that this client holds: its lease, its renewal, its loss and its release.

The client counts a lease from the moment at which it *sent* the call, on a clock that goes on while the process is paused, and leaves a
hundredth of it for the difference of the clocks. So the lock is lost here before its lease ends at the node, however long an answer
was on its way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from dss_client.clock import now
from dss_client.core import REPEATED, Core, Repeat
from dss_client.errors import DssError, LockLost, LockNotHeld, NotHolder, Unavailable, UnknownOutcome, WrongUse
from dss_client.lock_owners import Owners
from dss_client.lock_spec import LockSpec

log = logging.getLogger("dss_client")

#: this part of a lease is left for the difference of the clocks
MARGIN = 0.01
#: a renewal goes to another node after this part of the lease without an answer
ATTEMPT = 1 / 6
ATTEMPT_S_MIN = 0.2
LEASE_OVER = "the lease is over"


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
        """Make the lease longer by `additional_time` seconds, or exactly that long. Later renewals keep the length.

        Raises:
            LockNotHeld: it was released.
            LockLost: it is lost, also if the answer came after the end of the lease.
        """
        self.require()
        if self._until is None:
            raise WrongUse("the lock has no lease: it is held until it is released")
        remaining = 0.0 if replace_ttl else self.remaining or 0.0
        await self._renew_now(max(1, round((remaining + additional_time) * 1000)))
        # The answer may have come after the lease.
        self.require()
        return True

    async def reacquire(self) -> bool:
        """Start the lease again with the length that the lock was made with."""
        self.require()
        if self._until is None:
            raise WrongUse("the lock has no lease: it is held until it is released")
        await self._renew_now(self._spec.ttl_ms)
        self.require()
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
        if self.is_lost:
            # This process was paused, or its event loop was blocked, until after the end of the lease.
            self._lose(LEASE_OVER)
        elif self._renewing is None and not self._is_released:
            self._renewing = asyncio.ensure_future(self._renew())
            self._core.keep(self._renewing)

    async def _renew(self) -> None:
        """Renew until an answer comes or the lease is over."""
        try:
            while not self.is_over:
                try:
                    await self._renew_now(self._ttl_ms)
                    break
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
