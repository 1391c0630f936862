"""docs/reference/formats.md agrees with the code, and a newer version of each format is refused before it is decoded."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from dss_cache import peers, redis_store
from dss_cache.core import directory
from dss_cache.django_app import django_store
from dss_cli import backup, find_cluster
from dss_console.live import messages
from dss_locks.core import rows as lock_rows
from dss_project.runtime import state_machines
from dss_queue.core import snapshot as queue_snapshot
from dss_raft import clock_exchange, identity, state_hashes
from dss_raft.core import membership
from dss_raft.core.messages import Configuration, Entry, EntryKind, Member
from dss_raft.disk import acknowledged, rows
from dss_raft.disk.files import StoreDamaged
from dss_raft.formats import Format, WrongFormat
from dss_raft.net import control, handshake, tls_handshake
from dss_raft.replication import batch, sessions, snapshot_keeper
from dss_raft.replication import replica as replicas
from dss_raft.replication.access_tokens import AccessTokens
from dss_raft.replication.audit import AuditTrail
from dss_raft.replication.client_requests import ClientRequests
from dss_raft.replication.limits import LimitsMachine
from dss_raft.replication.replica import Replica
from dss_raft.replication.users import Users

PAGE = Path(__file__).parents[2] / "docs/reference/formats.md"
#: format -> the version that is written, and the oldest that is read
CODE = {
    "log database (`raft.sqlite3`): tables and rows": (rows.SCHEMA_VERSION, rows.SCHEMA_OLDEST),
    "`raft.acknowledged`": (acknowledged.FORMAT.version, 0),
    "entry with commands": batch.FORMAT[1:],
    "group of commands, in an entry and to the leader": batch.GROUP_FORMAT[1:],
    "entry with a configuration": membership.FORMAT[1:],
    "snapshot file, on disk and to other members": snapshot_keeper.FORMAT[1:],
    "replicated state in a snapshot": replicas.FORMAT[1:],
    "state of the sessions": sessions.FORMAT[1:],
    "state of `locks`": (lock_rows.FORMAT, 0),
    "state of `queue`": (queue_snapshot.FORMAT, queue_snapshot.FORMAT),
    "state of `cache`": (directory.FORMAT, 0),
    "state of `limits`": (LimitsMachine.format_version, 0),
    "state of `tokens`": (AccessTokens.format_version, 0),
    "state of `audit`": (AuditTrail.format_version, 0),
    "state of `users`": (Users.format_version, 0),
    "state of `requests`": (ClientRequests.format_version, 0),
    "values of the cache in a snapshot": django_store.FORMAT[1:],
    "values of the cache in Redis": (redis_store.FORMAT, 1),
    "backup file": (backup.VERSION, 1),
    "hello and all frames of a link with TLS": (tls_handshake.VERSION, tls_handshake.VERSION),
    "handshake and all frames of a link without TLS": (handshake.VERSION, handshake.VERSION),
    "channel `identity`": identity.FORMAT[1:],
    "channel `control`": control.FORMAT[1:],
    "channel `clock`": (clock_exchange.FORMAT, clock_exchange.FORMAT),
    "channel `cache`": peers.FORMAT[1:],
    "channel `live`": messages.FORMAT[1:],
    "channel `state_hash`": state_hashes.FORMAT[1:],
    "`cluster.json` of `make run`": (find_cluster.VERSION, find_cluster.VERSION),
}


def test_the_table_agrees_with_the_code() -> None:
    table = {}
    for line in re.findall(r"^\| (.*) \|$", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        name, _, written, read, _ = (cell.strip() for cell in line.split(" | "))
        table[name] = int(written), int(read.split(" to ")[0])
        assert read.split(" to ")[-1] == written, name
    assert table == CODE


def refusal(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert "start the release that wrote it" in text
    return text


def test_a_newer_entry_stops_its_node_before_it_is_decoded() -> None:
    replica = Replica("a", state_machines())
    newer = msgspec.msgpack.encode([batch.FORMAT.version + 1, "of a later release"])
    entry = Entry(1, 1, EntryKind.COMMANDS, newer)
    before = replica.snapshot()
    with pytest.raises(WrongFormat) as caught:
        replica.apply(entry)
    assert "this entry of the log has format 2, and this release reads formats up to 1" in refusal(caught.value)
    with pytest.raises(WrongFormat, match="entry 1 of the log has format 2"):
        replica.require_supported([entry])
    assert replica.snapshot() == before
    assert replica.skips(entry) == []


def test_a_newer_configuration_is_refused() -> None:
    newer = msgspec.msgpack.encode([membership.FORMAT.version + 1, []])
    with pytest.raises(WrongFormat) as caught:
        membership.decode(Entry(7, 1, EntryKind.CONFIGURATION, newer))
    assert "entry 7 of the log, a configuration, has format 2" in refusal(caught.value)


def test_configurations_with_and_without_a_version_are_read() -> None:
    configuration = Configuration((Member("a", "http://a"), Member("b", "http://b", learner=True, store="s")))
    unversioned = msgspec.msgpack.encode(configuration)
    for data in (unversioned, membership.encode(configuration)):
        assert membership.decode(Entry(7, 1, EntryKind.CONFIGURATION, data)) == configuration


def test_a_newer_state_is_refused() -> None:
    replica = Replica("a", state_machines())
    with pytest.raises(WrongFormat) as caught:
        replica.restore(msgspec.msgpack.encode([replicas.FORMAT.version + 1, {"of": "a later release"}]))
    assert "this snapshot's state has format 2" in refusal(caught.value)


@pytest.mark.parametrize("name", ["sessions", "locks", "queue", "cache", "limits", "requests"])
def test_a_newer_state_of_one_machine_is_refused_before_any_is_changed(name: str) -> None:
    replica = Replica("a", state_machines())
    state = msgspec.msgpack.decode(replica.snapshot())
    part = state[-2] if name == "sessions" else state[-1][name]
    part[:] = [part[0] + 1, "of a later release"]
    before = replica.snapshot()
    with pytest.raises(WrongFormat) as caught:
        replica.restore(msgspec.msgpack.encode(state))
    assert name in refusal(caught.value)
    assert replica.snapshot() == before


def test_a_queue_of_a_release_before_662b62d_is_refused_with_one_line() -> None:
    """Its state was an array in the state of the node. It was refused with "expected bytes, got array"."""
    replica = Replica("a", state_machines())
    machines = {"queue": [1, 1_000_000, 0, [], []]}
    old = {"applied_index": 1, "at_ms": 1, "batch_term": 1, "sessions": {}, "machines": machines}
    with pytest.raises(WrongFormat) as caught:
        replica.restore(msgspec.msgpack.encode(old))
    assert "the state of `queue`" in refusal(caught.value)


def test_a_newer_snapshot_file_is_refused() -> None:
    data = b"".join(snapshot_keeper.pieces(b"state", {}))
    with pytest.raises(WrongFormat) as caught:
        snapshot_keeper.split(data.replace(b"DSSsnap2", b"DSSsnap3", 1))
    assert "this snapshot has format 3" in refusal(caught.value)
    with pytest.raises(WrongFormat):
        snapshot_keeper.split(data.replace(b"DSSsnap2", b"DSSsnap1", 1))
    for other in (b"", b"DSSsnap2", b"DSSsnapx" + bytes(20), bytes(30)):
        with pytest.raises(StoreDamaged):
            snapshot_keeper.split(other)


@pytest.mark.parametrize("known", [control.FORMAT, identity.FORMAT, peers.FORMAT, django_store.FORMAT])
def test_a_newer_binary_is_refused(known: Format) -> None:
    assert known.of_binary(bytes([known.version, 0xC1])) == known.version
    with pytest.raises(WrongFormat) as caught:
        known.of_binary(bytes([known.version + 1, 0xC1]))
    assert known.name in refusal(caught.value)
    with pytest.raises(WrongFormat):
        known.of_binary(b"")


def test_a_newer_file_of_a_local_cluster_is_refused(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / find_cluster.FILE_NAME).write_text('{"version": 2, "nodes": "elsewhere"}')
    with pytest.raises(find_cluster.CannotChoose, match="has format 2, and this release reads formats up to 1"):
        find_cluster.running_clusters(tmp_path)
