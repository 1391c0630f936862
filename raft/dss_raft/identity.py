"""Which store and which process is behind each link, and what follows from it.

Both sides of a link say who they are in its first frame (`NodeIdentity`), so a frame of Raft always comes from a known store.
A payload begins with the version of the format, 1 byte.

A node whose store was put back to an earlier state gives up its vote. This is found in two ways:

1. By the other members. Either the log has a start with this store that the store does not know. Or the store lacks something that it
   promised the member: a vote, or entries that it acknowledged. A member remembers such promises as long as it runs.
2. By the node itself, when it applies entries that its store lacks. Either one of them is a start with its own store. Or one has a command
   with which an earlier process of the node confirmed a result, so the store must have had the entry of that result.

A process that has just started ignores requests for votes, entries and snapshots until the others have had time to tell it. They also say
in which term they know this: the store had promised them nothing in a later one, so the node takes over that term.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import msgspec
import structlog

from dss_api.supervised import Tasks
from dss_raft import metrics
from dss_raft.core import RaftCore
from dss_raft.core.formation import Formation, NodeIdentity
from dss_raft.core.messages import AppendEntries, Configuration, InstallSnapshot, PreVote, RequestVote, TimeoutNow
from dss_raft.disk.store import LogStore
from dss_raft.disk.store_thread import StoreThread
from dss_raft.formats import Format
from dss_raft.net.wire import AnyFrame, RaftFrame, Reason
from dss_raft.removal import NodeRemoved

if TYPE_CHECKING:
    from dss_raft.replication.replica import Replica

log = structlog.get_logger("raft")

CHANNEL = "identity"
FORMAT = Format("what a peer says about itself", 1)
#: A new process ignores requests for votes, entries and snapshots until all members have been linked for this time …
SETTLED_AFTER_S = 0.1
#: … and never longer than this: a member that is up is linked by then.
SETTLED_AFTER_S_MAX = 1.5


class Outdated(msgspec.Struct, frozen=True, array_like=True, tag="outdated"):
    """Tells a node that its store was put back to an earlier state."""

    reason: str
    #: of the member that says so: what the store had promised it was not in a later term
    term: int = 0


class _Identified(msgspec.Struct, frozen=True, array_like=True, tag="identity"):
    identity: NodeIdentity


_decode = msgspec.msgpack.Decoder(_Identified | Outdated).decode
_ASKS_FOR_A_PROMISE = PreVote | RequestVote | AppendEntries | InstallSnapshot | TimeoutNow


def _encode(message: _Identified | Outdated) -> bytes:
    return bytes([FORMAT.version]) + msgspec.msgpack.encode(message)


class IdentifyingNode(Protocol):
    """What the exchange needs from its node."""

    node_id: str
    incarnation: int
    core: RaftCore

    def send(self, peer_id: str, channel: str, payload: bytes) -> None: ...

    def wake(self) -> None: ...

    def failed(self, error: BaseException) -> None: ...


class Identities:
    """The identities of this node and of its linked peers.

    Args:
        store_thread: the thread of `store`.
        formation: of this node, as long as it is new.
    """

    def __init__(
        self, node: IdentifyingNode, store: LogStore, store_thread: StoreThread, formation: Formation, replica: Replica
    ) -> None:
        self.formation = formation
        self._node = node
        self._store = store
        self._store_thread = store_thread
        self._replica = replica
        self._sessions = replica.sessions
        replica.own = (node.incarnation, store.store_id)
        self._tasks = Tasks()
        self._is_forming = False
        self._peers: dict[str, NodeIdentity] = {}
        #: process of each peer at its last link
        self._incarnations: dict[str, int] = {}
        self._foreign: set[str] = set()
        self._sent_configuration: Configuration | None = None
        self._told_reason = ""
        #: durable term and end of the log at the start
        self._began = (node.core.term, node.core.last_index)
        self._loop = asyncio.get_running_loop()
        self._settles_at_s = self._loop.time() + SETTLED_AFTER_S_MAX
        if node.core.is_outdated:
            self._log_outdated("found at an earlier start")

    @property
    def is_formed(self) -> bool:
        """False while this node is new: it belongs to no cluster."""
        core = self._node.core
        return bool(core.membership.ids or core.last_index)

    def store_of(self, peer: str) -> str:
        """The store of a linked peer; "" when it is not known."""
        identity = self._peers.get(peer)
        return "" if identity is None else identity.store

    def is_member(self, peer: str) -> bool:
        """True for a linked peer whose store is the member's, as far as this node knows."""
        return peer in self._peers and peer not in self._foreign

    def is_refused(self, peer: str, frame: AnyFrame) -> bool:
        """True when a frame of this peer must be dropped.

        The core itself decides about the messages of another store, because that may be the leader of a newer configuration. But
        a new node accepts no log before it has adopted the first configuration.
        """
        identity = self._peers.get(peer)
        if identity is None:
            return True
        if isinstance(frame, RaftFrame):
            if self._settles_at_s and self._is_too_early(frame):
                return True
            return not self.is_formed and not self.formation.accepts_log_of(identity)
        return peer in self._foreign

    def linked(self, peer: str) -> None:
        """A link is up: say who this node is, before anything else."""
        self._send_identity(peer)

    def unlinked(self, peer: str) -> None:
        self._peers.pop(peer, None)
        self._foreign.discard(peer)
        self.formation.lost(peer)

    def tick(self) -> None:
        """Tell the peers when the committed members have changed, and the log why this node is not one yet."""
        if self._configuration() is not self._sent_configuration:
            self.send_to_all()
        reason = "" if self.is_formed else self.formation.reason()
        if reason != self._told_reason:
            self._told_reason = reason
            if reason:
                log.warning("raft.new", node=self._node.node_id, reason=reason)

    def members_changed(self) -> None:
        """Another configuration is in force."""
        for peer in self._peers:
            self._judge(peer)

    def send_to_all(self) -> None:
        self._sent_configuration = self._configuration()
        for peer in self._peers:
            self._send_identity(peer)

    def receive(self, peer: str, payload: bytes) -> None:
        """A frame on the channel.

        Raises:
            WrongFormat: a newer release sent it.
        """
        FORMAT.of_binary(payload)
        message = _decode(memoryview(payload)[1:])
        if isinstance(message, Outdated):
            self._give_up_vote(f"{peer}: {message.reason}", message.term)
            return
        core, identity = self._node.core, message.identity
        self._peers[peer] = identity
        if self._is_replaced(peer, identity):
            return
        self.formation.heard(peer, identity)
        if identity.is_outdated:
            core.peer_outdated(identity.store)
        if self._incarnations.get(peer) != identity.incarnation:
            self._incarnations[peer] = identity.incarnation
            if core.knows_newer(peer, identity.store, identity.began_term, identity.began_index):
                self.tell_outdated(
                    peer, "votes that the node gave, or entries that it acknowledged, are missing in the directory"
                )
            core.peer_restarted(peer)
        self._judge(peer)
        if self._sessions.outdates(peer, identity.incarnation, identity.store, identity.starts):
            self.tell_outdated(peer, f"the log has more starts with the directory than the directory itself ({identity.starts})")
        self._form_if_due()
        if all(member.id in self._incarnations or member.id == self._node.node_id for member in core.configuration.members):
            self._settles_at_s = min(self._settles_at_s, self._loop.time() + SETTLED_AFTER_S)

    def applied(self) -> None:
        """The state has changed: it may show that this node's store was put back to an earlier state."""
        node, store = self._node, self._store
        if self._sessions.outdates(node.node_id, node.incarnation, store.store_id, store.starts):
            self._give_up_vote(f"the log has more starts with the directory than the directory itself ({store.starts})")
        elif self._replica.applied_before > self._began[1]:
            self._give_up_vote(
                f"an earlier process applied entry {self._replica.applied_before}, but the log ended at {self._began[1]} at the start"
            )

    async def stop(self) -> None:
        """Stop the work in progress."""
        await self._tasks.stop()

    def _form_if_due(self) -> None:
        if self.is_formed or self._is_forming:
            return
        configuration = self.formation.decide()
        if configuration is not None:
            self._is_forming = True
            self._tasks.spawn("raft", self._form(configuration), self._node.failed)

    async def _form(self, configuration: Configuration) -> None:
        """Adopt the first configuration of the cluster: on the disk first."""
        await self._store_thread.run(self._store.form, configuration)
        self._node.core.form(configuration)
        log.info("raft.formed", node=self._node.node_id, members=[member.id for member in configuration.members])
        self.send_to_all()
        self._node.wake()

    def _is_too_early(self, frame: RaftFrame) -> bool:
        """True for a request while other members may not have told this process yet that its store is outdated.

        It may have forgotten a vote. So it must not vote again, nor help the leader of an earlier term to commit entries.
        """
        if self._loop.time() >= self._settles_at_s:
            self._settles_at_s = 0.0
            return False
        return any(isinstance(message, _ASKS_FOR_A_PROMISE) for message in frame.messages)

    def _give_up_vote(self, reason: str, term: int = 0) -> None:
        """This node's store was put back to an earlier state: from now on this node has no vote."""
        core = self._node.core
        if not core.is_outdated:
            self._log_outdated(reason)
            self._tasks.spawn("raft", self._mark_outdated(), self._node.failed)
        elif term <= core.term:
            return
        core.outdated(term)
        self._node.wake()

    async def _mark_outdated(self) -> None:
        await self._store_thread.run(self._store.mark_outdated)
        self.send_to_all()

    def _log_outdated(self, reason: str) -> None:
        node = self._node.node_id
        metrics.OUTDATED.set(1)
        log.error("raft.outdated", node=node, reason=reason, repair=f"manage.py member replace {node}")

    def tell_outdated(self, peer: str, reason: str) -> None:
        """Tell a peer that its store was put back to an earlier state."""
        log.error("raft.peer_outdated", peer=peer, reason=reason)
        self._node.core.peer_outdated(self.store_of(peer))
        self._node.send(peer, CHANNEL, _encode(Outdated(reason, self._node.core.term)))

    def _judge(self, peer: str) -> None:
        """Decide whether the peer's store is the member's, as far as this node knows."""
        core, identity = self._node.core, self._peers[peer]
        is_foreign = core.membership.is_other_store(peer, identity.store)
        if is_foreign and peer not in self._foreign:
            self._foreign.add(peer)
            metrics.peer_refused(Reason.OTHER_STORE)
            log.warning("raft.other_store", peer=peer, store=identity.store, known=core.membership.stores.get(peer, ""))
        elif not is_foreign:
            self._foreign.discard(peer)

    def _is_replaced(self, peer: str, identity: NodeIdentity) -> bool:
        """True if the cluster has a member of this name with another store: this node ends."""
        node, configuration = self._node, identity.configuration
        if not self.is_formed or configuration is None or identity.configuration_index <= node.core.membership.index:
            return False
        own, store = configuration.find(node.node_id), self._store.store_id
        if own is None or own.store in ("", store):
            return False
        node.failed(
            NodeRemoved(
                f"{node.node_id} was replaced: the cluster has a member of this name with another data directory (store "
                f"{own.store}; this one is {store}), says {peer}. This directory is no longer part of the cluster"
            )
        )
        return True

    def _configuration(self) -> Configuration | None:
        core = self._node.core
        return core.membership.at(core.commit_index) if self.is_formed else None

    def _send_identity(self, peer: str) -> None:
        core, configuration = self._node.core, self._configuration()
        index = core.membership.index_at(core.commit_index)
        would_form = () if self.is_formed else self.formation.member_ids
        identity = NodeIdentity(
            self._store.store_id,
            self._store.starts,
            self._node.incarnation,
            index,
            configuration,
            would_form,
            *self._began,
            core.is_outdated,
        )
        self._node.send(peer, CHANNEL, _encode(_Identified(identity)))
