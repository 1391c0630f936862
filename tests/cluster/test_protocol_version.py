"""Nodes with different commands must refuse each other: a command that one proposes would stop the others."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from dss_cache.core.directory import Directory
from dss_locks.core.table import LockTable
from dss_queue.core.broker import Broker
from dss_raft.net.handshake import VERSION
from dss_raft.replication.batch import LEADER_COMMANDS, SESSION_COMMANDS
from dss_raft.replication.limits import LimitsMachine

#: the version of the protocol, and what the commands were when it got its number
KNOWN = (10, "722e7254d1fe509a")


def test_the_version_of_the_protocol_grows_with_the_commands():
    of_machines = [command for machine in (LockTable, Broker, Directory, LimitsMachine) for command in machine.commands]
    types = [*of_machines, *SESSION_COMMANDS, *LEADER_COMMANDS]
    schemas, components = msgspec.json.schema_components(types)
    plain = msgspec.json.encode(_without_texts([schemas, components]), order="deterministic")
    fingerprint = hashlib.sha256(plain).hexdigest()[:16]
    assert (VERSION, fingerprint) == KNOWN, "the commands have changed: raise VERSION in handshake.py, and note both here"


def _without_texts(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {name: _without_texts(part) for name, part in schema.items() if name not in ("description", "title")}
    return [_without_texts(part) for part in schema] if isinstance(schema, list | tuple) else schema
