"""The answers of the lock manager's operations, field by field."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from dss_api.answer import Answer, Part, RaftIndex
from dss_locks.core.state import LockEventKind

StateKind = Literal["state", "resync"]


class AcquireAnswer(Answer, kw_only=True):
    #: grows with every grant that excludes an earlier one; pass it to the resource that the lock protects
    fencing_token: int
    #: null: until released
    expires_in_ms: int | None
    #: the client held it already: the lease is renewed, the token is the same
    reentrant: bool
    #: for `keys`: the token of each key
    fencing_tokens: dict[str, int] | UnsetType = UNSET
    #: how long it queued; absent when it did not
    waited_ms: int | UnsetType = UNSET
    index: RaftIndex


class ReleaseAnswer(Answer, kw_only=True):
    #: false: there was nothing to release
    released: bool
    held_ms: int | UnsetType = UNSET
    #: for `keys`: those that were released
    released_keys: list[str] | UnsetType = UNSET
    index: RaftIndex


class RenewAnswer(Answer, kw_only=True):
    fencing_token: int
    expires_in_ms: int | None
    index: RaftIndex


class RemovedHolder(Part):
    client: str
    fencing_token: int


class ForceReleaseAnswer(Answer, kw_only=True):
    released: bool
    #: those that lost the lock
    holders: list[RemovedHolder]
    index: RaftIndex


class SessionAnswer(Answer, kw_only=True):
    #: pass it to `acquire`
    session: str
    expires_in_ms: int
    index: RaftIndex


class SessionRenewAnswer(Answer, kw_only=True):
    expires_in_ms: int
    keys_held: int
    index: RaftIndex


class SessionCloseAnswer(Answer, kw_only=True):
    #: false: there was no such session
    closed: bool
    released_keys: list[str]
    index: RaftIndex


class CheckAnswer(Answer, kw_only=True):
    valid: bool
    #: highest token of the present holders; 0: no client holds the key
    current: int


class Holder(Part):
    client: str
    mode: str
    fencing_token: int
    #: null: until released
    expires_in_ms: int | None
    age_ms: int
    ttl_ms: int
    lock_delay_ms: int
    #: empty: none
    session: str
    #: as given to `acquire`
    meta: Any


class Waiter(Part):
    #: 1: next in line
    position: int
    #: identifies the waiter in the events of `locks.watch`
    place: int
    client: str
    mode: str
    keys: list[str]
    #: from shared, which it holds, to exclusive
    upgrade: bool
    age_ms: int
    gives_up_in_ms: int
    meta: Any


class Delay(Part):
    """The lock delay of a key that was lost by its holder."""

    lost_by: str
    #: "everybody" or "exclusive"
    keeps_out: str
    left_ms: int
    delay_ms: int


class ChainStep(Part):
    client: str
    #: a key
    waits_for: str
    held_by: str
    #: "holds", or "waits": it waits for the key ahead of `client`
    because: str


class Why(Part):
    position: int
    holders: list[Holder]
    delay: Delay | None
    #: from the client to one that does not wait
    chain: list[ChainStep]


class KeyStatus(Part):
    """A key in the events of `locks.watch`; `locks.status` answers the same."""

    key: str
    locked: bool
    mode: str | None
    holders: list[Holder]
    holder_count: int
    waiters: list[Waiter]
    waiter_count: int
    #: null: the key has no lock delay
    delay: Delay | None


class StatusAnswer(Answer, kw_only=True):
    key: str
    locked: bool
    mode: str | None
    holders: list[Holder]
    holder_count: int
    waiters: list[Waiter]
    waiter_count: int
    #: null: the key has no lock delay
    delay: Delay | None
    #: with `client`; null: it does not wait for this key
    why: Why | UnsetType | None = UNSET


class Node(Part):
    client: str
    waiting: bool
    keys_held: int


class Edge(Part):
    from_: str = msgspec.field(name="from")
    to: str
    key: str
    mode: str
    #: "holds" or "waits"
    because: str


class GraphAnswer(Answer, kw_only=True):
    nodes: list[Node]
    edges: list[Edge]
    truncated: bool


class ForcedRelease(Part):
    index: int
    at_ms: int
    key: str
    client: str
    fencing_token: int
    reason: str
    by: str


class AuditAnswer(Answer, kw_only=True):
    forced: list[ForcedRelease]


# ------------------------------------------------------------ subscriptions


class LockEvent(Part, omit_defaults=True):
    """An event of `locks.watch`. A change has the fields of `state.LockChanged`; "state" and "resync" have `locks` and `more`."""

    #: "state": the state at the beginning; "resync": the state now, which replaces everything that was sent before
    kind: LockEventKind | StateKind
    #: the Raft index of the change or of the state
    index: int
    key: str = ""
    client: str = ""
    mode: str = ""
    fencing_token: int = 0
    #: identifies a queue entry: the same in `queued`, `dequeued` and the waiters of a state
    place: int = 0
    #: granted: "", "upgraded", "downgraded", "cancelled"; dequeued: "granted" or why not; refused: "deadlock";
    #: released: "", "session_closed", "cancelled"; lost: "expired", "session_lost", "forced"
    reason: str = ""
    #: the reason given for a forced release
    detail: str = ""
    held_ms: int = 0
    #: the lock delay of a lost key
    delay_ms: int = 0
    locks: list[KeyStatus] | None = None
    #: the state continues in the next event
    more: bool = False


class SessionEvent(Part, omit_defaults=True):
    """Sent when the session starts and at each renewal.

    The lease counts from when the client sent `ping`; without `ping`, from when it sent this call. It does not count from when the
    event arrives: on a slow link, a part of the lease is over by then.
    """

    kind: Literal["started", "renewed"]
    #: pass it to `locks.acquire`
    session: str
    expires_in_ms: int
    index: int
    #: the client's last ping that had arrived before the renewal began
    ping: int | None = None


class SessionEndedAnswer(Answer, kw_only=True):
    session: str
    #: another call closed it
    closed: bool
