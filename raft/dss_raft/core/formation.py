"""How new nodes form a cluster, once, without a vote. Pure: no I/O, clock or randomness.

A node with an empty store belongs to no cluster. It grants no vote, because it cannot know what a lost disk had promised. So
the first configuration does not come from an election:

1. Each new node tells every other member of `PEERS` who it is: its store, and the members that its own `PEERS` names.
2. When the node with the smallest id has heard all other members, and all are new and name the same members, it writes the first
   configuration with all their stores to its disk, and tells them.
3. A new node that hears a configuration with its own store writes it to its disk. It is a member from then on.

Only one node can make the first configuration, and only while every member is new. So there are never two first configurations
with members in common, whatever crashes or loses its disk: a member that has adopted the configuration keeps the others from
forming another one.

A new node whose id already is a member with another store has lost its disk, or has the id of another node. It waits for its
operator. A node that joins (`DSS_JOIN`) waits until it is added: the log of the leader makes it a member.
"""

from __future__ import annotations

import msgspec

from dss_raft.core.messages import Configuration, Member


class NodeIdentity(msgspec.Struct, frozen=True, array_like=True):
    """What a node tells each peer first, on each connection."""

    #: random, made with the data directory
    store: str
    #: number of starts with this store
    starts: int
    #: random, of this process
    incarnation: int
    #: index and members of the newest committed configuration; None while the node belongs to no cluster
    configuration_index: int
    configuration: Configuration | None
    #: ids of the members of the cluster that it would form; empty if it waits to be added
    would_form: tuple[str, ...] = ()
    #: the durable term and the end of the log when this process started
    began_term: int = 0
    began_index: int = 0
    #: the store was put back to an earlier state, so the node has no vote
    is_outdated: bool = False


class Formation:
    """Decides when and what a new node forms.

    Args:
        store: of this node.
        members: the first members, this node included; empty if it waits to be added (`DSS_JOIN`).
    """

    def __init__(self, node_id: str, store: str, members: tuple[Member, ...]) -> None:
        self._node_id = node_id
        self._store = store
        self._members = {member.id: member for member in members}
        self._heard: dict[str, NodeIdentity] = {}

    @property
    def member_ids(self) -> tuple[str, ...]:
        """What this node says it would form."""
        return tuple(sorted(self._members))

    def heard(self, peer: str, identity: NodeIdentity) -> None:
        """`peer` has said who it is, on a connection that is open now."""
        self._heard[peer] = identity

    def lost(self, peer: str) -> None:
        """The connection is closed: what the peer said may not be true any longer."""
        self._heard.pop(peer, None)

    def decide(self) -> Configuration | None:
        """The configuration to adopt now; None: wait."""
        formed = [identity for identity in self._heard.values() if identity.configuration is not None]
        if formed:
            newest = max(formed, key=lambda identity: identity.configuration_index)
            assert newest.configuration is not None
            own = newest.configuration.find(self._node_id)
            return newest.configuration if own is not None and own.store == self._store else None
        if not self._members or self._node_id != min(self._members) or self._missing() or self._disagreeing():
            return None
        stores = {peer: identity.store for peer, identity in self._heard.items()} | {self._node_id: self._store}
        members = (msgspec.structs.replace(member, store=stores[member.id]) for member in self._members.values())
        return Configuration(tuple(sorted(members, key=lambda member: member.id)))

    def reason(self) -> str:
        """Why this node belongs to no cluster yet, and what it waits for."""
        for peer, identity in sorted(self._heard.items()):
            if identity.configuration is not None:
                return self._reason_with_cluster(peer, identity.configuration)
        if not self._members:
            return "this node is new and waits to be added to a cluster (POST /raft/members on one of its members)"
        disagreeing = self._disagreeing()
        if disagreeing:
            other = disagreeing[0]
            theirs = ", ".join(self._heard[other].would_form) or "none: it has DSS_JOIN"
            return f"this node is new, and PEERS differ: here {', '.join(sorted(self._members))}; at {other} {theirs}"
        missing = self._missing()
        if missing:
            return f"this node is new: the cluster forms when all its members are there; it waits for {', '.join(missing)}"
        return f"this node is new and waits for {min(self._members)} to form the cluster"

    def accepts_log_of(self, identity: NodeIdentity) -> bool:
        """False if that node's cluster has a member of this name. With this store, its configuration must be adopted first, so that
        the log does not begin before it; with another store, this node is not that member.
        """
        own = None if identity.configuration is None else identity.configuration.find(self._node_id)
        return own is None or (own.learner and not own.store)

    def _reason_with_cluster(self, peer: str, configuration: Configuration) -> str:
        own = configuration.find(self._node_id)
        if own is None:
            return f"this node is new, and {peer} belongs to a cluster already: it waits to be added (manage.py member add)"
        if own.store == self._store:
            return f"this node is new and is about to join the cluster that {peer} belongs to"
        if own.learner and not own.store:
            return "this node is new and waits for the log of its leader"
        return (
            f"{self._node_id} is a member of the cluster with another data directory (store {own.store or 'unknown'}), and this "
            f"one is empty. It must not vote, because the lost one may have promised something. If that directory still exists, "
            f"start the node with it. If it is lost: manage.py member replace {self._node_id}"
        )

    def _missing(self) -> list[str]:
        return sorted(peer for peer in self._members if peer != self._node_id and peer not in self._heard)

    def _disagreeing(self) -> list[str]:
        own = tuple(sorted(self._members))
        return sorted(peer for peer, identity in self._heard.items() if peer in self._members and identity.would_form != own)
