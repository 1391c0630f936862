"""Data directories of earlier releases load, and nothing in them is lost. The README says how the archives were made."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dss_locks.core.commands import Acquire
from dss_project.runtime import state_machines
from dss_queue.core.commands import Consume, NewMessage, Publish
from dss_raft.core.messages import Entry, EntryKind
from dss_raft.disk.store import LogStore
from dss_raft.disk.stored_members import stored_members
from dss_raft.replication.batch import encode_batch, encode_command, encode_group
from dss_raft.replication.commands import Command, OpenSession
from dss_raft.replication.replica import Replica
from dss_raft.replication.snapshot_keeper import split
from dss_raft.replication.state_hash import state_hashes

ARCHIVES = sorted(Path(__file__).parent.glob("*.tar.xz"))
#: a node that is not in the archives
CALLER = "node-9"


class Loaded(NamedTuple):
    replica: Replica
    #: what the clients had been told
    said: dict[str, Any]
    #: entries after the snapshot
    entries: int


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.removesuffix(".tar.xz"))
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(request.param) as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def loaded(directory: Path) -> Loaded:
    """The state at the end of the log, as a start builds it."""
    members = stored_members(directory)
    assert members is not None
    node_id = members.node_id
    store = LogStore(directory / "raft", node_id, "dss")
    boot_state = store.load()
    replica = Replica(node_id, state_machines())
    if boot_state.snapshot.index:
        replica.restore(split(store.read_snapshot(boot_state.snapshot))[0])
    store.close()
    replica.require_supported(boot_state.entries)
    for entry in boot_state.entries:
        replica.apply(entry)
    assert not replica.take_faults()
    return Loaded(replica, json.loads((directory / "said.json").read_text()), len(boot_state.entries))


def call(replica: Replica, *commands: Command) -> list[Any]:
    """What this release answers to the calls of a node that is new."""
    replica.node_id = CALLER
    replica.take_outcomes()
    encoded = [encode_command(command) for command in (OpenSession(replaces=0), *commands)]
    data = encode_batch(replica.at_ms + 1, [], [encode_group(CALLER, 1, 1, [], encoded)])
    replica.apply(Entry(replica.applied_index + 1, replica.batch_term, EntryKind.COMMANDS, data))
    assert not replica.take_faults()
    return [result.body for _, seq, result in replica.take_outcomes() if seq > 1]


def test_there_is_an_archive_with_a_log_alone_and_one_with_a_snapshot() -> None:
    assert {"662b62d-log.tar.xz", "662b62d-snapshot.tar.xz", "662b62d-member.tar.xz"} <= {path.name for path in ARCHIVES}


def test_entries_follow_the_snapshot(loaded: Loaded, directory: Path) -> None:
    has_snapshot = any((directory / "raft/snapshots").glob("*.snap"))
    assert 5 < loaded.entries < 20 if has_snapshot else loaded.entries > 20
    assert len(loaded.replica.sessions.sessions) in (1, 3)


def test_locks_are_held_under_their_tokens_and_waiters_wait(loaded: Loaded) -> None:
    replica, said = loaded.replica, loaded.said
    table = replica.machines["locks"]
    held = [("held", "alice", said["held"]), ("by-session", "carol", said["by_session"])]
    held += [("shared", client, answer) for client, answer in zip(("alice", "bob"), said["shared"], strict=True)]
    held += [(key, "dave", said["several"]) for key in ("one", "two")]
    for key, client, answer in held:
        assert table.holds(key, client, answer["fencing_token"]), key
    (refused,) = call(replica, Acquire(key="held", client="grace"))
    assert refused["holders"][0]["client"] == "alice"
    assert [waiter.client for waiter in table.waiters.all()] == ["erin", "frank"]
    assert table.release("held", "alice", replica.at_ms, replica.applied_index)
    assert table.holds("held", "erin", replica.applied_index), "the first waiter gets it"


def test_messages_are_delivered_once_and_dead_letters_are_kept(loaded: Loaded) -> None:
    replica, said = loaded.replica, loaded.said
    topic = replica.machines["queue"].topics["orders"]
    message_ids = [message["msg_id"] for message in said["published"]["messages"]]
    again = NewMessage(topic="orders", value=b"6", key="", partition=0, delay_ms=0, dedup_id="once", headers=b"")
    workers = Consume(topic="orders", group="workers", visibility_ms=1000, max_messages=10, timeout_ms=0)
    published, consumed = call(replica, Publish(messages=[again]), workers)
    assert (published["messages"][0]["msg_id"], published["messages"][0]["duplicate"]) == (message_ids[5], True)
    # The first is acknowledged, the second in flight, the third behind it with the same key, the fifth delayed.
    assert [message["msg_id"] for message in consumed["messages"]] == [message_ids[3], message_ids[5]]
    assert [dead.number for dead in topic.groups["strict"].dead.values()] != []
    assert topic.messages.settings.max_attempts == 2


def test_values_are_dirty_or_written_back(loaded: Loaded) -> None:
    directory, said = loaded.replica.machines["cache"], loaded.said
    for key, is_dirty in (("clean", False), ("counter", False), ("dirty", True)):
        record = directory.records[key]
        assert (record.version, record.dirty) == (said[key]["version"], is_dirty), key
    assert directory.records["dirty"].value == b'"not written back"'


def test_the_state_is_the_same_after_it_was_stored_by_this_release(loaded: Loaded) -> None:
    copy = Replica(loaded.replica.node_id, state_machines())
    copy.restore(loaded.replica.snapshot())
    assert copy.snapshot() == loaded.replica.snapshot()


def test_the_canonical_form_of_a_state_does_not_change(tmp_path: Path) -> None:
    """Nodes of two releases compare these hashes. If this fails, read `dss_raft/replication/state_hash.py`."""
    with tarfile.open(ARCHIVES[0].with_name("662b62d-log.tar.xz")) as tar:
        tar.extractall(tmp_path, filter="data")
    store = LogStore(tmp_path / "raft", "node-1", "dss")
    replica = Replica("node-1", state_machines())
    for entry in store.load().entries:
        replica.apply(entry)
    store.close()
    assert {part: digest.hex()[:16] for part, digest in state_hashes(replica).items()} == {
        "replica": "f852b949917ac67d",
        "sessions": "489277bb84ae00e1",
        "locks": "9d1730ecfe5b7be7",
        "queue": "134b339790d62082",
        "cache": "fab70c91ddc60e05",
        "limits": "1306ee9c49de48ff",
    }
