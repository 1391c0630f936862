"""The canonical form of the replicated state, and its hashes. Pure: no I/O, clock or randomness.

All nodes have the same state at the same index. A leader proposes `HashState` at intervals, and every node hashes its state right after
that entry. The nodes compare their hashes (see `state_hashes`), and so find states that differ because of a bug, damaged memory, or files
that were changed by hand.

The canonical form of a part of the state is what `StateMachine.snapshot` returns, encoded in msgpack in the order in which it is kept. A
snapshot that is one binary is used as it is. The form is the same whether a node has applied all entries or was restored from a snapshot:
the fuzzer of commands compares these bytes, order included. Data derived from the state, such as heaps and accounts, are not in it.

A form belongs to a cluster version and never changes, because nodes of two releases compare their hashes. A release that changes the format
of a machine's state adds the new form to `FORMS`, and hashes the old one until the cluster has the next version.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import msgspec

from dss_raft.replication.replica import Replica

#: first cluster version that uses the form -> part -> version of its format
_FORM_2 = {"replica": 1, "sessions": 1, "locks": 2, "queue": 2, "cache": 1, "limits": 1}
_FORM_3 = {**_FORM_2, "requests": 1}
_FORM_4 = {**_FORM_3, "tokens": 1, "audit": 1}
FORMS: dict[int, dict[str, int]] = {2: _FORM_2, 3: _FORM_3, 4: _FORM_4, 5: {**_FORM_4, "users": 1}}

Hashes = dict[str, bytes]

_encode = msgspec.msgpack.Encoder().encode


def form(cluster_version: int) -> dict[str, int]:
    """The versions of the formats that are hashed in this cluster version."""
    return FORMS[max(version for version in FORMS if version <= cluster_version)]


def state_hashes(replica: Replica) -> Hashes:
    """Part of the state -> SHA-256 of its canonical form: the sessions, each machine, and "replica" for what is left."""
    return {part: sha256(_canonical(state)).digest() for part, state in parts(replica)}


def differing_parts(first: Hashes, second: Hashes) -> list[str]:
    """The parts that do not have the same hash, sorted."""
    return sorted(part for part in first.keys() | second.keys() if first.get(part) != second.get(part))


def parts(replica: Replica) -> Iterator[tuple[str, Any]]:
    """The parts of the state: name and state, one at a time, so that only one of them is in memory a second time."""
    yield "replica", (replica.at_ms, replica.batch_term, replica.cluster_version, replica.skipped)
    yield "sessions", replica.sessions.snapshot()
    for name, machine in replica.machines.items():
        # A machine without a command in this version is empty, and older releases do not have it.
        if any(command.since <= replica.cluster_version for command in machine.commands):
            yield name, machine.snapshot()


def _canonical(state: Any) -> bytes:
    return state if isinstance(state, bytes) else _encode(state)
