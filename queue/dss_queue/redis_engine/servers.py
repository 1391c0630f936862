"""Calls of the library's steps at the servers of the engine. They are repeated while a partition has no primary or moves, until their time
is over, or the server is known to be away."""

from __future__ import annotations

import asyncio
from typing import Any

from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from dss_api.errors import Refused
from dss_queue.core.commands import Acks
from dss_queue.redis_engine import errors, step_metrics
from dss_queue.redis_engine.calls import packed_call
from dss_queue.redis_engine.errors import EngineAway, UnfitServer
from dss_queue.redis_engine.faults import fault
from dss_queue.redis_engine.health import MISSING, Health
from dss_queue.redis_engine.lane import NotConfirmed, NotSent, packed
from dss_queue.redis_engine.nodes import Nodes, named_by

#: For how long a call is repeated while its partition has no primary, or moves.
DEADLINE_S = 5.0
#: Between two attempts.
PAUSE_S_MIN, PAUSE_S_MAX = 0.01, 0.2
#: Steps that change nothing.
READING = frozenset(("due", "stats", "dead_count", "group_stats", "in_flight", "peek", "group_peek", "revision"))
#: Beginnings of errors that end by themselves, or when a replica takes over.
_PASSING = ("BUSY", "NOREPLICAS")
#: The server names the step in errors that it has raised itself. What it had changed before stays.
_IN_STEP = " script: "


class Servers(Nodes):
    """See the module.

    Args:
        url, replicas_min: see `Nodes`.
        deadline_s: for how long a call is repeated.

    Raises:
        ValueError: see `Nodes`.
    """

    def __init__(self, url: str, *, replicas_min: int = 1, deadline_s: float = DEADLINE_S) -> None:
        super().__init__(url, replicas_min=replicas_min)
        self._deadline_s = deadline_s
        self.health = Health(self)

    @staticmethod
    def at_us() -> int:
        """The time of a step in microseconds; 0: that of the primary. Tests replace it."""
        return 0

    async def open(self) -> None:
        """Connect, check all primaries, and load the library where it is missing. A later call looks at everything again.

        Raises:
            UnfitServer: with what to change.
            EngineAway: a server does not answer.
        """
        condition = await self.health.look(is_thorough=True)
        if condition.state != "ready":
            raise (UnfitServer if condition.state == "unfit" else EngineAway)(condition.detail)

    async def call(self, step: str, keys: tuple[str, ...], *args: Any, acks: Acks = "primary", repeatable: bool = True) -> bytes:
        """The answer of one step of the library.

        Args:
            keys: all of one partition.
            repeatable: a second call would do no harm, so it is repeated when the outcome of the first is not known.

        Raises:
            NoGroup: the step is one of a group that the partition does not have.
            Refused: `engine_away`; `unknown_outcome`: it may have taken effect; or the library's.
        """
        return (await self.call_and_repeats(step, keys, *args, acks=acks, repeatable=repeatable))[0]

    async def call_and_repeats(
        self, step: str, keys: tuple[str, ...], *args: Any, acks: Acks = "primary", repeatable: bool = True
    ) -> tuple[bytes, bool]:
        """As `call`; also whether the step may have taken effect before the call that is answered."""
        command = packed_call(step, keys, self.at_us(), args)
        changes = step not in READING
        began_s = asyncio.get_running_loop().time()
        try:
            answer, is_repeat = await self._repeated(keys[0], command, acks, repeatable=repeatable, changes=changes)
            if not isinstance(answer, bytes):
                raise errors.unreadable(f"`{step}` gives {type(answer).__name__}", changes=changes)
        except Refused as refusal:
            step_metrics.count_failure(refusal.code)
            raise
        step_metrics.observe(step, asyncio.get_running_loop().time() - began_s)
        return answer, is_repeat

    async def read(self, key: str, *words: bytes) -> Any:
        """The answer of a command that changes nothing, from the primary that has the key."""
        return (await self._repeated(key, packed(*words), "primary", repeatable=True, changes=False))[0]

    async def _repeated(self, key: str, command: list[bytes], acks: Acks, *, repeatable: bool, changes: bool) -> tuple[Any, bool]:
        """The answer, and whether the command may have taken effect before."""
        loop = asyncio.get_running_loop()
        until, pause_s = loop.time() + self._deadline_s, PAUSE_S_MIN
        slot = key_slot(key.encode())
        # The server that the last answer named for this one call.
        named = ""
        # Answers in a row that named another server.
        redirections = 0
        is_repeat = has_loaded = False
        while True:
            asked, named, address = named, "", ""
            is_unknown = is_repeat and changes
            try:
                address = asked or self.primary_of(slot)
                if reason := self.health.refusal(address):
                    raise _refused(reason, is_unknown=is_unknown)
                return await self.lane(address, acks).call(command, acks, asking=bool(asked)), is_repeat
            except NotConfirmed as error:
                raise Refused("unknown_outcome", f"it took effect on the primary, but {error}") from None
            except MovedError as error:
                trouble: Exception = error
                redirections += 1
                try:
                    self.move_slot(address, error)
                except EngineAway as away:
                    raise _refused(away.detail, is_unknown=is_unknown) from None
            except AskError as error:
                trouble = error
                redirections += 1
                named = named_by(address, error)
            except TryAgainError as error:
                trouble = error
                await self.refresh()
            except (BusyLoadingError, ClusterDownError) as error:
                trouble = error
                self.health.suspect()
                await self.refresh(address)
            except ReadOnlyError as error:
                trouble = error
                await self._leave(address)
            except ResponseError as error:
                trouble = error
                if MISSING in str(error) and not has_loaded:
                    has_loaded = True
                    await self._load_library(address, is_unknown=is_unknown)
                    continue
                await self._answer_error(address, error, changes=changes, is_unknown=is_unknown)
            except NotSent as error:
                trouble = error
                if not address and self.health.lacks_slots:
                    raise _refused(str(error), is_unknown=is_unknown) from None
                self._end_if_unfit(address, error, is_unknown=is_unknown)
                self.health.suspect()
                await self.refresh(address)
            except (RedisError, OSError) as error:
                trouble = error
                self._end_if_unfit(address, error, is_unknown=is_unknown)
                self.health.suspect()
                if not repeatable:
                    raise Refused("unknown_outcome", f"the engine did not answer ({error})") from None
                is_repeat = True
                await self.refresh(address)
            if not isinstance(trouble, AskError):
                redirections = 0
            if loop.time() + pause_s > until:
                self.health.suspect()
                raise _refused(f"the engine does not answer ({trouble})", is_unknown=is_repeat and changes) from None
            if redirections == 1:
                continue
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S_MAX)

    def _end_if_unfit(self, address: str, error: Exception, *, is_unknown: bool) -> None:
        """Without a change by people, a repeat would not help.

        Raises:
            Refused: if that is so.
        """
        found = fault(address, error)
        if isinstance(found, UnfitServer):
            self.health.suspect()
            raise _refused(str(found), is_unknown=is_unknown) from None

    async def _load_library(self, address: str, *, is_unknown: bool) -> None:
        try:
            await self.health.load_library(address)
        except (EngineAway, UnfitServer) as error:
            self.health.suspect()
            raise _refused(_reason(error), is_unknown=is_unknown) from None

    async def _leave(self, address: str) -> None:
        """The server has become a replica: another one may have its slots, or its name."""
        self.health.suspect()
        if self.slots is None:
            await self.interrupt(address)
        else:
            await self.refresh(address)

    async def _answer_error(self, address: str, error: ResponseError, *, changes: bool, is_unknown: bool) -> None:
        """Return if the call may be repeated.

        Args:
            is_unknown: an attempt before this one may have taken effect.

        Raises:
            Exception: what the error means for the caller.
        """
        text = str(error)
        if text.startswith(errors.PREFIX):
            raise errors.refusal(text) from None
        if isinstance(error, OutOfMemoryError):
            full = "the engine's memory is full (`maxmemory`)"
            if is_unknown:
                raise _refused(full, is_unknown=True) from None
            raise Refused("over_limit", full, limit="maxmemory") from None
        self.health.suspect()
        if text.startswith(_PASSING):
            await self.refresh(address)
        elif _IN_STEP in text and changes:
            raise _refused(f"{address} has ended the step: {text}", is_unknown=True) from None
        else:
            raise _refused(_reason(fault(address, error)), is_unknown=is_unknown) from None


def _reason(error: EngineAway | UnfitServer) -> str:
    return error.detail if isinstance(error, EngineAway) else str(error)


def _refused(reason: str, *, is_unknown: bool) -> Refused:
    """The refusal of a call; `unknown_outcome` if it may have taken effect."""
    return Refused("unknown_outcome", f"it may have taken effect: {reason}") if is_unknown else EngineAway(reason)
