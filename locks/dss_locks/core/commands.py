"""The requests of the lock manager: field names, limits and defaults. They are defined only here."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from dss_api.fields import DURATION_MS_MAX, DurationMs, Fields, Index, Name, OptionalName, PositiveDurationMs, WaitMs, check_name
from dss_raft.replication.commands import Command

KEYS_PER_CALL_MAX = 64
META_MEMBERS_MAX = 16
REASON_LENGTH_MAX = 512
TTL_MS_DEFAULT = 30_000
#: The node renews a connection's session at a third of its lease. With this minimum, that is about once every few heartbeats.
CONNECTION_TTL_MS_MIN = 1_000
#: As in Consul and Chubby: longer than a request should be in flight, and short enough to wait for.
LOCK_DELAY_MS_MAX = 60_000

Mode = Literal["exclusive", "shared"]
Keys = Annotated[list[Name], msgspec.Meta(min_length=1, max_length=KEYS_PER_CALL_MAX)]
#: The log's encoding has only 64-bit integers.
MetaInteger = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
MetaValue = OptionalName | MetaInteger | float | bool | None
LockDelayMs = Annotated[int, msgspec.Meta(ge=0, le=LOCK_DELAY_MS_MAX)]
Reason = Annotated[str, msgspec.Meta(min_length=1, max_length=REASON_LENGTH_MAX)]


class KeyFields(Fields, kw_only=True):
    """One key or several. Exactly one of the two fields must be given."""

    key: Name | None = None
    keys: Keys | None = None
    client: Name

    def __post_init__(self) -> None:
        check_name("client", self.client)
        if self.key is not None:
            if self.keys is not None:
                raise ValueError("give either `key` or `keys`, not both")
            check_name("key", self.key)
        elif self.keys is None:
            raise ValueError("`key` is missing (or `keys`, for several)")
        else:
            for key in self.keys:
                check_name("keys", key)
            if len(dict.fromkeys(self.keys)) != len(self.keys):
                raise ValueError("`keys` contains a key twice")


class Acquire(KeyFields, Command, tag="locks.acquire", kw_only=True):
    """Lock a key, or several keys all or nothing. A client may acquire again a key that it already holds."""

    is_undone_by_cancel: ClassVar[bool] = True

    mode: Mode = "exclusive"
    #: length of the lease; 0: until released
    ttl_ms: DurationMs = TTL_MS_DEFAULT
    #: the lock has the lease of this session (`POST /session`) instead of its own; empty: no session
    session: OptionalName = ""
    #: how long to wait in the queue if it is held; 0: answer immediately
    wait_ms: WaitMs = 0
    #: after this lock is lost (its lease or session expires, or it is force-released), the key is not granted for this long
    lock_delay_ms: LockDelayMs = 0
    #: shown with the lock's holder; not interpreted
    meta: dict[Name, MetaValue] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.meta is not None and len(self.meta) > META_MEMBERS_MAX:
            raise ValueError(f"`meta` has more than {META_MEMBERS_MAX} members")


class Release(KeyFields, Command, tag="locks.release", kw_only=True):
    """Release a lock. With `fencing_token`, only if it is still the holder's token."""

    fencing_token: Index | None = None


class Renew(KeyFields, Command, tag="locks.renew", kw_only=True):
    """Renew the lease."""

    fencing_token: Index | None = None
    #: None: the same length as before
    ttl_ms: DurationMs | None = None


class ForceFields(Fields, kw_only=True):
    """What every cluster version knows of a forced release."""

    key: Name
    reason: Reason
    #: who ordered it
    by: OptionalName = ""
    #: only this holder; empty: all holders
    client: OptionalName = ""

    def __post_init__(self) -> None:
        check_name("key", self.key)
        check_name("by", self.by)
        check_name("client", self.client)


class ForceReleaseRequest(ForceFields, kw_only=True):
    #: only the grant with this token: a newer one of the same client stays; None: whatever is held
    fencing_token: Index | None = None


class ForceRelease(ForceFields, Command, tag="locks.force_release", kw_only=True):
    """Take a lock away from its holder. Recorded in the audit list with who did it and why."""


class ForceReleaseGrant(ForceFields, Command, tag="locks.force_release_grant", kw_only=True):
    """`ForceRelease` of one grant only."""

    since: ClassVar[int] = 5

    fencing_token: Index


class CancelWait(Command, tag="locks.cancel_wait", kw_only=True):
    """Refuse the calls of a waiting request as if their time were over. An operator's; the admin records who and why."""

    since: ClassVar[int] = 5

    client: Name
    #: of the request, as `waiters` of `GET /lock/status` have it
    place: Index
    reason: Reason
    #: who ordered it
    by: OptionalName = ""

    def __post_init__(self) -> None:
        check_name("client", self.client)
        check_name("by", self.by)


class StartSession(Command, tag="locks.session.start", kw_only=True):
    """Start a session: one lease for all locks that are acquired in it."""

    client: Name
    ttl_ms: PositiveDurationMs = TTL_MS_DEFAULT

    def __post_init__(self) -> None:
        check_name("client", self.client)


class RenewSession(Command, tag="locks.session.renew", kw_only=True):
    """Renew the lease of a session."""

    session: Name
    #: None: the same length as before
    ttl_ms: PositiveDurationMs | None = None


class CloseSession(Command, tag="locks.session.close", kw_only=True):
    """End a session and release all its locks."""

    session: Name


class CheckToken(Fields):
    """Check a fencing token. For a protected resource, before it writes."""

    key: Name
    fencing_token: Index


Consistency = Literal["linearizable", "local"]


class StatusQuery(Fields):
    """Who holds a key and who waits for it."""

    key: Name
    #: also tell why this client waits for the key
    client: OptionalName = ""
    consistency: Consistency = "linearizable"


class GraphQuery(Fields):
    """The waits-for graph."""

    consistency: Consistency = "linearizable"


class Watch(Fields):
    """What to watch: exactly one of the first four fields. A prefix watches every key that begins with it; "" watches all keys."""

    key: Name | None = None
    keys: Keys | None = None
    prefix: OptionalName | None = None
    #: the keys that this client holds and waits for
    client: Name | None = None
    #: the consistency of the initial state
    consistency: Consistency = "linearizable"

    def __post_init__(self) -> None:
        given = [name for name in ("key", "keys", "prefix", "client") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of `key`, `keys`, `prefix` and `client`, not {' and '.join(given) or 'none'}")
        for name in given:
            for text in self.keys if self.keys is not None else [getattr(self, name)]:
                check_name(name, text)


class KeepSession(Fields):
    """Make this connection a session."""

    client: Name
    #: if the node of this connection is lost, the locks are free after this time; if the connection closes, immediately
    ttl_ms: Annotated[int, msgspec.Meta(ge=CONNECTION_TTL_MS_MIN, le=DURATION_MS_MAX)] = TTL_MS_DEFAULT

    def __post_init__(self) -> None:
        check_name("client", self.client)


class AuditQuery(Fields):
    """The audit list of forced releases."""

    consistency: Consistency = "linearizable"
