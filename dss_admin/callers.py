"""Who makes a request for a page: the bearer of a token, or a logged-in user of the admin."""

from __future__ import annotations

from typing import Any

from dss_api import guard as guards
from dss_api.caller import ANYONE, Caller
from dss_api.errors import Refused
from dss_api.guard import TOKEN_WANTED
from dss_api.rights import EVERYTHING, Access

#: permission of Django -> scope of the API. Superusers may do everything.
_PERMISSIONS = {
    "dss_raft.view_memberrow": "read",
    "dss_locks.view_lockrow": "read",
    "dss_locks.change_lockrow": "operate",
    "dss_queue.change_backlogrow": "operate",
    "dss_raft.change_memberrow": "cluster",
}


def access_of(user: Any) -> Access:
    """What a logged-in user may do: that of the group, or of the permissions of a user whom this node has from an older release."""
    if user.is_superuser:
        return EVERYTHING
    of_group: Access | None = getattr(user, "access", None)
    if of_group is not None:
        return of_group
    return Access(scope for permission, scope in _PERMISSIONS.items() if user.has_perm(permission))


def admin_caller(request: Any, reason: str = "") -> Caller:
    """The user of an action in the admin. On an open node, too, they may do only what their group allows."""
    caller = Caller(f"user {request.user.get_username()}", access_of(request.user))
    caller.reason = reason
    return caller


def caller_of_header(request: Any) -> Caller:
    """The bearer of the token in the header of a request.

    Raises:
        Refused: `unauthenticated`, `over_limit`.
    """
    header = request.META.get("HTTP_AUTHORIZATION", "")
    return guards.shared().authenticate(header.encode("latin-1"), request.META.get("REMOTE_ADDR") or "")


def caller_of_user(user: Any) -> Caller:
    """A logged-in user, with what they may do. On an open node everybody may do everything.

    Raises:
        Refused: `unauthenticated`: no user is logged in, and calls need a token.
    """
    is_open = guards.shared().is_open
    if not (user and user.is_authenticated and user.is_active and user.is_staff):
        if is_open:
            return ANYONE
        raise Refused("unauthenticated", TOKEN_WANTED)
    name = f"user {user.get_username()}"
    return Caller(name, EVERYTHING if is_open else access_of(user))
