"""Messages between the caches of different nodes, best effort: acknowledgements, leases, and questions for diagnostics.

Every message may be lost. Acknowledgements are requested again while a call waits for them; lease requests are repeated by the
next read.

A payload begins with the version of the format, 1 byte.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from dss_api.errors import Refused
from dss_api.supervised import Tasks
from dss_cache.config import config_of
from dss_cache.core.coherence import NearCache
from dss_cache.core.commands import Revoke
from dss_cache.core.directory import Directory
from dss_cache.core.events import Stamps
from dss_cache.core.leases import GrantedLeases
from dss_raft.formats import Format

if TYPE_CHECKING:
    from dss_raft.node import Node

CHANNEL = "cache"
#: While a call waits for acknowledgements, they are requested again at this interval.
ASK_AGAIN_S = 0.1
#: for how long a peer that was asked is not asked for the same: a little less, so that each call that asks again finds it over
ASKED_S = 0.9 * ASK_AGAIN_S
RENEWAL_TIMEOUT_S = 0.5
#: After a failed renewal, reads use the log for this long before they try to renew again.
RENEWAL_PAUSE_S = 0.1
APPLIED_POLL_S = 0.002
QUESTION_TIMEOUT_S = 1.0

Waiter = asyncio.Future[None]
Rows = list[dict[str, Any]]


class PeerMessage(msgspec.Struct, array_like=True, frozen=True):
    """Base of the messages on the channel."""


class Applied(PeerMessage, frozen=True, tag=1):
    """Up to which stamp each node has applied the log, as far as the sender knows."""

    stamps: Stamps


class Wanted(PeerMessage, frozen=True, tag=2):
    """The sender waits for these: answer with `Applied` now, and again when your own stamp is applied."""

    stamps: Stamps


class Renew(PeerMessage, frozen=True, tag=3):
    """To the leader: a request for a lease."""

    token: int


class Grant(PeerMessage, frozen=True, tag=4):
    """A lease of `lease_ms` since the request. Usable when the holder has applied `must_apply`; negative: not granted."""

    token: int
    must_apply: int
    lease_ms: int


class Question(PeerMessage, frozen=True, tag=5):
    """A diagnostic question to every node."""

    number: int
    what: str
    key: str
    limit: int


class Reply(PeerMessage, frozen=True, tag=6):
    number: int
    rows: Rows


_NOT_ASKED: tuple[Stamps, float] = ({}, float("-inf"))

_decode = msgspec.msgpack.Decoder(Applied | Wanted | Renew | Grant | Question | Reply).decode
FORMAT = Format("a message of the cache", 1)
_START = bytes([FORMAT.version])
_encode_message = msgspec.msgpack.Encoder().encode


def _encode(message: PeerMessage) -> bytes:
    return _START + _encode_message(message)


class Peers:
    """One node's messages to the other caches.

    Args:
        clock: in seconds; it keeps running while the machine sleeps.
        answer: returns the rows for a question (what, key, limit).
    """

    def __init__(
        self,
        node: Node,
        near: NearCache[Waiter],
        directory: Directory,
        lease_s: float,
        clock: Callable[[], float],
        answer: Callable[[str, str, int], Coroutine[Any, Any, Rows]],
    ) -> None:
        self._node = node
        self._near = near
        self._directory = directory
        self._clock = clock
        self._answer = answer
        self.granted = GrantedLeases(lease_s)
        self._announcing = False
        #: the own stamp that all peers were told last
        self._announced = 0
        self._requested_by: Stamps = {}
        #: for which stamps each peer was asked last, and when
        self._asked: dict[str, tuple[Stamps, float]] = {}
        self._renewal: asyncio.Task[bool] | None = None
        self._no_renewal_before = 0.0
        self._grant_futures: dict[int, asyncio.Future[Grant]] = {}
        self._questions: dict[int, tuple[set[str], asyncio.Event, dict[str, Rows]]] = {}
        self._question_number = 0
        self._tasks = Tasks()
        node.on_channel(CHANNEL, self._receive)
        node.on_peer_up(self._peer_is_up)
        node.on_leader_change(self._leader_changed)
        node.before_adding(self._cannot_hold_a_lease)

    # --------------------------------------------------------- acknowledgements

    async def wait_for_invalidations(self, pending: Mapping[str, int], ask_now: bool) -> None:
        """Wait until every node in `pending` has dropped its older line, or can no longer hold one.

        Args:
            ask_now: the nodes will not report to this node without being asked.

        Raises:
            Refused: `unknown_outcome` if that takes longer than a lease and the usual deadline.
        """
        waiter = asyncio.get_running_loop().create_future()
        acknowledgements = self._near.acknowledgements
        if not acknowledgements.wait(pending, waiter):
            return
        lease_ms = max(config_of(self._node).cache_lease_ms, self._directory.lease_ms)
        deadline = self._clock() + (self._node.config.submit_timeout_ms + 2 * lease_ms) / 1000
        if ask_now:
            self._request_acknowledgements(acknowledgements.missing(pending), to_all=False)
        while not (await asyncio.wait([waiter], timeout=ASK_AGAIN_S))[0]:
            missing = acknowledgements.missing(pending)
            if self._clock() > deadline:
                raise Refused(
                    "unknown_outcome", f"{', '.join(missing)} may hold an older value, and no leader could rule that out"
                )
            self._request_acknowledgements(missing, to_all=True)

    def release(self, waiters: list[Waiter]) -> None:
        """Wake these waiters."""
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def entry_applied(self) -> None:
        """This node has applied something: announce it if other nodes wait for it, at most once in a turn of the event loop."""
        near = self._near
        if (near.announcement_due or self._requested_by) and not self._announcing:
            self._announcing = True
            asyncio.get_running_loop().call_soon(self._announce)

    def _announce(self) -> None:
        self._announcing = False
        near = self._near
        own = near.acknowledgements.applied.get(self._node.node_id, 0)
        message = Applied({self._node.node_id: own})
        satisfied = [peer for peer, stamp in self._requested_by.items() if stamp <= own]
        for peer in satisfied:
            del self._requested_by[peer]
        if near.announcement_due and (own >= near.announcement_due or own > self._announced):
            self._announced = own
            # While near clients have not confirmed, less is reported than was applied: the rest stays due.
            if own >= near.announcement_due:
                near.announcement_due = 0
            if own >= near.announcement_due_later:
                near.announcement_due_later = 0
            satisfied = self._node.peers
        for peer in satisfied:
            self._send(peer, message)

    def _request_acknowledgements(self, missing: Mapping[str, int], to_all: bool) -> None:
        """Ask the missing nodes, or all. Calls that wait for the same share a message: hundreds of reads may wait for one write."""
        now = asyncio.get_running_loop().time()
        message = Wanted(dict(missing))
        for peer in self._node.peers:
            if not to_all and peer not in missing:
                continue
            asked, at = self._asked.get(peer, _NOT_ASKED)
            if now - at < ASKED_S and all(asked.get(node, 0) >= stamp for node, stamp in missing.items()):
                continue
            self._asked[peer] = message.stamps, now
            self._send(peer, message)

    def _wanted(self, peer: str, stamps: Stamps) -> None:
        applied = self._near.acknowledgements.applied
        self._send(peer, Applied(dict(applied)))
        own = stamps.get(self._node.node_id, 0)
        if own > applied.get(self._node.node_id, 0):
            self._requested_by[peer] = max(own, self._requested_by.get(peer, 0))

    # -------------------------------------------------------------------- lease

    async def renew(self) -> bool:
        """Get a lease; concurrent calls share one request. False: no lease was granted."""
        if self._renewal is None:
            if self._clock() < self._no_renewal_before:
                return False
            self.renew_soon()
        assert self._renewal is not None
        return await asyncio.shield(self._renewal)

    def renew_soon(self) -> None:
        """Begin a renewal, unless one is in progress or has just failed."""
        if self._renewal is None and self._clock() >= self._no_renewal_before:
            self._renewal = self._tasks.spawn("cache_peers", self._renew())

    async def _renew(self) -> bool:
        is_leased = False
        try:
            is_leased = await self._request_lease()
        finally:
            # Here and not in a callback of the task, so that no caller finds a renewal that has ended.
            self._renewal = None
            if not is_leased:
                self._no_renewal_before = self._clock() + RENEWAL_PAUSE_S
        return is_leased

    async def _request_lease(self) -> bool:
        node, lease = self._node, self._near.lease
        token = lease.request(self._clock())
        try:
            async with asyncio.timeout(RENEWAL_TIMEOUT_S):
                grant = await self._request_from_leader(token)
                if grant.must_apply < 0:
                    return False
                lease.granted(token, grant.must_apply, grant.lease_ms / 1000)
                while node.applied_index < grant.must_apply:  # noqa: ASYNC110  (the node has no event for its applied index)
                    await asyncio.sleep(APPLIED_POLL_S)
        except (TimeoutError, Refused):
            return False
        finally:
            self._grant_futures.pop(token, None)
            lease.applied(node.applied_index)
        return self._clock() < lease.valid_until

    async def _request_from_leader(self, token: int) -> Grant:
        node = self._node
        if node.is_leader:
            return await self._grant(node.node_id, token)
        if not node.leader_id:
            return _refusal(token)
        future = self._grant_futures[token] = asyncio.get_running_loop().create_future()
        self._send(node.leader_id, Renew(token))
        return await future

    async def _grant(self, holder: str, token: int) -> Grant:
        """Grant a lease, or not.

        The commit index is read when the lease is granted, not when leadership was confirmed: a `Revoke` of the holder may have
        been committed in between.
        """
        node, granted = self._node, self.granted
        await node.confirm_leadership()
        now = self._clock()
        is_member = holder in node.core.membership.ids
        if not node.is_leader or not is_member or granted.term != node.term or not granted.may_grant(holder, now):
            return _refusal(token)
        granted.grant(holder, now)
        return Grant(token, node.commit_index, granted.lease_ms)

    async def _answer_renewal(self, peer: str, token: int) -> None:
        try:
            grant = await self._grant(peer, token)
        except Refused:
            grant = _refusal(token)
        self._send(peer, grant)

    def _cannot_hold_a_lease(self, node_id: str) -> bool:
        """True if no process of this node, which is no member, can answer from its lines any longer."""
        return self.granted.term == self._node.term and self._clock() > self.granted.ends_at(node_id)

    def tick(self) -> None:
        """About every 20 ms: send deferred announcements. As leader, agree on the lease and revoke nodes that block a write."""
        node, near = self._node, self._near
        if near.announcement_due_later:
            near.announcement_due = max(near.announcement_due, near.announcement_due_later)
            self.entry_applied()
        if not node.is_leader or self.granted.term != node.term:
            return
        next_proposal = self.granted.next_proposal(self._directory.lease_ms, self._clock())
        if next_proposal is not None and node.propose_as_leader(next_proposal):
            self.granted.proposed()
        applied = near.acknowledgements.applied
        for overdue in self.granted.overdue(self._directory.awaited, applied, self._clock()):
            if not node.propose_as_leader(Revoke(node=overdue, term=self.granted.term)):
                self.granted.voided(overdue, self.granted.term)
        for peer, stamp in self.granted.behind.items():
            self._send(peer, Wanted({peer: stamp}))

    def _leader_changed(self, leader_id: str, term: int) -> None:
        if leader_id == self._node.node_id:
            self.granted.lead(term, self._clock())

    # ---------------------------------------------------------------- questions

    async def ask_all_nodes(self, what: str, key: str, limit: int) -> tuple[dict[str, Rows], list[str]]:
        """Ask every node. Returns the rows of each node, and the nodes that did not answer."""
        self._question_number += 1
        number = self._question_number
        peers = list(self._node.peers)
        all_replied = asyncio.Event()
        replies: dict[str, Rows] = {}
        self._questions[number] = (set(peers), all_replied, replies)
        for peer in peers:
            self._send(peer, Question(number, what, key, limit))
        try:
            own = await self._answer(what, key, limit)
            if peers:
                async with asyncio.timeout(QUESTION_TIMEOUT_S):
                    await all_replied.wait()
        except TimeoutError:
            pass
        finally:
            del self._questions[number]
        return {self._node.node_id: own, **replies}, [peer for peer in peers if peer not in replies]

    async def _answer_question(self, peer: str, question: Question) -> None:
        try:
            rows = await self._answer(question.what, question.key, question.limit)
        except (Refused, msgspec.DecodeError):
            return  # the store does not answer, or the question is of a later release: neither does this node
        self._send(peer, Reply(question.number, rows))

    def _replied(self, peer: str, reply: Reply) -> None:
        question = self._questions.get(reply.number)
        if question is not None:
            asked, all_replied, replies = question
            replies[peer] = reply.rows
            if asked <= replies.keys():
                all_replied.set()

    # -------------------------------------------------------------------- links

    def close(self) -> None:
        self._tasks.cancel()

    def _receive(self, peer: str, data: bytes) -> None:
        FORMAT.of_binary(data)
        try:
            message = _decode(memoryview(data)[1:])
        except msgspec.DecodeError:
            return  # treated as lost
        if isinstance(message, Applied):
            self.release(self._near.acknowledged(message.stamps))
        elif isinstance(message, Wanted):
            self._wanted(peer, message.stamps)
        elif isinstance(message, Renew):
            self._tasks.spawn("cache_peers", self._answer_renewal(peer, message.token))
        elif isinstance(message, Grant):
            future = self._grant_futures.get(message.token)
            if future is not None and not future.done():
                future.set_result(message)
        elif isinstance(message, Question):
            self._tasks.spawn("cache_peers", self._answer_question(peer, message))
        else:
            self._replied(peer, message)

    def _peer_is_up(self, peer: str) -> None:
        self._asked.pop(peer, None)
        self._send(peer, Applied(dict(self._near.acknowledgements.applied)))

    def _send(self, peer: str, message: PeerMessage) -> None:
        self._node.send(peer, CHANNEL, _encode(message))


def _refusal(token: int) -> Grant:
    return Grant(token, -1, 0)
