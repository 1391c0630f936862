"""Which servers of the engine can be used.

Each primary is asked again and again whether it carries out a step. One that does not answer is away, after a time in which a replica may
take over. One whose answer says that something must be changed first is unfit at once. Calls of its partitions are refused from then
on, without waiting, until it carries out a step again. The partitions on other servers go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from redis.exceptions import AskError, MovedError, OutOfMemoryError, ResponseError, TryAgainError

from dss_queue.redis_engine import library_text
from dss_queue.redis_engine.calls import packed_call
from dss_queue.redis_engine.errors import EngineAway, UnfitServer
from dss_queue.redis_engine.faults import fault
from dss_queue.redis_engine.keys import partition_keys
from dss_queue.redis_engine.lane import NotSent, packed
from dss_queue.redis_engine.nodes import Nodes

State = Literal["ready", "away", "unfit"]

#: Names that are tried for a partition on a server. One with few slots may have none of them: then it is only asked whether it lives.
NAMES_MAX = 2000
#: Servers that a text names.
NAMED_MAX = 3
#: In the answer of a server that does not have the library.
MISSING = "Function not found"

# Names that are only tried take no place in the cache.
_keys = partition_keys.__wrapped__


class Trouble(NamedTuple):
    """Why a server cannot be used."""

    state: Literal["away", "unfit"]
    detail: str


class Condition(NamedTuple):
    """How the engine is."""

    state: State
    #: why it is not ready, for people
    detail: str
    #: some of its partitions can be used
    is_usable: bool


class Health:
    """See the module."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        #: servers whose calls are refused, by address
        self._troubles: dict[str, Trouble] = {}
        #: slots of the Cluster have no primary
        self.lacks_slots = False
        #: since when servers fail, in loop time
        self._failing_since_s: dict[str, float] = {}
        #: servers that have carried out a step
        self._proved: set[str] = set()
        #: address -> name of a topic whose first partition is on that server
        self._names: dict[str, str] = {}
        #: address -> `slots_changes` of the nodes when no such name was found
        self._nameless: dict[str, int] = {}
        #: a call has failed: the next look opens connections
        self._is_suspicious = False
        #: called when a call has failed
        self.on_trouble: Callable[[], None] = lambda: None
        #: called when all primaries have been asked
        self.on_look: Callable[[], None] = lambda: None

    @property
    def has_troubles(self) -> bool:
        """Whether calls about some keys are refused at once."""
        return bool(self._troubles) or self.lacks_slots

    def refusal(self, address: str) -> str:
        """Why calls to a server are refused; empty: they are not."""
        trouble = self._troubles.get(address) if self._troubles else None
        return trouble.detail if trouble is not None else ""

    def can_use(self, key: str) -> bool:
        """Whether calls about a key are not refused at once."""
        if not self._troubles and not self.lacks_slots:
            return True
        try:
            return self._nodes.address_of(key) not in self._troubles
        except NotSent:
            return False

    def suspect(self) -> None:
        """A call has failed."""
        self._is_suspicious = True
        self.on_trouble()

    # -------------------------------------------------------------------- looks

    async def look(self, *, is_thorough: bool, grace_s: float = 0.0) -> Condition:
        """Ask all primaries.

        Args:
            is_thorough: also look at what they are, how they are set, and which library they have.
            grace_s: how long one may fail before it is away.
        """
        is_suspicious, self._is_suspicious = self._is_suspicious, False
        try:
            await self._nodes.find()
        except UnfitServer as error:
            return Condition("unfit", str(error), False)
        except EngineAway as error:
            return Condition("away", error.detail, False)
        if is_thorough:
            await self._nodes.refresh()

        async def look_at(address: str) -> None:
            # A short look may not notice that the fault is still there.
            examines = is_thorough or address in self._failing_since_s or address in self._troubles
            if examines or is_suspicious:
                await self._nodes.renew(address)
            await self._look_at(address, self._examine if examines else self._try_step, grace_s)

        await asyncio.gather(*map(look_at, self._nodes.primaries))
        condition = await self._condition()
        self.on_look()
        return condition

    async def _look_at(self, address: str, examine: Callable[[str], Any], grace_s: float) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            await examine(address)
        except UnfitServer as error:
            self._troubles[address] = Trouble("unfit", str(error))
            return
        except EngineAway as error:
            trouble = Trouble("away", error.detail)
        except Exception as error:
            # The answer has a form that no server gives.
            trouble = Trouble("away", f"{address} gives no answer that can be used: {type(error).__name__}: {error}")
        else:
            self._troubles.pop(address, None)
            self._failing_since_s.pop(address, None)
            self._proved.add(address)
            self._nodes.doubted.discard(address)
            return
        since_s = self._failing_since_s.setdefault(address, began_s)
        # A replica may have taken over.
        await self._nodes.refresh(address)
        if address in self._proved and address not in self._troubles and loop.time() - since_s < grace_s:
            return
        self._troubles[address] = trouble
        # Calls may have been sent to it since it began to fail.
        await self._nodes.interrupt(address)

    async def _condition(self) -> Condition:
        primaries = self._nodes.primaries
        for address in {*self._troubles, *self._failing_since_s, *self._proved, *self._names, *self._nameless} - {*primaries}:
            if address in self._failing_since_s:
                # Another server has its slots: calls are repeated there.
                await self._nodes.interrupt(address)
            self._troubles.pop(address, None)
            self._failing_since_s.pop(address, None)
            self._proved.discard(address)
            self._names.pop(address, None)
            self._nameless.pop(address, None)
        missing = self._nodes.slots.missing if self._nodes.slots is not None else 0
        self.lacks_slots = missing > 0
        found = [self._troubles[one] for one in primaries if one in self._troubles]
        if missing:
            found.append(Trouble("away", f"{missing} slots of the Cluster have no primary"))
        if not found:
            return Condition("ready", "", True)
        detail = "; ".join(one.detail for one in found[:NAMED_MAX])
        if len(found) > NAMED_MAX:
            detail += f"; and {len(found) - NAMED_MAX} more"
        usable = len([one for one in primaries if one not in self._troubles])
        if usable:
            detail += f"; the partitions on {usable} of {len(primaries)} servers go on"
        return Condition("away" if any(one.state == "away" for one in found) else "unfit", detail, usable > 0)

    async def _examine(self, address: str) -> None:
        """Check what a server is, load the library where it is missing, and carry out steps that change something.

        Raises:
            UnfitServer: with what to change.
            EngineAway: it does not answer.
        """
        library_text.check_server(address, await self._nodes.info(address))
        await self.load_library(address)
        await self._try_step(address)
        keys = self._keys_on(address)
        if keys:
            # It opens nothing: the partition is closed again before anything is confirmed.
            await self._ask_step(address, "open", keys, "probe")
            await self._ask_step(address, "close", keys)
            await self._ask(address, packed(b"SPUBLISH", keys[0].encode(), b""))

    async def _try_step(self, address: str) -> None:
        """Let a server carry out a step that changes nothing, but needs everything that changes need.

        Raises: as `_examine`.
        """
        keys = self._keys_on(address)
        if not keys:
            await self._ask(address, packed(b"PING"))
        else:
            await self._ask_step(address, "retain", keys, 0)

    async def _ask_step(self, address: str, step: str, keys: tuple[str, ...], *args: object) -> None:
        await self._ask(address, packed_call(step, keys, 0, args))

    async def _ask(self, address: str, command: list[bytes]) -> None:
        """
        Raises: as `_examine`.
        """
        try:
            await self._nodes.ask(address, command, passes=(ResponseError,))
        except MovedError:
            await self._nodes.refresh()
        except (AskError, TryAgainError, OutOfMemoryError):
            # Its slot is being moved, or it takes no more messages: it carries out what makes room.
            return
        except ResponseError as error:
            if MISSING not in str(error):
                raise fault(address, error) from None
            await self.load_library(address)

    def _keys_on(self, address: str) -> tuple[str, ...]:
        """The keys of a partition on a server that no topic has; none: none is found."""
        name = self._names.get(address)
        if name is None or self._place_of(name) != address:
            name = self._find_name(address)
            if name is None:
                return ()
            self._names[address] = name
        return _keys(name, 0)

    def _find_name(self, address: str) -> str | None:
        slots_changes = self._nodes.slots_changes
        if self._nameless.get(address) == slots_changes:
            return None
        tried = (f"probe{number}" for number in range(NAMES_MAX))
        name = next((one for one in tried if self._place_of(one) == address), None)
        if name is None:
            self._nameless[address] = slots_changes
        return name

    def _place_of(self, name: str) -> str:
        try:
            return self._nodes.address_of(_keys(name, 0)[0])
        except NotSent:
            return ""

    async def load_library(self, address: str) -> None:
        """Load the library unless this release or a newer one has loaded it.

        Raises: as `_examine`.
        """
        source = library_text.text()
        listed = packed(b"FUNCTION", b"LIST", b"LIBRARYNAME", library_text.NAME.encode(), b"WITHCODE")
        found = await self._nodes.ask(address, listed)
        loaded = _code_of(found)
        if loaded == source or library_text.revision_of(loaded) > library_text.revision_of(source):
            return
        try:
            await self._nodes.ask(address, packed(b"FUNCTION", b"LOAD", b"REPLACE", source.encode()), passes=(ResponseError,))
        except ResponseError as error:
            found = fault(address, error)
            raise (
                found if isinstance(found, UnfitServer) else UnfitServer(f"{address} cannot load the functions: {error}")
            ) from None

    async def check_confirmations(self, *, needs_disk: bool) -> None:
        """Whether the primaries have what `acks` other than `primary` need.

        Args:
            needs_disk: for `fsync`.

        Raises:
            UnfitServer: with what to change.
            EngineAway: a server does not answer.
        """
        replicas_min = self._nodes.replicas_min
        for address in self._nodes.primaries:
            info = await self._nodes.info(address)
            library_text.check_server(address, info, needs_disk=needs_disk)
            replicas = int(info.get("connected_slaves", 0))
            if replicas < replicas_min:
                raise UnfitServer(f"{address} has {replicas} replicas, and DSS_ENGINE_REPLICAS_MIN is {replicas_min}")


def _code_of(listed: Any) -> str:
    """The source in an answer of `FUNCTION LIST`; empty: there is none, or none that can be read."""
    try:
        fields = dict(zip(listed[0][::2], listed[0][1::2], strict=True))
        return bytes(fields[b"library_code"]).decode()
    except (LookupError, TypeError, ValueError):
        return ""
