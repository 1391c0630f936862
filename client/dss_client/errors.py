"""Every error of the client: one tree under `DssError`.

A *refusal* (`Refused`) is an answer of a node. It has a class for each problem code of the API, so that a program can catch what it
expects: `VersionConflict`, `LockTimeout`, `OverLimit`. The other errors are the client's own: no node answered, the outcome is not
known, or the client was used in a wrong way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class DssError(Exception):
    """The base of all errors of this library."""

    #: the problem code of the API, or the client's own
    code: str = ""


# ------------------------------------------------------- the client's own


class WrongUse(DssError):
    """The program used the client in a wrong way. To repeat the call would not help."""

    code = "wrong_use"


class WrongUrl(WrongUse, ValueError):
    """An address is not like http://host:port."""


class Unencodable(WrongUse, TypeError):
    """A value cannot be written as JSON."""


class ClientClosed(WrongUse):
    """The client was closed."""


class LockNotHeld(WrongUse):
    """The lock is not held here: it was never acquired, was released, or belongs to another thread, task or process."""


class Unavailable(DssError):
    """No node carried out the call before its deadline. It had no effect.

    Attributes:
        troubles: what went wrong last at each node: address and text.
    """

    code = "unavailable"

    def __init__(self, detail: str, troubles: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.troubles = dict(troubles or {})


class WrongServer(Unavailable):
    """No address is a node of the cluster: of the Distributed Sync System, and of the one that this client used before."""

    code = "wrong_server"


class UnknownOutcome(DssError):
    """The call may have taken effect. Its answer was lost, and the call could not be repeated safely before its deadline."""

    code = "unknown_outcome"


class BarrierTimeout(DssError):
    """Too few parties came to a barrier in time, or too many were still there.

    Attributes:
        present: how many were there.
    """

    code = "barrier_timeout"

    def __init__(self, detail: str, present: int) -> None:
        super().__init__(detail)
        self.present = present


class RateLimited(DssError):
    """The tokens of a rate limit would be due later than the caller waits. Nothing was taken.

    Attributes:
        retry_after: in how many seconds they would be due.
    """

    code = "rate_limited"

    def __init__(self, name: str, retry_after: float) -> None:
        super().__init__(f"the rate limit {name!r} is used up for {retry_after:.3g} s")
        self.retry_after = retry_after


# -------------------------------------------------------------- refusals


class Refused(DssError):
    """A node refused the call. It had no effect.

    Attributes:
        status: of HTTP.
        detail: the node's explanation.
        fields: the whole problem document.
        was_repeated: the answer to an earlier attempt of the call was lost, so that one may have had an effect.
    """

    was_repeated = False

    def __init__(self, detail: str = "", *, code: str = "", status: int = 0, fields: Mapping[str, Any] | None = None) -> None:
        self.code = code or type(self).code
        super().__init__(f"{detail} ({self.code})" if detail else self.code)
        self.detail = detail
        self.status = status
        self.fields: dict[str, Any] = dict(fields or {})


class Invalid(Refused):
    """The request is wrong. `field` names the field."""

    code = "invalid"

    @property
    def field(self) -> str | None:
        return self.fields.get("field")


class WrongToken(Refused):
    """The token (DSS_TOKEN) is missing or wrong."""

    code = "unauthenticated"


class Forbidden(Refused):
    """The node does not allow this call from here."""

    code = "forbidden"


class NotFound(Refused):
    """The call, the topic or another thing that the call names does not exist."""

    code = "not_found"


class MethodNotAllowed(Refused):
    code = "method_not_allowed"


class RequestTimeout(Refused):
    """The request did not arrive in time."""

    code = "request_timeout"


class Deadlock(Refused):
    """The wait would close a cycle."""

    code = "deadlock"

    @property
    def cycle(self) -> list[dict[str, Any]]:
        """The steps, each with `client`, `waits_for` (a key), `held_by` and `because`. It begins with the owner of this call."""
        return list(self.fields.get("cycle") or [])


class NotHolder(Refused):
    """The fencing token is not the holder's. `current` is the highest token of the present holders."""

    code = "not_holder"

    @property
    def current(self) -> int | None:
        return self.fields.get("current")


class LockLost(Refused):
    """The lock is no longer held. The node has said so, or the lease is over by this machine's clock."""

    code = "lock_lost"

    @property
    def keys(self) -> list[str]:
        return list(self.fields.get("keys") or [])


class SessionLost(Refused):
    """The session of the locks has ended."""

    code = "session_lost"


class StaleReceipt(Refused):
    """Another consumer has the message now."""

    code = "stale_receipt"


class CurrentVersion(Refused):
    """The base of `VersionConflict` and `Exists`."""

    @property
    def version(self) -> int | None:
        """The key's present version."""
        return self.fields.get("version")


class VersionConflict(CurrentVersion):
    """The key has another version."""

    code = "version_conflict"


class Exists(CurrentVersion):
    """The key already has a value."""

    code = "exists"


class Skipped(Refused):
    """An operator has skipped the log entry of this call."""

    code = "skipped"


class NotSkippable(Refused):
    code = "not_skippable"


class CrossesSlots(Refused):
    """The messages of one call belong to several partitions of a topic on Valkey or Redis: publish them in separate calls."""

    code = "crosses_slots"


class NotOnEngine(Refused):
    """A topic on Valkey or Redis cannot do this."""

    code = "not_on_engine"


class Moving(Refused):
    """The topic is still moving from one engine to the other, and cannot go back yet."""

    code = "moving"


class NotSupportedYet(Refused):
    """Not all members of the cluster support this call yet."""

    code = "not_supported_yet"


class QuorumAtRisk(Refused):
    """Too few voters of the new configuration are reachable."""

    code = "quorum_at_risk"


class RequestExpired(Refused):
    """The cluster no longer knows the client session of a `request_id`."""

    code = "request_expired"


class RequestIdReused(Refused):
    """The number of a `request_id` was used for another call."""

    code = "request_id_reused"


class TooLarge(Refused):
    """The request, or a value in it, is too large."""

    code = "too_large"


class UnsupportedMediaType(Refused):
    code = "unsupported_media_type"


class LockTimeout(Refused):
    """The wait ended before the lock was granted."""

    code = "wait_timeout"

    @property
    def holders(self) -> list[dict[str, Any]]:
        """The first holders, each with `key`, `client`, `mode`, `fencing_token` and `expires_in_ms`."""
        return list(self.fields.get("holders") or [])

    @property
    def position(self) -> int | None:
        """The place in the queue. 1: next in line."""
        return self.fields.get("position")


class LockHeld(LockTimeout):
    """Another client holds the lock, and the call did not wait."""

    code = "held"


class OverLimit(Refused):
    """A limit is reached. `limit` is its name."""

    code = "over_limit"

    @property
    def limit(self) -> str | None:
        return self.fields.get("limit")


class HeadTooLarge(Refused):
    code = "head_too_large"


class Cancelled(Refused):
    """The call was cancelled."""

    code = "cancelled"


class InternalError(Refused):
    """A node failed to carry out the call; see its log. The call may have taken effect."""

    code = "internal"


class BackingStoreUnavailable(Refused):
    """The cache's backing store does not answer."""

    code = "memory_unavailable"


class EngineAway(Refused):
    """The topic is on Valkey or Redis, and the node cannot use these servers now. Topics in the log are not affected."""

    code = "engine_away"


#: These codes say that the call had no effect, and that another node, or the same one later, may carry it out.
NO_EFFECT = frozenset({"no_leader", "no_quorum", "not_ready", "engine_away", "overloaded", "stopping"})

_BY_CODE: dict[str, type[Refused]] = {}


def _register(parent: type[Refused]) -> None:
    for child in parent.__subclasses__():
        if child.code:
            _BY_CODE[child.code] = child
        _register(child)


_register(Refused)


def refusal(status: int, fields: Mapping[str, Any]) -> Refused:
    """The error for a problem document."""
    code = str(fields.get("code") or "")
    detail = str(fields.get("detail") or f"status {status}")
    return _BY_CODE.get(code, Refused)(detail, code=code, status=status, fields=fields)
