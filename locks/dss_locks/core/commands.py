"""What clients of the lock manager may ask: field names, limits and defaults, defined here and nowhere else."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from dss_api.fields import DURATION_MS_MAX, DurationMs, Fields, Index, Name, OptionalName, PositiveDurationMs, WaitMs, check_name
from dss_raft.replication.commands import Command

KEYS_PER_CALL_MAX = 64
META_MEMBERS_MAX = 16
REASON_LENGTH_MAX = 512
TTL_MS_DEFAULT = 30_000
#: A connection's session is renewed by its node at a third of this: not more often than a heartbeat or two.
CONNECTION_TTL_MS_MIN = 1_000
#: as Consul and Chubby have it: longer than any request in flight should live, short enough to wait for
LOCK_DELAY_MS_MAX = 60_000

Mode = Literal["exclusive", "shared"]
Keys = Annotated[list[Name], msgspec.Meta(min_length=1, max_length=KEYS_PER_CALL_MAX)]
#: The log's encoding knows 64-bit integers only.
MetaInteger = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
MetaValue = OptionalName | MetaInteger | float | bool | None
LockDelayMs = Annotated[int, msgspec.Meta(ge=0, le=LOCK_DELAY_MS_MAX)]
Reason = Annotated[str, msgspec.Meta(min_length=1, max_length=REASON_LENGTH_MAX)]


class KeyFields(Fields, kw_only=True):
    """One key or several: exactly one of the two fields is given."""

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
                raise ValueError("`keys` names a key twice")


class Acquire(KeyFields, Command, tag="locks.acquire", kw_only=True):
    """Lock a key, or several all or nothing. A client is one owner: what it holds it may acquire again."""

    mode: Mode = "exclusive"
    #: length of the lease; 0: until released
    ttl_ms: DurationMs = TTL_MS_DEFAULT
    #: the lock ends with this session (`POST /session`), and has no lease of its own; empty: no session
    session: OptionalName = ""
    #: how long to queue when it is held; 0: answer at once
    wait_ms: WaitMs = 0
    #: when this lock is lost (lease or session ended, taken away; not when it is released), nobody is granted the key for so long
    lock_delay_ms: LockDelayMs = 0
    #: shown to whoever asks who holds the lock; not interpreted
    meta: dict[Name, MetaValue] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.meta is not None and len(self.meta) > META_MEMBERS_MAX:
            raise ValueError(f"`meta` has more than {META_MEMBERS_MAX} members")


class Release(KeyFields, Command, tag="locks.release", kw_only=True):
    """Give back. With `fencing_token` only if that is still the holder's."""

    fencing_token: Index | None = None


class Renew(KeyFields, Command, tag="locks.renew", kw_only=True):
    """Start the lease anew."""

    fencing_token: Index | None = None
    #: None: as long as before
    ttl_ms: DurationMs | None = None


class ForceRelease(Command, tag="locks.force_release", kw_only=True):
    """Take a lock away from its holder; kept in the audit list with who and why."""

    key: Name
    reason: Reason
    #: who decided it
    by: OptionalName = ""
    #: only this holder; empty: all of them
    client: OptionalName = ""

    def __post_init__(self) -> None:
        check_name("key", self.key)
        check_name("by", self.by)
        check_name("client", self.client)


class StartSession(Command, tag="locks.session.start", kw_only=True):
    """One lease for all the locks that are acquired in it."""

    client: Name
    ttl_ms: PositiveDurationMs = TTL_MS_DEFAULT

    def __post_init__(self) -> None:
        check_name("client", self.client)


class RenewSession(Command, tag="locks.session.renew", kw_only=True):
    """Start the session's lease anew."""

    session: Name
    #: None: as long as before
    ttl_ms: PositiveDurationMs | None = None


class CloseSession(Command, tag="locks.session.close", kw_only=True):
    """End the session and release all its locks."""

    session: Name


class CheckToken(Fields):
    """Asked by a protected resource before it writes."""

    key: Name
    fencing_token: Index


Consistency = Literal["linearizable", "local"]


class StatusQuery(Fields):
    """`client`: why that client is waiting for the key."""

    key: Name
    client: OptionalName = ""
    consistency: Consistency = "linearizable"


class GraphQuery(Fields):
    """The waits-for graph."""

    consistency: Consistency = "linearizable"


class Watch(Fields):
    """What to be told of: exactly one of the first four. A prefix watches every key that begins with it, "" every key."""

    key: Name | None = None
    keys: Keys | None = None
    prefix: OptionalName | None = None
    #: what this client holds and waits for
    client: Name | None = None
    #: how recent the state is that comes first
    consistency: Consistency = "linearizable"

    def __post_init__(self) -> None:
        given = [name for name in ("key", "keys", "prefix", "client") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of `key`, `keys`, `prefix` and `client`, not {' and '.join(given) or 'none'}")
        for name in given:
            for text in self.keys if self.keys is not None else [getattr(self, name)]:
                check_name(name, text)


class KeepSession(Fields):
    """A session that lives as long as its connection."""

    client: Name
    #: the locks are free so long after the node of this connection was lost; a lost connection frees them at once
    ttl_ms: Annotated[int, msgspec.Meta(ge=CONNECTION_TTL_MS_MIN, le=DURATION_MS_MAX)] = TTL_MS_DEFAULT

    def __post_init__(self) -> None:
        check_name("client", self.client)


class AuditQuery(Fields):
    """The forced releases."""

    consistency: Consistency = "linearizable"
