"""The driver `dss://` of tooz."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import tooz
from tooz import coordination, utils
from tooz.coordination import Characteristics, CoordAsyncResult, CoordinatorResult

from dss_client.dss_url import CONNECTING, DssUrl, seconds
from dss_client.errors import WrongUse
from dss_tooz.link import Link, translated, translating
from dss_tooz.lock import DssLock
from dss_tooz.membership import Membership
from dss_tooz.names import Names

NAMESPACE_DEFAULT = "default"
TIMEOUT_S_DEFAULT = 30.0
CONNECT_S = 5.0
OWN_OPTIONS = frozenset({"timeout", "membership_timeout", "lock_timeout", "call_timeout", "namespace"})


class DssDriver(coordination.CoordinationDriverCachedRunWatchers):
    """A coordinator. A program starts it with `start_heart=True`, or calls `heartbeat` itself; locks are renewed without it.

    Options of the URL, or of `get_coordinator`:

    - `timeout`: `membership_timeout` and `lock_timeout`, in seconds (30): after this time, a member that was killed has left its groups,
      and a lock whose holder was killed is free.
    - `namespace`: as the URL's path.
    - `call_timeout`: for how many seconds a call looks for a node that carries it out.
    - `token`, `tls`, `ca_file`, `cert_file`, `key_file`: see docs/how-to/tooz.md.
    """

    CHARACTERISTICS = (
        Characteristics.DISTRIBUTED_ACROSS_THREADS,
        Characteristics.DISTRIBUTED_ACROSS_PROCESSES,
        Characteristics.DISTRIBUTED_ACROSS_HOSTS,
        Characteristics.LINEARIZABLE,
        Characteristics.SAME_VIEW_UNDER_PARTITIONS,
        Characteristics.SAME_VIEW_ACROSS_CLIENTS,
    )

    def __init__(self, member_id: bytes, parsed_url: Any, options: dict[str, Any]) -> None:
        super().__init__(utils.to_binary(member_id), parsed_url, options)
        given = utils.collapse(options)
        try:
            url = DssUrl.parse(f"dss://{parsed_url.netloc}{parsed_url.path}")
            for name in given:
                if name not in OWN_OPTIONS and name not in CONNECTING:
                    raise WrongUse(f"there is no option {name!r}")
            timeout = seconds("timeout", given.get("timeout", TIMEOUT_S_DEFAULT))
            self._membership_s = seconds("membership_timeout", given.get("membership_timeout", timeout))
            self._lock_s = seconds("lock_timeout", given.get("lock_timeout", timeout))
            connecting = {name: value for name, value in given.items() if name in CONNECTING and name != "timeout"}
            if "call_timeout" in given:
                connecting["timeout"] = given["call_timeout"]
            self._client_options = url.client_options(connecting)
        except WrongUse as error:
            raise tooz.ToozError(str(error)) from error
        self._names = Names(given.get("namespace") or url.path or NAMESPACE_DEFAULT)
        self._running: tuple[Link, Membership] | None = None

    @property
    def _link(self) -> Link:
        return self._both()[0]

    @property
    def _membership(self) -> Membership:
        return self._both()[1]

    def _both(self) -> tuple[Link, Membership]:
        if self._running is None:
            raise tooz.ToozError("the coordinator is not started")
        return self._running

    @translated
    def _start(self) -> None:
        link = Link(self._client_options)
        membership = Membership(link.client, self._names, self._member_id, self._membership_s)
        try:
            link.run(link.check(CONNECT_S))
            link.run(membership.start())
        except BaseException:
            link.close()
            raise
        self._running = (link, membership)

    @translated
    def _stop(self) -> None:
        link, membership = self._both()
        self._running = None
        try:
            link.run(membership.stop())
        finally:
            link.close()

    def _result(self, work: Coroutine[Any, Any, Any]) -> CoordAsyncResult[Any]:
        """One coordinator's calls are carried out in the order in which they were made."""
        try:
            link, membership = self._both()
        except tooz.ToozError:
            work.close()
            raise

        async def in_order() -> Any:
            async with membership.turn:
                return await work

        return CoordinatorResult(link.start(in_order()), translating)

    @translated
    def heartbeat(self) -> float:
        self._link.run(self._membership.renew())
        # tooz waits for half of it.
        return self._membership_s * 2 / 3

    # ------------------------------------------------------------- groups

    def create_group(self, group_id: bytes) -> CoordAsyncResult[None]:
        return self._result(self._membership.create(utils.to_binary(group_id)))

    def delete_group(self, group_id: bytes) -> CoordAsyncResult[None]:
        return self._result(self._membership.delete(utils.to_binary(group_id)))

    def get_groups(self) -> CoordAsyncResult[list[bytes]]:
        return self._result(self._membership.groups())

    def join_group(self, group_id: bytes, capabilities: dict[str, Any] | None = None) -> CoordAsyncResult[None]:
        return self._result(self._join(utils.to_binary(group_id), capabilities))

    async def _join(self, group: bytes, capabilities: dict[str, Any] | None) -> None:
        await self._membership.join(group, capabilities)
        self._joined_groups.add(group)

    def leave_group(self, group_id: bytes) -> CoordAsyncResult[None]:
        return self._result(self._leave(utils.to_binary(group_id)))

    async def _leave(self, group: bytes) -> None:
        await self._membership.leave(group)
        self._joined_groups.discard(group)

    def get_members(self, group_id: bytes) -> CoordAsyncResult[set[bytes]]:
        return self._result(self._membership.members(utils.to_binary(group_id)))

    def get_member_capabilities(self, group_id: bytes, member_id: bytes) -> CoordAsyncResult[dict[str, Any] | None]:
        async def capabilities() -> Any:
            info = await self._membership.info(utils.to_binary(group_id), utils.to_binary(member_id))
            return info["capabilities"]

        return self._result(capabilities())

    def get_members_with_capabilities(self, group_id: bytes) -> CoordAsyncResult[dict[bytes, dict[str, Any] | None]]:
        return self._result(self._membership.all_capabilities(utils.to_binary(group_id)))

    def get_member_info(self, group_id: bytes, member_id: bytes) -> CoordAsyncResult[dict[str, Any]]:
        return self._result(self._membership.info(utils.to_binary(group_id), utils.to_binary(member_id)))

    def update_capabilities(self, group_id: bytes, capabilities: dict[str, Any]) -> CoordAsyncResult[None]:
        return self._result(self._membership.update(utils.to_binary(group_id), capabilities))

    # ----------------------------------------------------------- leaders

    def get_leader(self, group_id: bytes) -> CoordAsyncResult[bytes]:
        return self._result(self._membership.leader(utils.to_binary(group_id)))

    @translated
    def stand_down_group_leader(self, group_id: bytes) -> bool:
        return self._link.run(self._membership.stand_down(utils.to_binary(group_id)))

    @translated
    def run_elect_coordinator(self) -> None:
        for group_id, hooks in list(self._hooks_elected_leader.items()):
            if self._link.run(self._membership.campaign(utils.to_binary(group_id))):
                hooks.run(coordination.LeaderElected(group_id, self._member_id))

    def run_watchers(self, timeout: float | None = None) -> list[Any]:
        result: list[Any] = super().run_watchers(timeout=timeout)
        self.run_elect_coordinator()
        return result

    # ------------------------------------------------------------- locks

    def get_lock(self, name: bytes) -> DssLock:
        return DssLock(self._link, name, self._names.lock(name), self._lock_s)
