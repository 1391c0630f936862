"""How the engine fails."""

from __future__ import annotations

from dss_api.errors import Refused

#: What the library puts before the code of a refusal.
PREFIX = "DSS_"
#: What is full, by the name of the limit.
_OVER_LIMIT = {
    "max_bytes": "a partition of the topic has {used} of the {maximum} bytes that are its part of `max_bytes`",
    "partition_messages_max": "a partition of the topic has {used} of {maximum} messages",
    "groups_per_topic_max": "the topic has {used} of {maximum} groups",
}
#: A newer release may have loaded a library with further limits.
_OVER_OTHER_LIMIT = "a partition of the topic has {used} of {maximum}"


class NoGroup(Exception):
    """A step of a group that the partition does not have."""


class GroupDeleted(Exception):
    """The group was deleted while a call waited for its messages."""


class Closed(Exception):
    """The topic takes no messages here: it has left the engine, or it is deleted."""


class NotOpen(Closed):
    """A partition is not open yet, or no longer there."""


class EngineAway(Refused):
    """The servers do not answer; the call had no effect."""

    def __init__(self, detail: str) -> None:
        super().__init__("engine_away", detail)


class UnfitServer(Exception):
    """A server cannot be the engine. The text names the setting."""


def unreadable(what: str, *, changes: bool) -> Refused:
    """A server answers as the library does not.

    Args:
        changes: the step may have changed something.
    """
    code = "unknown_outcome" if changes else "engine_away"
    return Refused(code, f"a server gives an answer that this release does not know: {what}")


def refusal(text: str) -> Exception:
    """The exception for a refusal by the library, `DSS_<CODE> <detail>`."""
    # The server adds where in the library it was raised.
    code, _, detail = text.removeprefix(PREFIX).partition(" script: ")[0].partition(" ")
    if code == "NO_GROUP":
        return NoGroup()
    if code == "CLOSED":
        return Closed(detail)
    if code == "NOT_OPEN":
        return NotOpen(detail)
    if code == "OVER_LIMIT":
        limit, maximum, used = detail.split()
        text = _OVER_LIMIT.get(limit, _OVER_OTHER_LIMIT).format(used=used, maximum=maximum)
        return Refused("over_limit", text, limit=limit, maximum=int(maximum))
    return Refused("engine_away", f"the engine refuses: {detail}")
