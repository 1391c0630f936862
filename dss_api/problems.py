"""Every refusal a door can answer: its stable code, HTTP status and title (RFC 9457), in one table."""

from __future__ import annotations

from typing import Any, NamedTuple


class Problem(NamedTuple):
    status: int
    title: str
    #: seconds for the Retry-After header; None: no such header
    retry_after_s: int | None = None


PROBLEMS: dict[str, Problem] = {
    "invalid": Problem(400, "The request is not valid"),
    "unauthenticated": Problem(401, "Authentication is required"),
    "forbidden": Problem(403, "Not allowed"),
    "not_found": Problem(404, "Not found"),
    "method_not_allowed": Problem(405, "Method not allowed"),
    "request_timeout": Problem(408, "The request did not arrive in time"),
    "deadlock": Problem(409, "Waiting would close a cycle"),
    "not_holder": Problem(409, "The fencing token is not the holder's"),
    "lock_lost": Problem(409, "The lock is no longer held by this client"),
    "session_lost": Problem(409, "The client's session is over"),
    "stale_receipt": Problem(409, "The message has gone to another consumer"),
    "version_conflict": Problem(409, "The version is not the current one"),
    "exists": Problem(409, "The key already has a value"),
    "too_large": Problem(413, "The request is too large"),
    "unsupported_media_type": Problem(415, "Send application/json"),
    "held": Problem(423, "The lock is held by another client"),
    "wait_timeout": Problem(423, "The wait ran out before the lock was granted"),
    "over_limit": Problem(429, "A limit of this service is reached", retry_after_s=1),
    "head_too_large": Problem(431, "The request line and headers are too long"),
    "cancelled": Problem(499, "The client has cancelled the call"),
    "internal": Problem(500, "This node has failed at the call"),
    "no_leader": Problem(503, "No leader is known", retry_after_s=1),
    "no_quorum": Problem(503, "A majority of the nodes is not reachable", retry_after_s=1),
    "unknown_outcome": Problem(503, "The outcome of the call is not known", retry_after_s=1),
    "memory_unavailable": Problem(503, "The cache's backing store does not answer", retry_after_s=1),
    "not_ready": Problem(503, "This node is not ready", retry_after_s=1),
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
