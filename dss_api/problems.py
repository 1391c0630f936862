"""Every refusal that an entry point can answer: its stable code, HTTP status, title and members (RFC 9457), in one table."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from dss_api.answer import Part

# ------------------------------------------------- members of their own


class Invalid(Part):
    #: the field that is at fault, if any
    field: str | UnsetType = UNSET


class TooLarge(Part):
    field: str | UnsetType = UNSET


class OverLimit(Part):
    #: the limit's name
    limit: str | UnsetType = UNSET
    maximum: int | UnsetType = UNSET


class NotReady(Part):
    node: str


class LockHolder(Part):
    key: str
    client: str
    mode: str
    fencing_token: int
    #: null: the lock is held until it is released
    expires_in_ms: int | None


class NotGranted(Part):
    #: the first holders of each key, other clients only
    holders: list[LockHolder]
    #: 1: next in line
    position: int
    #: the remaining lock delay after the loss of a lock
    delayed_ms: int | UnsetType = UNSET


class CycleStep(Part):
    client: str
    #: a key
    waits_for: str
    #: the client that holds it, or waits for it ahead of this one
    held_by: str
    #: how it blocks: "holds" or "waits"
    because: str


class Deadlock(Part):
    deadlock: Annotated[bool, msgspec.Meta(extra_json_schema={"const": True})]
    #: begins with the client of the call
    cycle: list[CycleStep]


class NotHolder(Part):
    keys: list[str]
    #: highest token of the present holders
    current: int | UnsetType = UNSET


class LockLost(Part):
    keys: list[str]


class SessionLost(Part):
    session: str


class StaleReceipt(Part):
    msg_ids: list[str]


class CurrentVersion(Part):
    version: int


class NotSupportedYet(Part):
    #: the first cluster version that has the call
    needed: int
    #: the cluster's present version
    cluster_version: int


class QuorumAtRisk(Part):
    #: of the new configuration
    voters: list[str]
    #: those of them that are reachable
    reachable: list[str]
    #: how many must be
    needed: int
    #: true: the same request with `force` and a `reason` would be carried out
    may_force: bool
    #: those of `voters` that answer but cannot vote, because their disks were put back to an earlier state
    outdated: list[str] = []


# ------------------------------------------------------------- the table


class Problem(NamedTuple):
    status: int
    title: str
    #: seconds for the Retry-After header; None: no such header
    retry_after_s: int | None = None
    #: declares the members of the problem document beyond those that every one has
    members: type[Part] | None = None


PROBLEMS: dict[str, Problem] = {
    "invalid": Problem(400, "The request is not valid", members=Invalid),
    "unauthenticated": Problem(401, "Authentication is required"),
    "forbidden": Problem(403, "Not allowed", members=Invalid),
    "not_found": Problem(404, "Not found"),
    "method_not_allowed": Problem(405, "Method not allowed"),
    "request_timeout": Problem(408, "The request did not arrive in time"),
    "deadlock": Problem(409, "Waiting would close a cycle", members=Deadlock),
    "not_holder": Problem(409, "The fencing token is not the holder's", members=NotHolder),
    "lock_lost": Problem(409, "The lock is no longer held by this client", members=LockLost),
    "session_lost": Problem(409, "The client's session is over", members=SessionLost),
    "stale_receipt": Problem(409, "The message has gone to another consumer", members=StaleReceipt),
    "version_conflict": Problem(409, "The version is not the current one", members=CurrentVersion),
    "exists": Problem(409, "The key already has a value", members=CurrentVersion),
    "skipped": Problem(409, "An operator has skipped the log entry of this call"),
    "not_skippable": Problem(409, "The log entry cannot be skipped"),
    "quorum_at_risk": Problem(409, "Too few voters of the new configuration are reachable", members=QuorumAtRisk),
    "request_expired": Problem(409, "The request may have been carried out before, and is not carried out again"),
    "request_id_reused": Problem(409, "The number of the request was used for another call", members=Invalid),
    "crosses_slots": Problem(409, "The messages belong to several partitions of the engine"),
    "not_on_engine": Problem(409, "The engine of the topic cannot do this", members=Invalid),
    "moving": Problem(409, "The topic is still moving from one engine to another", members=Invalid),
    "not_supported_yet": Problem(409, "Not all members of the cluster support this call yet", members=NotSupportedYet),
    "too_large": Problem(413, "The request is too large", members=TooLarge),
    "unsupported_media_type": Problem(415, "Send application/json"),
    "held": Problem(423, "The lock is held by another client", members=NotGranted),
    "wait_timeout": Problem(423, "The wait ended before the lock was granted", members=NotGranted),
    "over_limit": Problem(429, "A limit of this service is reached", retry_after_s=1, members=OverLimit),
    "head_too_large": Problem(431, "The request line and headers are too long"),
    "cancelled": Problem(499, "The client has cancelled the call"),
    "internal": Problem(500, "The node failed to carry out the call"),
    "no_leader": Problem(503, "No leader is known", retry_after_s=1),
    "no_quorum": Problem(503, "A majority of the nodes is not reachable", retry_after_s=1),
    "unknown_outcome": Problem(503, "The outcome of the call is not known", retry_after_s=1),
    "memory_unavailable": Problem(503, "The cache's backing store does not answer", retry_after_s=1),
    "engine_away": Problem(503, "This node cannot use the engine of the topic", retry_after_s=1),
    "not_ready": Problem(503, "This node is not ready", retry_after_s=1, members=NotReady),
    "overloaded": Problem(503, "This node has no room for more connections or pages", retry_after_s=1),
    "stopping": Problem(503, "This node is stopping", retry_after_s=1),
}


def problem_document(code: str, detail: str = "", extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """The body of an `application/problem+json` answer."""
    problem = PROBLEMS[code]
    return {
        "type": f"urn:dss:problem:{code}",
        "title": problem.title,
        "status": problem.status,
        "detail": detail or problem.title,
        "code": code,
        "ok": False,
        **(extra or {}),
    }
