"""Groups and leaders, on one session of locks for each coordinator.

A member of a group holds the lock `member/GROUP/MEMBER` with its session; so a member whose session ends has left all its groups, and is
leader of none. The names of the groups are one value in the cache. The capabilities of a member are a value with the name of its lock: it
counts only while the lock is held.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from typing import Any

from tooz import coordination, utils

from dss_client.aio import AsyncClient
from dss_client.errors import LockTimeout, NotHolder, SessionLost, VersionConflict
from dss_client.watch import LockWatch
from dss_tooz.names import Names, member_of, to_bytes, to_text

#: how many session lengths capabilities are kept; they count only while the session of their member lasts
KEPT_SESSIONS = 10
REASON = "another coordinator with the same member id has left the group"

Capabilities = dict[str, Any]
#: a group with its lock keys and their holders


class Membership:
    """One coordinator's part. All methods run in the client's event loop."""

    def __init__(self, client: AsyncClient, names: Names, member: bytes, timeout_s: float) -> None:
        self._client = client
        self._names = names
        self._member = member
        self._timeout_s = timeout_s
        #: for calls that must not overtake each other
        self.turn = asyncio.Lock()
        #: held while locks are acquired with the session, or another one replaces it
        self._using = asyncio.Lock()
        self._session = ""
        self._owner = ""
        #: of the groups that it has joined: its capabilities
        self._joined: dict[bytes, Capabilities] = {}
        #: the same of groups that it was in when its session ended, and has not joined again yet
        self._to_rejoin: dict[bytes, Capabilities] = {}
        #: groups that it leads, with the fencing tokens
        self._leads: dict[bytes, int] = {}

    # ------------------------------------------------------------ session

    async def start(self) -> None:
        owner = self._names.client(self._member, uuid.uuid4().hex[:12])
        answer = await self._client.call("locks.session_start", client=owner, ttl_ms=round(self._timeout_s * 1000))
        self._owner, self._session = owner, answer["session"]

    async def renew(self) -> None:
        """Renew the session. If it has ended, join the groups again with another one.

        If this fails, the next call goes on with the groups that are left.
        """
        async with self._using:
            await self._renew()

    async def _renew(self) -> None:
        try:
            await self._client.call("locks.session_renew", session=self._session)
        except SessionLost:
            self._to_rejoin |= self._joined
            self._joined.clear()
            self._leads.clear()
            await self.start()
        for group, capabilities in list(self._to_rejoin.items()):
            with contextlib.suppress(coordination.GroupNotCreated, coordination.MemberAlreadyExist):
                await self._join(group, capabilities)
            self._to_rejoin.pop(group, None)
        for group in self._joined:
            await self._client.cache.touch(self._names.member(group, self._member), self._timeout_s * KEPT_SESSIONS)

    async def stop(self) -> None:
        async with self._using:
            self._joined.clear()
            self._to_rejoin.clear()
            self._leads.clear()
            await self._client.call("locks.session_close", session=self._session)

    # ------------------------------------------------------------- groups

    async def create(self, group: bytes) -> None:
        name = to_text(group)

        def add(names: list[str]) -> list[str]:
            if name in names:
                raise coordination.GroupAlreadyExist(group)
            return [*names, name]

        await self._change_groups(add)

    async def delete(self, group: bytes) -> None:
        name = to_text(group)

        def remove(names: list[str]) -> list[str]:
            if name not in names:
                raise coordination.GroupNotCreated(group)
            return [one for one in names if one != name]

        if await self.members(group):
            raise coordination.GroupNotEmpty(group)
        await self._change_groups(remove)
        # A member that has joined meanwhile has seen the group, or leaves again.
        if await self._holders(group):
            with contextlib.suppress(coordination.GroupAlreadyExist):
                await self.create(group)
            raise coordination.GroupNotEmpty(group)

    async def groups(self) -> list[bytes]:
        return [to_bytes(name) for name in await self._client.cache.get(self._names.groups) or ()]

    async def _change_groups(self, change: Any) -> None:
        while True:
            entry = await self._client.cache.entry(self._names.groups)
            names = change(entry.value if entry.found else [])
            with contextlib.suppress(VersionConflict):
                await self._client.cache.cas(self._names.groups, names, entry.version if entry.found else 0)
                return

    async def _require(self, group: bytes) -> None:
        if to_text(group) not in (await self._client.cache.get(self._names.groups) or ()):
            raise coordination.GroupNotCreated(group)

    # ------------------------------------------------------------ members

    async def join(self, group: bytes, capabilities: Capabilities | None) -> None:
        async with self._using:
            try:
                await self._join(group, capabilities or {})
            except SessionLost:
                await self._renew()
                await self._join(group, capabilities or {})
            self._to_rejoin.pop(group, None)

    async def _join(self, group: bytes, capabilities: Capabilities) -> None:
        await self._require(group)
        if group in self._joined:
            raise coordination.MemberAlreadyExist(group, self._member)
        key = self._names.member(group, self._member)
        try:
            token = await self._acquire(key)
        except LockTimeout:
            raise coordination.MemberAlreadyExist(group, self._member) from None
        try:
            now = time.time()
            await self._store(key, {"capabilities": capabilities, "created_at": now, "updated_at": now})
            # It may have been deleted before the lock was acquired.
            await self._require(group)
        except BaseException:
            await self._release(key, token)
            raise
        self._joined[group] = capabilities

    async def leave(self, group: bytes) -> None:
        """Leave the group, also if another coordinator with this member id has joined it."""
        async with self._using:
            await self._leave(group)

    async def _leave(self, group: bytes) -> None:
        await self._require(group)
        key = self._names.member(group, self._member)
        self._joined.pop(group, None)
        self._to_rejoin.pop(group, None)
        status = await self._client.call("locks.status", key=key)
        holders = status["holders"]
        if not holders:
            raise coordination.MemberNotJoined(group, self._member)
        if holders[0]["client"] == self._owner:
            await self._release(key, holders[0]["fencing_token"])
        else:
            await self._client.call("locks.force_release", key=key, reason=REASON, by=self._owner)
        await self._client.cache.delete(key)

    async def members(self, group: bytes) -> set[bytes]:
        await self._require(group)
        return set(await self._holders(group))

    async def _holders(self, group: bytes) -> list[bytes]:
        prefix = self._names.members(group)
        async with LockWatch(self._client._running(), prefix) as watch:
            return [to_bytes(key.removeprefix(prefix)) for key in watch.holders]

    async def info(self, group: bytes, member: bytes) -> dict[str, Any]:
        """The capabilities and times of a member."""
        await self._require(group)
        key = self._names.member(group, member)
        status = await self._client.call("locks.status", key=key)
        found = await self._client.cache.get(key)
        if not status["holders"] or found is None:
            raise coordination.MemberNotJoined(group, member)
        return dict(utils.loads(found))

    async def all_capabilities(self, group: bytes) -> dict[bytes, Capabilities | None]:
        members = {self._names.member(group, member): member for member in await self.members(group)}
        if not members:
            return {}
        found = await self._client.cache.mget(members)
        return {member: utils.loads(found[key])["capabilities"] if key in found else None for key, member in members.items()}

    async def update(self, group: bytes, capabilities: Capabilities) -> None:
        info = await self.info(group, self._member)
        key = self._names.member(group, self._member)
        await self._store(key, {**info, "capabilities": capabilities, "updated_at": time.time()})
        if group in self._joined:
            self._joined[group] = capabilities

    async def _store(self, key: str, info: dict[str, Any]) -> None:
        await self._client.cache.put(key, utils.dumps(info), self._timeout_s * KEPT_SESSIONS)

    async def _acquire(self, key: str) -> int:
        """Returns the fencing token.

        Raises:
            LockHeld: another session holds it.
            SessionLost
        """
        answer = await self._client.call("locks.acquire", key=key, client=self._owner, session=self._session)
        return int(answer["fencing_token"])

    async def _release(self, key: str, token: int) -> None:
        with contextlib.suppress(NotHolder):
            await self._client.call("locks.release", key=key, client=self._owner, fencing_token=token)

    # ------------------------------------------------------------ leaders

    async def campaign(self, group: bytes) -> bool:
        """Become the leader if there is none. True: it has just been elected."""
        async with self._using:
            try:
                return await self._campaign(group)
            except SessionLost:
                await self._renew()
                return await self._campaign(group)

    async def _campaign(self, group: bytes) -> bool:
        key = self._names.leader(group)
        if group in self._leads:
            status = await self._client.call("locks.status", key=key)
            if any(holder["fencing_token"] == self._leads[group] for holder in status["holders"]):
                return False
            del self._leads[group]
        try:
            token = await self._acquire(key)
        except LockTimeout:
            return False
        self._leads[group] = token
        return True

    async def stand_down(self, group: bytes) -> bool:
        token = self._leads.pop(group, None)
        if token is None:
            return False
        await self._release(self._names.leader(group), token)
        return True

    async def leader(self, group: bytes) -> bytes | None:
        status = await self._client.call("locks.status", key=self._names.leader(group))
        return member_of(status["holders"][0]["client"]) if status["holders"] else None
