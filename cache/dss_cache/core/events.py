"""Events: what the directory did when it applied a command. The near cache and the write-back of each node follow them."""

from __future__ import annotations

from dss_raft.replication.machine import Event

#: Stamps of nodes: {node: stamp}.
Stamps = dict[str, int]


class Written(Event, frozen=True):
    """A key has a new version: the lines of all other nodes are invalid."""

    key: str
    version: int
    #: None: the key no longer has a value
    value: bytes | None
    #: the writer and its incarnation; "" when the value expired
    node: str
    incarnation: int
    #: "put", "delete", "expired", "lost"
    why: str
    pending_invalidations: Stamps


class Fetched(Event, frozen=True):
    """A node registered as a sharer: no other node holds the key exclusively now."""

    key: str
    node: str
    incarnation: int
    stamp: int


class Cleaned(Event, frozen=True):
    """The backing store has these versions."""

    items: list[tuple[str, int]]


class Voided(Event, frozen=True):
    """All registrations of the node up to the stamp are void, and it holds no line from before."""

    node: str
    stamp: int
    #: "revoked", "restarted"
    why: str
    #: term of the leader that revoked the node; 0: the node restarted
    term: int


class LeaseAgreed(Event, frozen=True):
    """The leader of `term` may grant leases, and no lease of any leader is longer than `lease_ms` at the moment."""

    term: int
    lease_ms: int
