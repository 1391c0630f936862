"""A coordinator whose session has ended gets one new session, and joins all its groups again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

pytest.importorskip("tooz", reason="tooz is not installed")

from dss_client import AsyncClient, Unavailable
from dss_tooz.membership import Membership
from dss_tooz.names import Names

LOST: dict[str, Any] = {"ok": False, "status": 409, "code": "session_lost", "detail": "it has ended"}
UNAVAILABLE: dict[str, Any] = {"ok": False, "status": 503, "code": "no_leader", "detail": "no leader is known"}
GRANT: dict[str, Any] = {"ok": True, "fencing_token": 7, "expires_in_ms": 30_000, "reentrant": False, "index": 7}
GROUPS = [b"one", b"two", b"three"]


class Sessions:
    """A node that knows the sessions which it started, until they are `lost`.

    Attributes:
        refusals: for each operation, how many of the next calls of it find no leader.
    """

    def __init__(self, node: Any) -> None:
        self.started: list[str] = []
        self.renewed: list[str] = []
        self.joined: dict[str, set[str]] = {}
        self.lost: set[str] = set()
        self.refusals: dict[str, int] = {}
        group_names = {"value": [group.decode() for group in GROUPS], "found": True, "hit": False, "version": 1, "state": "S"}
        node.answers["cache.get"] = group_names
        node.answers["cache.put"] = {"ok": True, "version": 1}
        node.answers["cache.touch"] = {"ok": True, "touched": True}
        node.answers["cache.delete"] = {"ok": True, "deleted": True}
        node.answers["locks.session_start"] = self._start
        node.answers["locks.session_renew"] = self._renew
        node.answers["locks.acquire"] = self._acquire

    def _is_refused(self, operation: str) -> bool:
        left = self.refusals.get(operation, 0)
        self.refusals[operation] = max(0, left - 1)
        return left > 0

    def _start(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._is_refused("start"):
            return UNAVAILABLE
        self.started.append(f"session-{len(self.started)}")
        return {"ok": True, "session": self.started[-1], "expires_in_ms": 30_000}

    def _renew(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["session"] in self.lost:
            return LOST
        self.renewed.append(request["session"])
        return {"ok": True, "expires_in_ms": 30_000}

    def _acquire(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["session"] in self.lost:
            return LOST
        if len(self.started) > 1 and self._is_refused("join again"):
            return UNAVAILABLE
        self.joined.setdefault(request["session"], set()).add(request["key"].split("/")[-2])
        return GRANT


@pytest.fixture
def sessions(node: Any) -> Sessions:
    return Sessions(node)


@pytest.fixture
async def membership(
    sessions: Sessions, node: Any, make_client: Callable[..., AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> Membership:
    async def store(self: Membership, key: str, info: dict[str, Any]) -> None:
        """The fake node knows no values that are bytes."""

    monkeypatch.setattr(Membership, "_store", store)
    # The pause before the second attempt would end after the deadline.
    monkeypatch.setattr("dss_client.core.pause_s", lambda count: 3600.0)
    membership = Membership(make_client(node), Names("shop"), b"member", 30)
    await membership.start()
    for group in GROUPS:
        await membership.join(group, {})
    sessions.lost.add(sessions.started[0])
    return membership


@pytest.mark.parametrize("operation", ["start", "join again"])
async def test_groups_are_joined_again_after_an_attempt_that_failed(
    membership: Membership, sessions: Sessions, operation: str
) -> None:
    sessions.refusals[operation] = 10**6
    with pytest.raises(Unavailable):
        await membership.renew()
    sessions.refusals[operation] = 0
    await membership.renew()
    assert sessions.joined[sessions.started[-1]] == {"one", "two", "three"}
    await membership.renew()
    assert len(sessions.started) == 2


async def test_a_group_that_was_left_meanwhile_is_not_joined_again(membership: Membership, sessions: Sessions, node: Any) -> None:
    node.answers["locks.status"] = {"ok": True, "holders": [{"client": "another", "fencing_token": 8}]}
    sessions.refusals["start"] = 10**6
    with pytest.raises(Unavailable):
        await membership.renew()
    sessions.refusals["start"] = 0
    await membership.leave(b"two")
    await membership.renew()
    assert sessions.joined[sessions.started[-1]] == {"one", "three"}


@pytest.mark.parametrize(
    "work", [lambda member: member.renew(), lambda member: member.campaign(b"one")], ids=["heartbeat", "election"]
)
async def test_two_that_miss_the_session_at_once_start_one(
    membership: Membership, sessions: Sessions, work: Callable[[Membership], Awaitable[Any]]
) -> None:
    await asyncio.gather(membership.renew(), work(membership))
    assert len(sessions.started) == 2
    await membership.renew()
    assert set(sessions.joined) <= {"session-0", sessions.renewed[-1]}
