"""Serves the near clients of this node: `cache.near`. The rules are in `core.near_clients`; here are the messages.

Every message to a client goes through `_push`, which first sends the drop that was gathered for it. So a grant or a value never
overtakes a drop of a write that was applied before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from dss_api.attached import ENCODING
from dss_api.caller import Caller, caller
from dss_api.client_memory import CALL_BYTES
from dss_api.codec import INTERNAL
from dss_api.errors import Refused
from dss_api.operation import Feed
from dss_api.problems import problem_document
from dss_api.result import Result
from dss_api.rights import Need, cache
from dss_api.supervised import Tasks
from dss_cache.config import config_of
from dss_cache.core.coherence import NearCache
from dss_cache.core.commands import AgreeClientLease, NearConfirm, NearFetch, NearRenew, NearRequest
from dss_cache.core.directory import Directory
from dss_cache.core.leases import RATE_ERROR
from dss_cache.core.near_clients import NearClient
from dss_cache.core.values import is_binary, to_answer
from dss_cache.near_answers import NearEvent, NearItem, NearOpened
from dss_cache.peers import Peers, Waiter
from dss_cache.reading import Found, Reader, too_large

if TYPE_CHECKING:
    from dss_raft.node import Node

#: Cluster version from which all members know that a node has near clients.
SINCE = 5
#: Fetches of one near client in progress.
FETCHES_MAX = 64
#: Account of a key of a waiting fetch, without its text.
KEY_BYTES = 100
#: Values that one fetch answers.
BYTES_PER_FETCH_MAX = 8 * 1024 * 1024
#: A renewal that comes sooner after the one before counts as a call.
RENEW_S_MIN = 0.015
_NEEDED = cache("read", "keys")
_NULL = msgspec.Raw(b"null")


class Subscriber:
    """One subscription: its connection and what it waits for."""

    def __init__(self, feed: Feed, who: Caller, lease_s: float) -> None:
        self.feed = feed
        self.who = who
        self.lease_s = lease_s
        self.fetches = 0
        #: held by the fetch whose answer waits until the client has read enough
        self.answering = asyncio.Lock()
        #: when it last asked for a lease without that being a call, and the latest message that it has confirmed
        self.renewed_at = -RENEW_S_MIN
        self.confirmed_seq = 0
        #: token of the renewal that waits for this node's own lease; an earlier one gets no answer
        self.renewal: int | None = None
        #: resolved with the reason when the node drops the client
        self.dropped: asyncio.Future[Refused] = asyncio.get_running_loop().create_future()


Client = NearClient[Subscriber]


class NearServer:
    """The near clients of one node.

    Args:
        counted: called with the number of hits and misses of a fetch.
    """

    def __init__(
        self,
        node: Node,
        near: NearCache[Waiter],
        directory: Directory,
        peers: Peers,
        reader: Reader,
        clock: Callable[[], float],
        counted: Callable[[int, int], None],
    ) -> None:
        self._node = node
        self._near = near
        self._directory = directory
        self._peers = peers
        self._reader = reader
        self._clock = clock
        self._counted = counted
        self.lease_ms = config_of(node).cache_client_lease_ms
        self._sending = False
        self._is_closed = False
        self._agreeing: asyncio.Future[Result] | None = None
        self._tasks = Tasks()
        self._open: dict[Client, None] = {}

    # ------------------------------------------------------------ subscriptions

    async def serve(self, request: NearRequest, feed: Feed) -> Refused:
        """Serve one client until it is dropped. Returns why.

        Raises:
            Refused: `not_supported_yet`, `over_limit`, `stopping`.
        """
        clients = self._near.clients
        version = self._node.replica.cluster_version
        if version < SINCE:
            detail = f"near caches need cluster version {SINCE}; it is {version}"
            raise Refused("not_supported_yet", detail, needed=SINCE, cluster_version=version)
        if self._is_closed:
            raise Refused("stopping", "this node is stopping")
        if clients.is_full:
            detail = f"this node serves {clients.clients_max} near clients (DSS_CACHE_CLIENTS_MAX)"
            raise Refused("over_limit", detail, limit="near_clients_max", maximum=clients.clients_max)
        lease_ms = min(request.lease_ms or self.lease_ms, self.lease_ms)
        subscriber = Subscriber(feed, caller(), lease_ms / 1000)
        client: Client = clients.open(subscriber)
        self._open[client] = None
        feed.on_message(lambda message: self._receive(client, message))
        try:
            feed.push(NearEvent(opened=NearOpened(self._node.node_id, lease_ms, clients.keys_max)))
            return await subscriber.dropped
        finally:
            del self._open[client]
            clients.leave(client)

    def close(self) -> None:
        """The node stops: grant nothing from now on."""
        self._is_closed = True
        self._tasks.cancel()
        for client in list(self._open):
            self._drop(client, Refused("stopping", "this node is stopping"))

    def _receive(self, client: Client, message: Any) -> None:
        subscriber = client.subscriber
        if isinstance(message, NearRenew):
            self._confirmed(client, message.seq)
            now = self._clock()
            if now - subscriber.renewed_at < RENEW_S_MIN:
                subscriber.feed.count_call()
            else:
                subscriber.renewed_at = now
            self._renew(client, message.token)
        elif isinstance(message, NearFetch):
            self._fetch(client, message)
        else:
            assert isinstance(message, NearConfirm)
            if subscriber.confirmed_seq < message.seq <= client.sent_seq:
                # As many as there were drops.
                subscriber.confirmed_seq = message.seq
            else:
                subscriber.feed.count_call()
            self._confirmed(client, message.seq)

    # ------------------------------------------------------------ invalidations

    def entry_applied(self) -> None:
        """Something was applied: send what the clients must drop, in one message for each turn of the event loop."""
        if self._near.clients.to_send and not self._sending:
            self._sending = True
            asyncio.get_running_loop().call_soon(self._send_all)

    def _send_all(self) -> None:
        self._sending = False
        clients = self._near.clients
        to_send, clients.to_send = clients.to_send, []
        for client in to_send:
            self._send_unsent(client)

    def _send_unsent(self, client: Client) -> None:
        message = self._near.clients.take(client)
        if message is not None:
            seq, keys, is_flush = message
            client.subscriber.feed.push(NearEvent(seq=seq, flush=True) if is_flush else NearEvent(seq=seq, drop=keys))

    def _push(self, client: Client, event: NearEvent) -> None:
        self._send_unsent(client)
        client.subscriber.feed.push(event)

    def _confirmed(self, client: Client, seq: int) -> None:
        if self._near.clients.confirm(client, seq, self._clock()):
            self._acknowledge()

    def _acknowledge(self) -> None:
        self._peers.release(self._near.clients_confirmed())
        self._peers.entry_applied()

    def tick(self) -> None:
        """About every 20 ms: deadlines, and bits of clients that have gone."""
        clients = self._near.clients
        if clients.is_idle:
            return
        for client in clients.expire(self._clock()):
            self._drop(client, Refused("request_timeout", "an invalidation was not confirmed before the lease ended"))
        self._acknowledge()
        clients.sweep()
        self.entry_applied()

    def _drop(self, client: Client, reason: Refused) -> None:
        self._near.clients.leave(client)
        if not client.subscriber.dropped.done():
            client.subscriber.dropped.set_result(reason)

    # ------------------------------------------------------------------- leases

    def _renew(self, client: Client, token: int) -> None:
        self._near.used_at = self._clock()
        if self._grant(client, token):
            return
        subscriber = client.subscriber
        waits = subscriber.renewal is not None
        subscriber.renewal = token
        if not waits:
            self._tasks.spawn("cache_near", self._renew_later(client))

    def _grant(self, client: Client, token: int) -> bool:
        """Grant a lease if this node has one itself and the log knows how long those of its clients are."""
        if self._is_closed or self._directory.client_lease_ms.get(self._node.node_id) != self.lease_ms:
            return False
        # Before the grant is made: the client can use it only when it has carried out what was applied until now.
        self._send_unsent(client)
        lease_ms = self._near.grant(client, self._clock(), client.subscriber.lease_s)
        if lease_ms:
            client.subscriber.feed.push(NearEvent(token=token, lease_ms=lease_ms))
        return lease_ms > 0

    async def _renew_later(self, client: Client) -> None:
        refusal = Refused("internal", INTERNAL)
        try:
            await self._agree()
            await self._peers.renew()
            refusal = Refused("no_leader", "this node has no lease itself")
        except Refused as refused:
            refusal = refused
        finally:
            # Also after a failure: the client waits for an answer, and its next renewal begins a new attempt.
            subscriber = client.subscriber
            token, subscriber.renewal = subscriber.renewal, None
            assert token is not None
            if not self._grant(client, token):
                self._push_problem(client, token, refusal)

    async def _agree(self) -> None:
        """Put the length of the leases into the log, for the next process of this node.

        Raises:
            Refused: what `submit` raises.
        """
        if self._directory.client_lease_ms.get(self._node.node_id) == self.lease_ms:
            return
        if self._agreeing is None:
            self._agreeing = asyncio.ensure_future(self._node.submit(AgreeClientLease(lease_ms=self.lease_ms)))
            self._agreeing.add_done_callback(self._agreed)
        await asyncio.shield(self._agreeing)

    def leases_of_earlier_process_s(self) -> float:
        """How long after the start of this process clients of the earlier one may still hold leases, according to the log."""
        client_lease_ms = self._directory.client_lease_ms.get(self._node.node_id, 0)
        # No grant was longer than the node's own lease.
        return min(client_lease_ms, self._directory.lease_ms) / 1000 * (1 + RATE_ERROR)

    def _agreed(self, done: asyncio.Future[Result]) -> None:
        self._agreeing = None
        if not done.cancelled():
            done.exception()  # retrieved: the clients that waited may have gone

    # ------------------------------------------------------------------ fetches

    def _fetch(self, client: Client, request: NearFetch) -> None:
        self._near.clients.evicted(client, request.evicted)
        subscriber = client.subscriber
        try:
            subscriber.feed.count_call()
            if not _NEEDED.is_met(subscriber.who.access, request):
                raise Refused("forbidden", f"the token may not make this call; it needs {_NEEDED.text}")
            if subscriber.fetches >= FETCHES_MAX:
                raise Refused(
                    "over_limit", f"{FETCHES_MAX} fetches are in progress", limit="near_fetches_max", maximum=FETCHES_MAX
                )
        except Refused as refusal:
            self._push_problem(client, request.token, refusal)
            return
        now = self._clock()
        found: dict[str, Found] = {}
        for key in request.keys:
            line = self._near.hit(key, now)
            if line is None:
                break
            found[key] = Found(line.value, line.version, line.state, hit=True)
        else:
            if not subscriber.answering.locked() and subscriber.feed.has_room(_answer_bytes(request.keys, found)):
                self._answer(client, request.token, request.keys, found)
                return
        subscriber.fetches += 1
        subscriber.feed.hold(_held_bytes(request.keys))
        # Without the request, whose other list of keys may be long.
        self._tasks.spawn("cache_near", self._fetch_later(client, request.token, request.keys))

    async def _fetch_later(self, client: Client, token: int, keys: list[str]) -> None:
        self._near.used_at = self._clock()
        feed, held_bytes = client.subscriber.feed, _held_bytes(keys)
        try:
            await feed.turn()
            wanted = list(dict.fromkeys(keys))
            found = dict(zip(wanted, await self._reader.read_many(wanted, BYTES_PER_FETCH_MAX), strict=True))
            answer_bytes = _answer_bytes(keys, found)
            feed.hold(answer_bytes)
            held_bytes += answer_bytes
            # One after the other: several large answers at once would be more than the node keeps for a client.
            async with client.subscriber.answering:
                await feed.room(answer_bytes)
                self._answer(client, token, keys, found)
        except Refused as refusal:
            self._push_problem(client, token, refusal)
        except Exception:
            # The client waits for an answer, and has only so many fetches in progress.
            self._push_problem(client, token, Refused("internal", INTERNAL))
            raise
        finally:
            client.subscriber.fetches -= 1
            feed.hold(-held_bytes)

    def _answer(self, client: Client, token: int, keys: list[str], found: dict[str, Found]) -> None:
        """Send the values. The client becomes a holder of what it may install, in this turn of the event loop."""
        if sum(len(found[key].value or b"") for key in keys) > BYTES_PER_FETCH_MAX:
            self._push_problem(client, token, too_large(BYTES_PER_FETCH_MAX))
            return
        near, now = self._near, self._clock()
        hits = sum(one.hit for one in found.values())
        self._counted(hits, len(found) - hits)
        usable = [key for key, one in found.items() if one.value is not None and near.may_install(key, one.version, now)]
        installed = near.clients.install(client, usable, near.applied, now)
        items = [_item(key, found[key], key in installed) for key in keys]
        self._push(client, NearEvent(token=token, fetched=items))

    def _push_problem(self, client: Client, token: int, refusal: Refused) -> None:
        self._push(client, NearEvent(token=token, problem=problem_document(refusal.code, refusal.detail, refusal.extra)))


def _held_bytes(keys: list[str]) -> int:
    """What a fetch keeps while it waits: its task, and its keys twice."""
    return CALL_BYTES + sum(2 * (KEY_BYTES + len(key)) for key in keys)


def _answer_bytes(keys: list[str], found: dict[str, Found]) -> int:
    """The values of an answer, as Base64 at most."""
    return sum(len(found[key].value or b"") for key in keys) * 4 // 3


def _item(key: str, found: Found, install: bool) -> NearItem:
    value = found.value
    if value is None:
        return NearItem(key, _NULL, False, found.version, False)
    encoding: Any = ENCODING if is_binary(value) else msgspec.UNSET
    return NearItem(key, to_answer(value), True, found.version, install, encoding)


#: of a subscription: the keys are checked with each fetch
READS: Need = _NEEDED
