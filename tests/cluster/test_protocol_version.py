"""The commands of a released cluster version never change: nodes of other releases apply them, too. See `dss_raft.versions`."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from dss_cache.core.directory import Directory
from dss_locks.core.table import LockTable
from dss_queue.core.broker import Broker
from dss_raft.replication.access_tokens import AccessTokens
from dss_raft.replication.audit import AuditTrail
from dss_raft.replication.batch import LEADER_COMMANDS, SESSION_COMMANDS
from dss_raft.replication.client_requests import ClientRequests
from dss_raft.replication.limits import LimitsMachine
from dss_raft.replication.users import Users
from dss_raft.versions import LATEST

#: cluster version -> fingerprint of its commands. Only the last one may change, and only before it is released.
KNOWN = {1: "fe32aef8f31ddb6e", 2: "d809510aeedf8a78", 3: "2802481783b16710", 4: "99462be45066c7b0", 5: "3d47bec57abb800f"}


def test_the_commands_of_a_cluster_version_stay_as_they_were_released():
    found = {version: fingerprint(version) for version in range(1, LATEST + 1)}
    advice = "give a new or changed command a tag of its own and `since` = the version that is not released yet"
    assert found == KNOWN, f"the commands have changed: {advice}"


def fingerprint(version: int) -> str:
    """Of all commands that a release whose `LATEST` is `version` knows."""
    of_machines = [
        command
        for machine in (LockTable, Broker, Directory, AccessTokens, AuditTrail, Users, LimitsMachine, ClientRequests)
        for command in machine.commands
    ]
    types = [each for each in (*of_machines, *SESSION_COMMANDS, *LEADER_COMMANDS) if each.since <= version]
    schemas, components = msgspec.json.schema_components(types)
    plain = msgspec.json.encode(_without_texts([schemas, components]), order="deterministic")
    return hashlib.sha256(plain).hexdigest()[:16]


def _without_texts(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {name: _without_texts(part) for name, part in schema.items() if name not in ("description", "title")}
    return [_without_texts(part) for part in schema] if isinstance(schema, list | tuple) else schema
