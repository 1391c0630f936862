"""A node with users, as far as pages need one: it applies what is submitted to real state machines, without a log."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from django.contrib.auth.hashers import make_password

from dss_api.errors import Refused
from dss_api.result import Result
from dss_project.runtime import state_machines
from dss_raft.audit_log import AuditLog
from dss_raft.django_app.passwords import hashing
from dss_raft.replication.commands import Command
from dss_raft.replication.machine import Origin
from dss_raft.replication.users import CreateUser, Group, Users
from dss_raft.user_operations import SERVICE, USERS

PASSWORD = "correct horse battery"


class UserNode:
    """See the module. Its event loop runs in a thread of its own until `close`."""

    node_id = "node-1"
    unusable_reason = ""

    def __init__(self) -> None:
        self.machines = {machine.name: machine for machine in state_machines()}
        self.users = cast(Users, self.machines["users"])
        self.services: dict[str, Any] = {SERVICE: hashing(), USERS: self.users}
        self.replica = SimpleNamespace(cluster_version=5)
        self.applied_index = 0
        #: the reason why nothing can be committed
        self.refusal: Refused | None = None
        AuditLog(self)  # type: ignore[arg-type]
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def machine(self, name: str) -> Any:
        return self.machines[name]

    def status(self) -> dict[str, Any]:
        state = {"code": 2, "name": "LEADER"}
        return {"node": "node-1", "term": 3, "state": state, "leader_id": "node-1", "commit_index": 9, "members": [], "peers": []}

    async def until(self, condition: Callable[[], bool]) -> bool:
        return condition()

    async def read_index(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    async def submit(self, command: Command, **options: Any) -> Result:
        if self.refusal is not None:
            raise self.refusal
        return self.apply(command)

    def apply(self, command: Command) -> Result:
        self.applied_index += 1
        machine: Any = next(one for one in self.machines.values() if type(command) in one.commands)
        result = machine.apply(command, 1000 * self.applied_index, self.applied_index, Origin("n", 1, self.applied_index))
        return Result(result.body, result.code, self.applied_index)

    def add(self, name: str, group: Group, hasher: Callable[[str], str] = make_password) -> None:
        """Add a user with `PASSWORD`."""
        result = self.apply(CreateUser(name=name, group=group, password_hash=hasher(PASSWORD), by="test"))
        assert not result.code
