"""The near clients of a node: programs that keep values in their own process and answer gets from there.

Theory of operation. A near client is a sharer below a sharer. The directory knows that this node may hold a line of a key. This
node knows which of its clients may hold the key. A client answers from its entries only while it holds a lease from this node.
The node acknowledges a write only when no client can answer with an older value. So the promise of the cache includes the
clients: a get that starts after a put was answered never returns an older value.

1. *Holders.* A client becomes a holder of a key in the turn of the event loop in which the value is queued for it, and only while
   the node has a readable line of that version and holds its own lease. All messages to a client are sent in order.
2. *Invalidations.* When a write is applied here, each holder gets a drop. It stays outstanding until the client has confirmed it,
   or until the lease ends that the client may hold when the drop is sent (its *deadline*). A later grant is queued behind the
   drop: a client that uses it has processed the drop. So a later grant never extends the deadline, and a client that does not
   answer delays a write by one lease at most.
3. *The reported stamp.* What this node reports as applied, to others and to its own waiters, stays below the stamp of every
   outstanding invalidation (`reported`). Nothing else depends on the clients.
4. *Grants* are no longer than what remains of the node's own lease, so the leases of the clients are over when the node can be
   revoked. The client counts from when it asked, the node from when it granted (see `leases`).
5. *Gone clients.* A client whose connection ends, or that the node drops because of a deadline, may use its lease to the end. Its
   keys are held until then, and writes of them wait until then.
6. *Flushes* are invalidations of all keys of a client. They use a stamp that was not applied yet when they were sent.

A client has a number, and the holders of a key are an integer with a bit for each number: ten thousand keys that a thousand
clients share take a few megabytes. The numbers of forgotten clients are used again when `sweep` has removed their bits.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from dss_cache.core.leases import RATE_ERROR

T = TypeVar("T")

#: `sweep` visits one part of the holders at a time, so that it never takes long.
PARTS = 256
#: Account of a held key, without its text: its entry, and an integer with a bit for each of up to `BITS_INCLUDED` clients.
KEY_BYTES = 240
BITS_INCLUDED = 1000


class Invalidation:
    """A write that some clients have not confirmed yet."""

    __slots__ = ("left", "stamp")

    def __init__(self, stamp: int) -> None:
        self.stamp = stamp
        #: clients that have not confirmed it
        self.left = 0


class NearClient(Generic[T]):
    """One subscription of a client. Only `NearClients` changes it."""

    __slots__ = ("held_until", "is_flush", "is_gone", "keys", "number", "outstanding", "sent_seq", "seq", "subscriber", "unsent")

    def __init__(self, subscriber: T) -> None:
        self.subscriber = subscriber
        #: its bit among the holders; -1: it never held a key
        self.number = -1
        #: how many keys it may hold
        self.keys = 0
        #: it cannot hold a lease after this time, by the node's clock
        self.held_until = 0.0
        #: number of the latest drop or flush
        self.seq = 0
        #: number of the latest one that was sent
        self.sent_seq = 0
        #: keys of the drop that is not sent yet
        self.unsent: list[str] = []
        #: what is not sent yet is a flush
        self.is_flush = False
        #: (number of the message, when it was made, deadline, invalidation), in order
        self.outstanding: deque[tuple[int, float, float, Invalidation]] = deque()
        #: nothing is sent to it any longer; it may hold a lease until `held_until`
        self.is_gone = False


class NearClients(Generic[T]):
    """See the module's docstring. T is whatever the caller needs to reach a client.

    Args:
        clients_max, keys_max, bytes_max: limits: clients, keys of one client, and the account of all held keys.
        waited: called with the time in seconds that each confirmation took.
    """

    def __init__(
        self,
        clients_max: int = 1000,
        keys_max: int = 20_000,
        bytes_max: int = 2**28,
        waited: Callable[[float], object] = lambda seconds: None,
    ) -> None:
        self.clients_max = clients_max
        self.keys_max = keys_max
        self.bytes_max = bytes_max
        self._key_bytes = KEY_BYTES + max(0, clients_max - BITS_INCLUDED) // 8
        self._waited = waited
        #: keys that at least one client may hold
        self.keys = 0
        self.bytes = 0
        #: subscriptions that are open
        self.count = 0
        #: messages with drops, and clients that did not confirm in time
        self.drops = self.dropped_clients = 0
        #: clients that have a message to be sent, see `take`
        self.to_send: list[NearClient[T]] = []
        #: key -> a bit for each client that may hold it
        self._holders: list[dict[str, int]] = [{} for _ in range(PARTS)]
        #: the client of each number; None: the number is free, or waits for `sweep`
        self._by_number: list[NearClient[T] | None] = []
        self._free: list[int] = []
        #: numbers of forgotten clients: bits of these mean nothing
        self._retired = 0
        self._sweeping = 0
        self._swept_parts = PARTS
        #: the largest client was flushed for `bytes_max`, and the sweep after that is not over
        self._is_making_room = False
        #: outstanding invalidations, lowest stamp first; those that no request waits for any longer are removed late
        self.unconfirmed: list[tuple[int, int, Invalidation]] = []
        self._invalidations = 0
        #: clients with outstanding invalidations, and gone clients (ordered sets)
        self._waiting: dict[NearClient[T], None] = {}
        self._gone: dict[NearClient[T], None] = {}

    # ------------------------------------------------------------------ clients

    @property
    def is_full(self) -> bool:
        """No further client can subscribe now. Clients that are not forgotten yet count."""
        return self.count + len(self._gone) + self._retired.bit_count() >= self.clients_max

    @property
    def is_idle(self) -> bool:
        """There is nothing to expire or to sweep."""
        return not self.count and not self._gone and not self._retired

    @property
    def confirmations_due(self) -> int:
        """Drops and flushes that clients have not confirmed."""
        return sum(len(client.outstanding) for client in self._waiting)

    def open(self, subscriber: T) -> NearClient[T]:
        """A client subscribes. It holds nothing."""
        self.count += 1
        return NearClient(subscriber)

    def leave(self, client: NearClient[T]) -> None:
        """A subscription has ended. What the client holds counts until its lease is over."""
        if client.is_gone:
            return
        self.count -= 1
        client.is_gone = True
        client.unsent, client.is_flush = [], False
        self._gone[client] = None

    def granted(self, client: NearClient[T], now: float, lease_s: float) -> None:
        """A lease is granted now. Call this before the grant is queued, and queue what is unsent before the grant."""
        client.held_until = max(client.held_until, now + lease_s * (1 + RATE_ERROR))

    def expire(self, now: float) -> list[NearClient[T]]:
        """Count what is past its deadline as confirmed. Returns the clients that must be dropped for it; call `leave` for each."""
        overdue = []
        for client in list(self._waiting):
            outstanding = client.outstanding
            if outstanding[0][2] >= now:
                continue
            while outstanding and outstanding[0][2] < now:
                outstanding.popleft()[3].left -= 1
            if not outstanding:
                del self._waiting[client]
            if not client.is_gone:
                self.dropped_clients += 1
                overdue.append(client)
        for client in [client for client in self._gone if client.held_until < now]:
            del self._gone[client]
            self._retire(client)
        return overdue

    # ------------------------------------------------------------------ holders

    def install(self, client: NearClient[T], keys: Iterable[str], applied: int, now: float) -> set[str]:
        """The client may hold these keys from now on. Returns those; it must not install the others.

        If a limit is reached, a client is flushed. The message for it must be sent before the values (see `take`).

        Args:
            applied: the stamp that this node has applied.
        """
        installed: set[str] = set()
        if client.is_gone:
            return installed
        keys = list(keys)
        if (
            client.keys + len(keys) > self.keys_max
            and client.keys + self._count_new(client, keys) > self.keys_max
            and client.keys
        ):
            self.flush_one(client, applied + 1, now)
        if self.bytes >= self.bytes_max:
            self._make_room(applied + 1, now)
        if client.number < 0:
            self._number(client)
        bit = 1 << client.number
        for key in keys:
            part = self._holders[hash(key) % PARTS]
            holders = part.get(key, 0)
            if not holders & bit:
                if client.keys >= self.keys_max or (not holders and self.bytes >= self.bytes_max):
                    continue
                if not holders:
                    self.keys += 1
                    self.bytes += self._key_bytes + len(key)
                part[key] = holders | bit
                client.keys += 1
            installed.add(key)
        return installed

    def evicted(self, client: NearClient[T], keys: Iterable[str]) -> None:
        """The client has dropped these keys on its own."""
        if client.number < 0:
            return
        bit = 1 << client.number
        for key in keys:
            part = self._holders[hash(key) % PARTS]
            holders = part.get(key, 0)
            if holders & bit:
                client.keys -= 1
                self._set(part, key, holders ^ bit)

    def holders(self, key: str) -> int:
        """How many clients may hold the key."""
        holders = self._holders[hash(key) % PARTS].get(key, 0)
        return (holders & ~self._retired).bit_count()

    # ------------------------------------------------------------ invalidations

    def written(self, key: str, stamp: int, now: float) -> None:
        """A write of the key is applied here: its holders must drop it. Call this before the stamp is reported."""
        part = self._holders[hash(key) % PARTS]
        holders = part.get(key, 0)
        if not holders:
            return
        self._set(part, key, 0)
        invalidation = Invalidation(stamp)
        while holders:
            bit = holders & -holders
            holders ^= bit
            client = self._by_number[bit.bit_length() - 1]
            if client is None:
                continue
            client.keys -= 1
            if not client.is_gone:
                self._message(client)
                if not client.is_flush:
                    client.unsent.append(key)
            self._wait_for(client, invalidation, now)
        self._add(invalidation)

    def flush(self, stamp: int, now: float) -> None:
        """No client may use anything that it holds: nothing is known about it. `stamp` is not applied yet."""
        invalidation = Invalidation(stamp)
        for client in self._by_number:
            if client is not None and client.keys:
                self._flush(client, invalidation, now)
                client.keys = 0
        self._add(invalidation)
        for part in self._holders:
            part.clear()
        self.keys = self.bytes = 0

    def flush_one(self, client: NearClient[T], stamp: int, now: float) -> None:
        """The client must drop everything; it gets another number."""
        invalidation = Invalidation(stamp)
        self._flush(client, invalidation, now)
        self._add(invalidation)
        self._retire(client)
        client.number, client.keys = -1, 0

    def take(self, client: NearClient[T]) -> tuple[int, list[str], bool] | None:
        """The message that is to be sent to the client now: its number, the keys to drop, and whether it is a flush."""
        if client.sent_seq == client.seq or client.is_gone:
            return None
        message = (client.seq, client.unsent, client.is_flush)
        client.sent_seq, client.unsent, client.is_flush = client.seq, [], False
        self.drops += 1
        return message

    def confirm(self, client: NearClient[T], seq: int, now: float) -> bool:
        """The client has carried out everything up to message `seq`. True: `reported` may have changed.

        It comes too late from a client that has gone, because invalidations since then have no message of their own.
        """
        if client.is_gone:
            return False
        outstanding = client.outstanding
        seq = min(seq, client.sent_seq)
        if not outstanding or outstanding[0][0] > seq:
            return False
        while outstanding and outstanding[0][0] <= seq:
            _, made_at, _, invalidation = outstanding.popleft()
            invalidation.left -= 1
            self._waited(now - made_at)
        if not outstanding:
            del self._waiting[client]
        return True

    def reported(self, applied: int) -> int:
        """The stamp that this node may report when it has applied `applied`: below every outstanding invalidation."""
        lowest = self.unconfirmed
        while lowest and not lowest[0][2].left:
            heapq.heappop(lowest)
        return min(applied, lowest[0][0] - 1) if lowest else applied

    # -------------------------------------------------------------------- sweep

    def sweep(self) -> None:
        """Remove the bits of forgotten clients from the next part of the holders. Call it at every tick."""
        if self._swept_parts == PARTS:
            if not self._retired:
                return
            self._sweeping, self._swept_parts = self._retired, 0
        part = self._holders[self._swept_parts]
        self._swept_parts += 1
        for key in [key for key, holders in part.items() if holders & self._sweeping]:
            self._set(part, key, part[key] & ~self._sweeping)
        if self._swept_parts == PARTS:
            self._retired ^= self._sweeping
            self._is_making_room = False
            self._free += [number for number in range(len(self._by_number)) if self._sweeping >> number & 1]

    def _count_new(self, client: NearClient[T], keys: list[str]) -> int:
        if client.number < 0:
            return len(keys)
        number = client.number
        return sum(not self._holders[hash(key) % PARTS].get(key, 0) >> number & 1 for key in keys)

    def _number(self, client: NearClient[T]) -> None:
        if self._free:
            client.number = self._free.pop()
            self._by_number[client.number] = client
        else:
            client.number = len(self._by_number)
            self._by_number.append(client)

    def _retire(self, client: NearClient[T]) -> None:
        if client.number >= 0:
            self._by_number[client.number] = None
            self._retired |= 1 << client.number

    def _make_room(self, stamp: int, now: float) -> None:
        """Flush the client that holds most, and wait for the sweep before another one is flushed."""
        largest = max((client for client in self._by_number if client is not None), key=lambda client: client.keys, default=None)
        if largest is not None and not largest.is_gone and not self._is_making_room:
            self._is_making_room = True
            self.flush_one(largest, stamp, now)

    def _set(self, part: dict[str, int], key: str, holders: int) -> None:
        if holders:
            part[key] = holders
        else:
            del part[key]
            self.keys -= 1
            self.bytes -= self._key_bytes + len(key)

    def _flush(self, client: NearClient[T], invalidation: Invalidation, now: float) -> None:
        if not client.is_gone:
            self._message(client)
            client.unsent, client.is_flush = [], True
        self._wait_for(client, invalidation, now)

    def _message(self, client: NearClient[T]) -> None:
        """Number the message that is not sent yet."""
        if client.seq == client.sent_seq:
            client.seq += 1
            self.to_send.append(client)

    def _wait_for(self, client: NearClient[T], invalidation: Invalidation, now: float) -> None:
        if client.held_until < now:
            return  # it answers from nothing until it has a new lease, which is queued behind this message
        invalidation.left += 1
        client.outstanding.append((client.seq, now, client.held_until, invalidation))
        self._waiting[client] = None

    def _add(self, invalidation: Invalidation) -> None:
        if invalidation.left:
            self._invalidations += 1
            heapq.heappush(self.unconfirmed, (invalidation.stamp, self._invalidations, invalidation))
