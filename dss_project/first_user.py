"""The first users of a cluster.

The leader adds them once the cluster has the version for it: those of its own database, if an older release has left some there, otherwise
`admin`. Users that only other nodes have are not taken, and every node says so. From then on, the database of a node has no user who can
log in; the users are those of the cluster.

DSS_ADMIN_PASSWORD is only for that first `admin`. A node that has another value than the user's password says so at its start, and changes
nothing: three nodes with three values must not change it in turns.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import secrets
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import structlog
from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model

from dss_api.errors import Refused
from dss_api.supervised import Tasks
from dss_api.token_text import TokenKey
from dss_project import access, secret_files
from dss_raft.django_app.passwords import hashing
from dss_raft.replication.users import FIRST_USERS_MAX, SINCE, BeginUsers, NewUser, User, Users, UsersBegan
from dss_raft.user_operations import SERVICE, USERS

if TYPE_CHECKING:
    from dss_project.config import NodeConfig
    from dss_raft.node import Node

log = structlog.get_logger("node")

USERNAME = "admin"
PASSWORD_BYTES = 12
#: A cluster that has no version for users after this time has older members: its users are those of each node.
OLD_CLUSTER_S = 10.0
RETRY_S = 1.0


def password_file(config: NodeConfig) -> Path:
    return Path(config.data_dir) / "admin-password"


def generated_password(config: NodeConfig) -> str:
    """The first password if no setting gives one. Nodes with a secret in common compute the same one, so that each of them can show it."""
    keys = access.token_keys(config)
    if not keys:
        path = password_file(config)
        secret_files.keep(path, secrets.token_urlsafe(PASSWORD_BYTES))
        return secret_files.read_or_make(path)
    return _password_of(keys[0])


def _password_of(key: TokenKey) -> str:
    code = hmac.digest(key.key, b"password of the first user", sha256)
    return base64.urlsafe_b64encode(code[:PASSWORD_BYTES]).decode()


def ensure_local(config: NodeConfig) -> None:
    """Create `admin` in the node's own database if it has no user, as older releases do."""
    local = get_user_model().objects
    if local.filter(pk__gt=0).exists():
        return
    password = config.admin_password or generated_password(config)
    if not config.admin_password:
        secret_files.keep(password_file(config), password)
    local.create_superuser(USERNAME, password=password)


class FirstUsers:
    """Adds the first users from a leader, and tells each node about them. Create it before the node starts."""

    def __init__(self, node: Node, config: NodeConfig) -> None:
        self._node = node
        self._config = config
        self._users = cast(Users, node.machine("users"))
        self._tasks = Tasks()
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time()
        self._next_s = 0.0
        #: the users of this node's database are out of use
        self._is_settled = False
        self._has_local = False
        node.services[SERVICE] = hashing()
        node.services[USERS] = self._users
        node.on_upkeep(self._tick)
        node.on_event(UsersBegan, self._began)

    def _began(self, event: UsersBegan, index: int) -> None:
        # A node that starts applies the entries of its log again.
        if not self._node.had_first_users or not self._was_introduced():
            self._tasks.spawn("users", self._introduce(event.by))

    def _was_introduced(self) -> bool:
        """Whether an earlier run of this node has done all that `_introduce` does, apart from its line in the log."""
        if self._config.admin_password or not access.token_keys(self._config):
            return True
        return password_file(self._config).exists()

    def _tick(self) -> None:
        now_s = self._loop.time()
        if self._is_settled or now_s < self._next_s or len(self._tasks):
            return
        self._next_s = now_s + RETRY_S
        if self._users.has_begun:
            self._is_settled = True
            self._tasks.spawn("users", self._settle())
        elif self._node.replica.cluster_version >= SINCE:
            if self._node.is_leader:
                self._tasks.spawn("users", self._begin())
        elif not self._has_local and now_s > self._began_s + OLD_CLUSTER_S and self._node.is_ready:
            self._has_local = True
            self._tasks.spawn("users", sync_to_async(ensure_local)(self._config))

    async def _begin(self) -> None:
        """Propose the first users."""
        users = await sync_to_async(_local_users)()
        if not users:
            password = self._config.admin_password or generated_password(self._config)
            users = [NewUser(USERNAME, "admin", await hashing().hash_given(password))]
        try:
            await self._node.submit(BeginUsers(users=users, by=self._node.node_id))
        except Refused as refusal:
            log.info("node.first_users_wait", why=refusal.detail or refusal.code)

    async def _introduce(self, by: str) -> None:
        """The first users were just added: say where the password is, and keep a generated one in this node's file."""
        where = "the password that was set for each of them"
        if self._config.admin_password:
            where = "DSS_ADMIN_PASSWORD"
        elif USERNAME in self._users.users and access.token_keys(self._config):
            path, password = password_file(self._config), generated_password(self._config)
            if await hashing().is_right_soon(password, self._users.users[USERNAME].password_hash):
                secret_files.keep(path, password)
                where = str(path)
        elif by == self._node.node_id and password_file(self._config).exists():
            where = str(password_file(self._config))
        elif USERNAME in self._users.users:
            where = f"the file admin-password of {by}"
        log.info("node.first_user", user=", ".join(list(self._users.users)[:10]), made_by=by, password_in=where)

    async def _settle(self) -> None:
        """The cluster has users: end the use of those in this node's database, and check the setting."""
        for name in await sync_to_async(_retire_local_users)():
            log.warning(
                "node.local_user_ended",
                user=name,
                hint="users are the same on all nodes now, and this one was on this node only: manage.py user create",
                exists_in_cluster=name in self._users.users,
            )
        admin = self._users.users.get(USERNAME)
        if admin is None:
            return
        for key in access.token_keys(self._config)[1:]:
            if await self._is_password(_password_of(key), admin) is True:
                log.warning(
                    "node.admin_password_is_of_old_secret",
                    hint="the password of the user `admin` was generated from the previous secret, so everyone who has that secret"
                    " can log in: manage.py user password admin",
                )
        if self._config.admin_password and await self._is_password(self._config.admin_password, admin) is False:
            log.warning(
                "node.admin_password_not_used",
                hint="DSS_ADMIN_PASSWORD is for the first start of a cluster only, and the user `admin` has another password."
                " To change it: manage.py user password admin. Then unset the setting",
            )

    async def _is_password(self, password: str, user: User) -> bool | None:
        """None: too many passwords wait to be checked."""
        try:
            return await hashing().is_right_soon(password, user.password_hash)
        except Refused:
            return None


def _local_users() -> list[NewUser]:
    """The users of this node's database who could log in to the admin, as users of the cluster."""
    found = []
    for row in get_user_model().objects.filter(pk__gt=0, is_active=True, is_staff=True).order_by("pk")[:FIRST_USERS_MAX]:
        group = "admin" if row.is_superuser else "operator" if row.has_perm("dss_locks.change_lockrow") else "viewer"
        try:
            new: Any = {"name": row.username, "group": group, "password_hash": row.password}
            found.append(msgspec.convert(new, NewUser))
        except msgspec.ValidationError as error:
            log.warning("node.local_user_not_taken", user=row.username, why=str(error))
    return found


def _retire_local_users() -> list[str]:
    """Let no user of this node's database log in any more. Returns their names, once."""
    rows = get_user_model().objects.filter(pk__gt=0, is_active=True)
    names = list(rows.values_list("username", flat=True))
    rows.update(is_active=False)
    return names
