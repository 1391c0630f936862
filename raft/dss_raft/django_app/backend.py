"""Django's authentication with the users of the replicated state.

A session names the user's number, and proves the password hash and the generation (`ClusterUser`). So any node can check it with what it
has applied, and stores nothing. Django's admin log refers to users by a row of a table: a node writes that row when it first needs it.

Until the cluster has users, which needs its version 5, the users of the node's own database log in as in older releases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, cast

import structlog
from django.contrib import admin
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import User as LocalUser
from django.db import DatabaseError, transaction

from dss_admin.live_admin import LiveAdmin
from dss_api import failures, running
from dss_api.errors import Refused
from dss_api.rights import OF_GROUP
from dss_raft.django_app.models import ClusterUser
from dss_raft.django_app.passwords import hashing
from dss_raft.replication import users
from dss_raft.user_operations import USERS

log = structlog.get_logger("access")

#: user name with which an older user's row makes room
_EARLIER = "{name} (earlier {pk})"
#: numbers of users whose row was written by this process, with the name in it
_rows: dict[int, str] = {}


class ClusterUsers(ModelBackend):
    """The backend. See the module."""

    def authenticate(self, request: Any, username: str | None = None, password: str | None = None, **others: Any) -> Any:
        """Check a password.

        Raises:
            Refused: `over_limit` or `overloaded`: it was not checked; `stopping`.
        """
        if not username or password is None:
            return None
        if not has_begun() and (LocalUser.objects.filter(pk__gt=0).exists() or not _wait_for_first_users()):
            return self._local(request, username, password)
        user = _find(lambda machine: machine.users.get(username))
        address = request.META.get("REMOTE_ADDR") or "" if request is not None else ""
        with failures.logins().login(address, username, user is not None) as succeeded:
            is_right = hashing().is_right(password, user.password_hash if user else "", is_login=True)
            if user is None or not is_right or not user.is_active:
                return None
            succeeded()
        found = ClusterUser.of(user)
        keep_row(found)
        return found

    def _local(self, request: Any, username: str, password: str) -> Any:
        """A user of this node's database, as in releases before users were replicated."""
        row = LocalUser.objects.filter(username=username, pk__gt=0).first()
        address = request.META.get("REMOTE_ADDR") or "" if request is not None else ""
        with failures.logins().login(address, username, row is not None) as succeeded:
            is_right = hashing().is_right(password, row.password if row else "", is_login=True)
            if row is None or not is_right or not self.user_can_authenticate(row):
                return None
            succeeded()
        return row

    def get_user(self, user_id: int) -> Any:
        """The user of a session, as this node knows them now."""
        if user_id > 0:
            return None if has_begun() else super().get_user(user_id)
        try:
            user = _find(lambda machine: machine.by_number.get(-user_id))
        except Refused:
            return None
        if user is None or not user.is_active:
            return None
        found = ClusterUser.of(user)
        keep_row(found)
        return found

    def get_all_permissions(self, user_obj: Any, obj: Any = None) -> set[str]:
        if not isinstance(user_obj, ClusterUser):
            return cast("set[str]", super().get_all_permissions(user_obj, obj))
        return set(permissions_of(user_obj.group)) if user_obj.is_active and obj is None else set()

    def get_user_permissions(self, user_obj: Any, obj: Any = None) -> set[str]:
        return set() if isinstance(user_obj, ClusterUser) else cast("set[str]", super().get_user_permissions(user_obj, obj))

    def get_group_permissions(self, user_obj: Any, obj: Any = None) -> set[str]:
        if isinstance(user_obj, ClusterUser):
            return self.get_all_permissions(user_obj, obj)
        return cast("set[str]", super().get_group_permissions(user_obj, obj))


@cache
def permissions_of(group: str) -> frozenset[str]:
    """Django's permissions of a group: what its rights allow on the pages of the admin."""
    access = OF_GROUP[group]
    found = set()
    for model, page in admin.site._registry.items():
        options = model._meta
        if not isinstance(page, LiveAdmin):
            continue
        for action in options.default_permissions:
            needs = page.view_needs if action == "view" else page.act_needs
            if needs.is_possible(access):
                found.add(f"{options.app_label}.{action}_{options.model_name}")
    return frozenset(found)


def has_begun() -> bool:
    """Whether the cluster has, or ever had, users. Then those of the node's own database cannot log in."""
    try:
        machine: users.Users | None = getattr(running.node(), "services", {}).get(USERS)
    except Refused:
        return False
    return machine is not None and machine.has_begun


def _wait_for_first_users() -> bool:
    """Wait for the first users of a new cluster, which come in the moments after it was formed.

    Raises:
        Refused: `not_ready`: they do not come. The node may have a database of an older release meanwhile.
    """
    node = running.node()
    if USERS not in getattr(node, "services", {}):
        return False
    if not running.await_in_loop(node.until(has_begun)):
        raise Refused("not_ready", "there is no user yet: the cluster makes the first one when it is complete")
    return True


def _find(find: Callable[[users.Users], users.User | None]) -> users.User | None:
    """A copy of a user, taken in the thread of the state."""

    def copy() -> users.User | None:
        found = find(running.node().services[USERS])
        return None if found is None else replace(found)

    return running.call_in_loop(copy)


def keep_row(user: ClusterUser) -> None:
    """Write the row that Django's admin log refers to, if this process has not done so. It has no password: it is not used for logins."""
    if _rows.get(user.pk) == user.username:
        return
    try:
        with transaction.atomic():
            for earlier in LocalUser.objects.filter(username=user.username).exclude(pk=user.pk):
                earlier.username = _EARLIER.format(name=earlier.username[:100], pk=earlier.pk)
                earlier.save(update_fields=["username"])
            row = {"username": user.username, "password": "!", "is_staff": True, "is_active": True, "is_superuser": False}
            LocalUser.objects.update_or_create(pk=user.pk, defaults=row)
    except DatabaseError as error:
        # A full disk must not keep anyone out of the admin.
        log.error("access.row_not_written", user=user.username, error=str(error))
        return
    _rows[user.pk] = user.username
