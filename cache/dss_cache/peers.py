"""What the caches of different nodes say to each other, best effort: who has applied what, leases, and questions from people.

Every message may get lost. Acknowledgements are asked for again while somebody waits, lease requests are made again by the
next read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from dss_api.errors import Refused
from dss_cache.config import config_of
from dss_cache.core.coherence import NearCache
from dss_cache.core.commands import Revoke
from dss_cache.core.directory import Directory, Stamps
from dss_cache.core.leases import GrantedLeases

if TYPE_CHECKING:
    from dss_raft.node import Node

CHANNEL = "cache"
#: Who waits for acknowledgements asks for them again after this.
ASK_AGAIN_S = 0.1
RENEWAL_TIMEOUT_S = 0.5
#: After a renewal in vain reads go to the log for so long before they try another one.
RENEWAL_PAUSE_S = 0.1
APPLIED_POLL_S = 0.002
QUESTION_TIMEOUT_S = 1.0

Waiter = asyncio.Future[None]
Rows = list[dict[str, Any]]


class PeerMessage(msgspec.Struct, array_like=True, frozen=True):
    """Base of what goes over the channel."""


class Applied(PeerMessage, frozen=True, tag=1):
    """What the sender knows of who has applied what."""

    stamps: Stamps


class Wanted(PeerMessage, frozen=True, tag=2):
    """Somebody waits for these: answer with `Applied` now, and again when you have applied your own."""

    stamps: Stamps


class Renew(PeerMessage, frozen=True, tag=3):
    """To the leader: grant me a lease."""

    token: int


class Grant(PeerMessage, frozen=True, tag=4):
    """For `lease_ms`, from when the holder asked. Of use when the holder has applied `must_apply`; negative: not granted."""

    token: int
    must_apply: int
    lease_ms: int


class Question(PeerMessage, frozen=True, tag=5):
    """Something a person wants to know of every node."""

    number: int
    what: str
    key: str
    limit: int


class Reply(PeerMessage, frozen=True, tag=6):
    number: int
    rows: Rows


_decode = msgspec.msgpack.Decoder(Applied | Wanted | Renew | Grant | Question | Reply).decode
_encode = msgspec.msgpack.Encoder().encode


class Peers:
    """The talk of one node's cache.

    Args:
        clock: seconds; goes on while the machine sleeps.
        answer: rows for a question (what, key, limit).
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
        self._askers: Stamps = {}
        self._renewal: asyncio.Task[bool] | None = None
        self._no_renewal_before = 0.0
        self._grants_awaited: dict[int, asyncio.Future[Grant]] = {}
        self._questions: dict[int, tuple[set[str], asyncio.Event, dict[str, Rows]]] = {}
        self._question_number = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        node.on_channel(CHANNEL, self._receive)
        node.on_peer_up(self._peer_is_up)
        node.on_leader_change(self._leader_changed)

    # --------------------------------------------------------- acknowledgements

    async def covered(self, must: Mapping[str, int], ask_now: bool) -> None:
        """Wait until every node in `must` has dropped its older line, or can hold none any more.

        Args:
            ask_now: nobody will tell this node unasked.

        Raises:
            Refused: `unknown_outcome` when that takes longer than a lease and the usual deadline.
        """
        waiter = asyncio.get_running_loop().create_future()
        acknowledgements = self._near.acknowledgements
        if not acknowledgements.wait(must, waiter):
            return
        lease_ms = max(config_of(self._node).cache_lease_ms, self._directory.lease_ms)
        deadline = self._clock() + (self._node.config.submit_timeout_ms + 2 * lease_ms) / 1000
        if ask_now:
            self._ask_for(acknowledgements.missing(must), everybody=False)
        while not (await asyncio.wait([waiter], timeout=ASK_AGAIN_S))[0]:
            missing = acknowledgements.missing(must)
            if self._clock() > deadline:
                raise Refused("unknown_outcome", f"{', '.join(missing)} may hold an older value, and no leader rules it out")
            self._ask_for(missing, everybody=True)

    def release(self, waiters: list[Waiter]) -> None:
        """Their wait is over."""
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def entry_applied(self) -> None:
        """This node has applied something: announce it, once a turn of the loop, if others wait for it."""
        near = self._near
        if (near.announcement_due or self._askers) and not self._announcing:
            self._announcing = True
            asyncio.get_running_loop().call_soon(self._announce)

    def _announce(self) -> None:
        self._announcing = False
        near = self._near
        own = near.acknowledgements.applied.get(self._node.node_id, 0)
        message = Applied({self._node.node_id: own})
        satisfied = [peer for peer, stamp in self._askers.items() if stamp <= own]
        for peer in satisfied:
            del self._askers[peer]
        if near.announcement_due:
            near.announcement_due = near.announcement_due_later = 0
            satisfied = self._node.peers
        for peer in satisfied:
            self._tell(peer, message)

    def _ask_for(self, missing: Mapping[str, int], everybody: bool) -> None:
        message = Wanted(dict(missing))
        for peer in self._node.peers:
            if everybody or peer in missing:
                self._tell(peer, message)

    def _wanted(self, peer: str, stamps: Stamps) -> None:
        applied = self._near.acknowledgements.applied
        self._tell(peer, Applied(dict(applied)))
        own = stamps.get(self._node.node_id, 0)
        if own > applied.get(self._node.node_id, 0):
            self._askers[peer] = max(own, self._askers.get(peer, 0))

    # -------------------------------------------------------------------- lease

    async def renew(self) -> bool:
        """Get a lease, together with everybody who wants one now. False: in vain."""
        if self._renewal is None:
            if self._clock() < self._no_renewal_before:
                return False
            self.renew_soon()
        assert self._renewal is not None
        return await asyncio.shield(self._renewal)

    def renew_soon(self) -> None:
        """Begin a renewal, unless one is under way or has just failed."""
        if self._renewal is None and self._clock() >= self._no_renewal_before:
            self._renewal = self._spawn(self._renew())
            self._renewal.add_done_callback(self._renewal_ended)

    def _renewal_ended(self, task: asyncio.Task[bool]) -> None:
        self._renewal = None
        if task.cancelled() or not task.result():
            self._no_renewal_before = self._clock() + RENEWAL_PAUSE_S

    async def _renew(self) -> bool:
        node, lease = self._node, self._near.lease
        token = lease.ask(self._clock())
        try:
            async with asyncio.timeout(RENEWAL_TIMEOUT_S):
                grant = await self._ask_leader(token)
                if grant.must_apply < 0:
                    return False
                lease.granted(token, grant.must_apply, grant.lease_ms / 1000)
                while node.applied_index < grant.must_apply:  # noqa: ASYNC110  (the node tells nobody how far it is)
                    await asyncio.sleep(APPLIED_POLL_S)
        except (TimeoutError, Refused):
            return False
        finally:
            self._grants_awaited.pop(token, None)
            lease.applied(node.applied_index)
        return self._clock() < lease.valid_until

    async def _ask_leader(self, token: int) -> Grant:
        node = self._node
        if node.is_leader:
            return await self._grant(node.node_id, token)
        if not node.leader_id:
            return _refusal(token)
        future = self._grants_awaited[token] = asyncio.get_running_loop().create_future()
        self._tell(node.leader_id, Renew(token))
        return await future

    async def _grant(self, holder: str, token: int) -> Grant:
        """Grant a lease, or not.

        The commit index is read when the lease is granted, not when leadership was confirmed: a `Revoke` of the holder may have
        been committed in between.
        """
        node, granted = self._node, self.granted
        await node.confirm_leadership()
        now = self._clock()
        if not node.is_leader or granted.term != node.term or not granted.may_grant(holder, now):
            return _refusal(token)
        granted.grant(holder, now)
        return Grant(token, node.commit_index, granted.lease_ms)

    async def _answer_renewal(self, peer: str, token: int) -> None:
        try:
            grant = await self._grant(peer, token)
        except Refused:
            grant = _refusal(token)
        self._tell(peer, grant)

    def tick(self) -> None:
        """About every 20 ms: what a leader owes those who wait for a node that is gone; announcements nobody was in a hurry for."""
        node, near = self._node, self._near
        if near.announcement_due_later:
            near.announcement_due = max(near.announcement_due, near.announcement_due_later)
            self.entry_applied()
        if not node.is_leader or self.granted.term != node.term:
            return
        to_agree = self.granted.to_agree(self._directory.lease_ms, self._clock())
        if to_agree is not None and node.propose_as_leader(to_agree):
            self.granted.agreeing()
        applied = near.acknowledgements.applied
        for overdue in self.granted.overdue(self._directory.awaited, applied, self._clock()):
            if not node.propose_as_leader(Revoke(node=overdue, term=self.granted.term)):
                self.granted.voided(overdue, self.granted.term)
        for peer, stamp in self.granted.behind.items():
            self._tell(peer, Wanted({peer: stamp}))

    def _leader_changed(self, leader_id: str, term: int) -> None:
        if leader_id == self._node.node_id:
            self.granted.lead(term, self._clock())

    # ---------------------------------------------------------------- questions

    async def ask_everybody(self, what: str, key: str, limit: int) -> tuple[dict[str, Rows], list[str]]:
        """Rows of every node, and the nodes that did not answer."""
        self._question_number += 1
        number = self._question_number
        peers = list(self._node.peers)
        all_here = asyncio.Event()
        replies: dict[str, Rows] = {}
        self._questions[number] = (set(peers), all_here, replies)
        for peer in peers:
            self._tell(peer, Question(number, what, key, limit))
        own = await self._answer(what, key, limit)
        try:
            if peers:
                async with asyncio.timeout(QUESTION_TIMEOUT_S):
                    await all_here.wait()
        except TimeoutError:
            pass
        finally:
            del self._questions[number]
        return {self._node.node_id: own, **replies}, [peer for peer in peers if peer not in replies]

    async def _answer_question(self, peer: str, question: Question) -> None:
        self._tell(peer, Reply(question.number, await self._answer(question.what, question.key, question.limit)))

    def _replied(self, peer: str, reply: Reply) -> None:
        question = self._questions.get(reply.number)
        if question is not None:
            asked, all_here, replies = question
            replies[peer] = reply.rows
            if asked <= replies.keys():
                all_here.set()

    # -------------------------------------------------------------------- links

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _receive(self, peer: str, data: bytes) -> None:
        try:
            message = _decode(data)
        except msgspec.DecodeError:
            return  # from a node of another version: as good as lost
        if isinstance(message, Applied):
            self.release(self._near.acknowledged(message.stamps))
        elif isinstance(message, Wanted):
            self._wanted(peer, message.stamps)
        elif isinstance(message, Renew):
            self._spawn(self._answer_renewal(peer, message.token))
        elif isinstance(message, Grant):
            future = self._grants_awaited.get(message.token)
            if future is not None and not future.done():
                future.set_result(message)
        elif isinstance(message, Question):
            self._spawn(self._answer_question(peer, message))
        else:
            self._replied(peer, message)

    def _peer_is_up(self, peer: str) -> None:
        self._tell(peer, Applied(dict(self._near.acknowledgements.applied)))

    def _tell(self, peer: str, message: PeerMessage) -> None:
        self._node.send(peer, CHANNEL, _encode(message))

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _refusal(token: int) -> Grant:
    return Grant(token, -1, 0)
