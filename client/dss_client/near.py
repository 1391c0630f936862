"""What a near cache holds, and until when it may answer from it. Pure: no connection, no event loop.

Theory of operation. The promise: a get that starts after a put was answered, on any client, never returns an older value. The node tells
this client about every write of a key that it may hold, and the put is answered only when the client has confirmed that, or when the
client's lease is over.

One `Holding` is what this client holds under one subscription at one node. Only the event loop's thread changes it, in the order in which
the node's events arrive. Any thread reads it, without a lock. A read does three things in this order:

1. it notes the end of the lease;
2. it takes the copy;
3. it looks at the clock: the lease that it noted is not over yet.

Why that is enough. Say a write of the key made the copy old, and the node sent a drop. If the lease was granted before the drop was sent,
the node waits for the confirmation or for the end of this lease. The copy was removed before the confirmation was sent, so when the reader
took it, there was no confirmation yet, and at 3 the lease was not over: the put was not answered when the read began. If the lease was
granted after the drop was sent, its grant came behind the drop: the copy was removed before the reader could note this lease, and what it
took is a newer one. The order of 1 and 2 matters: a reader that first took an old copy under a lease that was over, and then noted the
end of a new lease, would return it. The clock counts the time for which the machine is suspended, and it is read last, because a process
can be stopped between any two steps.

A new subscription begins with a new, empty `Holding`, so that a lease is never used for a copy of another subscription.

The lease counts from when the client asked for it, which is before the node granted it, and the client leaves out a part of it in case
its clock is slower than the node's.
"""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from dss_client.clock import now
from dss_client.connection import encode
from dss_client.errors import Unencodable, WrongUse

#: How much faster or slower than the node's the clock may run.
RATE_ERROR = 0.01
#: Additional part of a lease that is not used, in case the clocks differ by more.
MARGIN = 0.05
#: what a copy takes in addition to its key and value
COPY_BYTES = 220
LEASE_MS_MAX = 60_000
EVICTED_PER_FETCH = 1000

_load_json = msgspec.json.Decoder().decode


@dataclass(frozen=True)
class NearCache:
    """The size of a near cache.

    Args:
        max_items: how many values it holds at most.
        max_bytes: how much memory they take at most, with their keys.
        lease_ms: for how long it may answer without news from the node; by default, and at most, what the node grants. It is also how
            long a client that stops without warning can delay a put.

    Raises:
        WrongUse
    """

    max_items: int = 10_000
    max_bytes: int = 64 * 1024 * 1024
    lease_ms: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("max_items", self.max_items), ("max_bytes", self.max_bytes)):
            if type(value) is not int or value <= 0:
                raise WrongUse(f"`{name}` of a near cache is a whole number and more than 0, not {value!r}")
        if self.lease_ms is not None and (type(self.lease_ms) is not int or not 0 < self.lease_ms <= LEASE_MS_MAX):
            raise WrongUse(f"`lease_ms` of a near cache is from 1 to {LEASE_MS_MAX}, or None, not {self.lease_ms!r}")

    @classmethod
    def read(cls, given: NearCache | bool | None) -> NearCache | None:
        """What was passed as `near_cache`. None: there is no near cache.

        Raises:
            WrongUse
        """
        if given is None or given is False:
            return None
        if given is True:
            return cls()
        if isinstance(given, cls):
            return given
        raise WrongUse(f"`near_cache` is True, False or a NearCache, not {given!r}")


class NearStatistics(msgspec.Struct, frozen=True):
    """What a near cache did since the client, or this child of a fork, was made."""

    #: answered from this process
    hits: int = 0
    #: answered by the node
    misses: int = 0
    #: of the misses: the value was here, but the lease was over
    lease_misses: int = 0
    #: fetched values that were used once and not kept, because a write overtook them or the node said so
    not_installed: int = 0
    #: values removed because they were written, deleted or expired
    drops: int = 0
    #: values removed because there was no space
    evictions: int = 0
    #: how often the node had everything removed
    flushes: int = 0
    #: leases granted
    leases: int = 0
    #: how often the near cache began, empty
    subscriptions: int = 0
    items: int = 0
    bytes: int = 0
    #: whether it may answer now
    is_leased: bool = False


class Copy:
    """A value in this process. Its users may change what `load` returns."""

    __slots__ = ("_load", "_value", "version")

    def __init__(self, value: Any, version: int) -> None:
        self.version = version
        self._load: Any = None
        self._value = value
        if isinstance(value, dict | list):
            try:
                packed = encode(value)
                is_same = _load_json(packed) == value
            except (Unencodable, msgspec.MsgspecError):
                is_same = False
            # Not every number of other programs comes back from JSON.
            self._load, self._value = (_load_json, packed) if is_same else (copy.deepcopy, value)

    def load(self) -> Any:
        return self._value if self._load is None else self._load(self._value)

    def size(self, key: str) -> int | None:
        """In bytes; None: it is not known."""
        if self._load is copy.deepcopy:
            return None
        return sys.getsizeof(key) + sys.getsizeof(self._value) + COPY_BYTES


class Holding:
    """What one subscription holds. See the module.

    Attributes:
        items_max, bytes_max: when there is more, the copies that were not used for the longest time are removed.
        valid_until: copies may be used before this time; 0: no lease.
        seq: of the last invalidation that was carried out.
    """

    __slots__ = (
        "_asked_at",
        "_copies",
        "_token",
        "_unreported",
        "bytes",
        "bytes_max",
        "drops",
        "evictions",
        "flushes",
        "hits",
        "items_max",
        "seq",
        "valid_until",
    )

    def __init__(self, settings: NearCache) -> None:
        self.items_max = settings.max_items
        self.bytes_max = settings.max_bytes
        self.valid_until = 0.0
        self.seq = 0
        self.bytes = 0
        self.hits = 0
        self.drops = 0
        self.evictions = 0
        self.flushes = 0
        #: least recently used first
        self._copies: OrderedDict[str, tuple[Copy, int]] = OrderedDict()
        #: not held, but the node counts them
        self._unreported: set[str] = set()
        #: of the last request for a lease, and when it was made; it is removed with the answer
        self._token = 0
        self._asked_at: float | None = None

    def __len__(self) -> int:
        return len(self._copies)

    def __contains__(self, key: str) -> bool:
        return key in self._copies

    # ------------------------------------------------------ in any thread

    def read(self, key: str) -> Copy | None:
        """The copy, if it may be used now."""
        valid_until = self.valid_until
        held = self._copies.get(key)
        if held is None or now() >= valid_until:
            return None
        try:  # noqa: SIM105  (on the path of most reads)
            self._copies.move_to_end(key)
        except KeyError:
            # It was dropped just now.
            pass
        self.hits += 1
        return held[0]

    # ------------------------------------------------ in the loop's thread

    def install(self, key: str, copy: Copy) -> bool:
        """Keep a copy that the node counts as held. False: it does not fit."""
        size = copy.size(key)
        self._remove(key)
        if size is None or size > self.bytes_max:
            self._unreported.add(key)
            return False
        self._unreported.discard(key)
        self._copies[key] = (copy, size)
        self.bytes += size
        while len(self._copies) > self.items_max or self.bytes > self.bytes_max:
            removed, (_, removed_bytes) = self._copies.popitem(last=False)
            self.bytes -= removed_bytes
            self._unreported.add(removed)
            self.evictions += 1
        return True

    def drop(self, keys: Iterable[str], seq: int) -> None:
        """Remove copies, before the confirmation of `seq` is sent."""
        for key in keys:
            self.drops += self._remove(key)
            self._unreported.discard(key)
        self.seq = seq

    def flush(self, seq: int) -> None:
        """Remove all copies, before the confirmation of `seq` is sent."""
        self.valid_until = 0.0
        self._asked_at = None
        self._copies.clear()
        self._unreported.clear()
        self.bytes = 0
        self.flushes += 1
        self.seq = seq

    def refuse(self, key: str) -> None:
        """Keep no copy, although the node counts one as held."""
        self._remove(key)
        self._unreported.add(key)

    def report(self, busy: Container[str]) -> list[str]:
        """Keys that the node need not count from now on: they are not held, and none of them is `busy`."""
        keys = [key for key in self._unreported if key not in busy][:EVICTED_PER_FETCH]
        self._unreported.difference_update(keys)
        return keys

    def _remove(self, key: str) -> bool:
        held = self._copies.pop(key, None)
        if held is None:
            return False
        self.bytes -= held[1]
        return True

    # -------------------------------------------------------------- lease

    @property
    def is_asking(self) -> bool:
        """Whether the answer to a request for a lease is still to come."""
        return self._asked_at is not None

    def ask(self, token: int) -> None:
        """A lease is asked for now. Call it before the request is sent. Answers to earlier requests no longer count."""
        self._token, self._asked_at = token, now()

    def granted(self, token: int, lease_ms: float) -> bool:
        """The node granted a lease. False: it is not the answer to the last request."""
        if token != self._token or self._asked_at is None:
            return False
        until = self._asked_at + lease_ms / 1000 * (1 - RATE_ERROR - MARGIN)
        self._asked_at = None
        self.valid_until = max(self.valid_until, until)
        return True

    def refused(self, token: int) -> None:
        """The node grants no lease now."""
        if token == self._token:
            self._asked_at = None
