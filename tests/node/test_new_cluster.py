"""Data directories of new clusters: from a backup, from a survivor, after an interruption, and refused in one line."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from dss_cache.backing_store import Stored
from dss_cache.core.commands import WrittenBack
from dss_cli.backup import BackupInvalid, BackupMember, BackupWriter, Header
from dss_dev.replica_log import START_MS, ReplicaLog
from dss_project import new_cluster
from dss_project.config import NodeConfig
from dss_project.new_cluster import Recovery
from dss_raft.core.messages import Configuration, Entry, EntryKind, Member, SnapshotMeta
from dss_raft.core.ready import HardState, Persist
from dss_raft.disk.files import Files, StoreError, StoreRefused
from dss_raft.disk.store import LogStore
from dss_raft.replication import founding
from dss_raft.replication.batch import encode_batch, encode_command
from dss_raft.replication.commands import SetClusterVersion
from dss_raft.replication.founding import INDEX_MAX, INDEX_RAISE_MIN, CannotFound
from dss_raft.replication.snapshot_keeper import pieces, split
from dss_raft.versions import UnsupportedVersion

MEMBERS = tuple(Member(f"node-{number}", f"http://127.0.0.1:{8100 + number}") for number in (1, 2, 3))


# ------------------------------------------------------------------- restoring


def config_of(directory: Path, cluster: str = "dss-2", node: str = "node-1", **settings: str) -> NodeConfig:
    return NodeConfig.from_env(
        {
            "NODE_ID": node,
            "RPC_PORT": f"810{node[-1]}",
            "DSS_DATA_DIR": str(directory / node),
            "DSS_CLUSTER_ID": cluster,
            "REDIS_URL": "redis://127.0.0.1:1/0",
            **settings,
        }
    )


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """A file with a lock, a message and a value."""
    old = ReplicaLog()
    old.numbers("a")
    return write_backup(old, tmp_path / "dss.backup")


def write_backup(old: ReplicaLog, path: Path) -> Path:
    body = b"".join(pieces(old.replica.snapshot(), {"cache-memory": []}))
    header = Header(
        cluster="dss",
        node="node-1",
        index=old.replica.applied_index,
        term=1,
        members=tuple(BackupMember(member.id, member.url) for member in MEMBERS),
        saved_at_ms=START_MS,
        bytes=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
    )
    with BackupWriter(path, header) as writer:
        writer.write(body)
        writer.finish()
    return path


def store_of(config: NodeConfig) -> LogStore:
    return LogStore(Path(config.data_dir) / "raft", config.node_id, config.cluster_id)


def test_a_restored_directory_begins_at_the_raised_index(backup: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path)
    header, index = new_cluster.restore(backup, config, [], None)
    assert index >= header.index + INDEX_RAISE_MIN
    store = store_of(config)
    state = store.load()
    assert (state.snapshot.index, state.snapshot.term, state.entries) == (index, 1, [])
    assert state.snapshot.configuration == Configuration((Member("node-1", "http://127.0.0.1:8101"),))
    assert state.hard_state == HardState(1, "")
    store.close()


def test_all_members_begin_with_the_same_snapshot(backup: Path, tmp_path: Path) -> None:
    snapshots = []
    for member in MEMBERS:
        config = config_of(tmp_path, node=member.id)
        new_cluster.restore(backup, config, MEMBERS[::-1], 2 * INDEX_RAISE_MIN)
        store = store_of(config)
        snapshots.append(store.load().snapshot)
        store.close()
    assert snapshots[0].configuration == Configuration(MEMBERS)
    assert snapshots[0] == snapshots[1] == snapshots[2]


def refusal(action: Any) -> str:
    with pytest.raises((StoreError, BackupInvalid)) as refused:
        action()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_restore_that_is_refused_leaves_nothing(backup: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path)

    def restore(config: NodeConfig = config, members: tuple[Member, ...] = (), raise_by: int | None = None) -> str:
        return refusal(lambda: new_cluster.restore(backup, config, members, raise_by))

    assert "for example to dss-2," in restore(config_of(tmp_path, "dss"))
    assert "node-1, is not among the members" in restore(members=MEMBERS[1:])
    assert "--raise-index-by" in restore(members=MEMBERS)
    for wrong in (0, INDEX_RAISE_MIN - 1, INDEX_MAX, -1):
        assert f"at least {INDEX_RAISE_MIN}" in restore(raise_by=wrong)
    whole = backup.read_bytes()
    backup.write_bytes(whole[:-1])
    assert "cut short" in restore()
    backup.write_bytes(whole)
    assert not (Path(config.data_dir) / "raft").exists()
    new_cluster.restore(backup, config, [], None)
    assert "is not empty (raft)" in restore()


OLDER_RELEASE = {"DSS_CLUSTER_VERSION_MAX": "1"}


def test_a_new_cluster_goes_on_at_the_cluster_version_of_the_backup(tmp_path: Path) -> None:
    old = ReplicaLog()
    old.numbers("a")
    old.replica._use_version(2)
    saved = write_backup(old, tmp_path / "dss.backup")
    older = config_of(tmp_path, **OLDER_RELEASE)
    with pytest.raises(UnsupportedVersion, match="the cluster's version is 2; DSS_CLUSTER_VERSION_MAX is 1"):
        new_cluster.restore(saved, older, [], None)
    assert not (Path(older.data_dir) / "raft").exists()
    config = config_of(tmp_path)
    new_cluster.restore(saved, config, [], None)
    store = store_of(config)
    state, _ = split(store.read_snapshot(store.load().snapshot))
    store.close()
    old.replica._use_version(1)
    old.replica.restore(state)
    assert old.replica.cluster_version == 2


# ------------------------------------------------------------------- recovering


#: of the survivor's log: a session is opened, and four calls
LAST_INDEX = 5


@pytest.fixture
def survivor(tmp_path: Path) -> NodeConfig:
    """The settings of a survivor for its new cluster. Its log has a snapshot and entries that may or may not be committed."""
    config = config_of(tmp_path)
    old = ReplicaLog()
    old.acquire("k", "alice", ttl_ms=0)
    store = LogStore(Path(config.data_dir) / "raft", "node-1", "dss")
    store.bootstrap(Configuration(MEMBERS))
    store.write(Persist(1, HardState(1, ""), 0, old.entries))
    begun = len(old.entries)
    store.save_snapshot(
        SnapshotMeta(begun, 1, Configuration(MEMBERS)), b"".join(pieces(old.replica.snapshot(), {"cache-memory": [b"saved"]})), 0
    )
    old.send(WrittenBack(items=[("clean", old.put("clean", b"2"))]))
    old.put("dirty")
    store.write(Persist(2, HardState(4, "node-2"), 0, old.entries[begun:]))
    store.close()
    return config


def test_a_survivor_keeps_its_whole_log(survivor: NodeConfig) -> None:
    recovery = Recovery(survivor)
    assert (recovery.survivor.cluster_id, recovery.survivor.last_index, recovery.survivor.last_term) == ("dss", LAST_INDEX, 1)
    assert recovery.replica.applied_index == LAST_INDEX
    index, previous = recovery.carry_out(None)
    assert previous == Path(survivor.data_dir) / "raft.before-recovery"
    store = store_of(survivor)
    state = store.load()
    store.close()
    assert state.snapshot.index == index > INDEX_RAISE_MIN
    assert state.hard_state == HardState(4, ""), "no term of the old log begins again"
    assert [member.id for member in state.snapshot.configuration.members] == ["node-1"]
    old = LogStore(previous, "node-1", "dss")
    assert old.last_index == LAST_INDEX
    old.close()
    assert "is left from an earlier recovery" in refusal(lambda: Recovery(config_again(survivor)))


def config_again(config: NodeConfig) -> NodeConfig:
    return config_of(Path(config.data_dir).parent, "dss-3")


class OwnStore:
    """A backing store of this node alone, that remembers how it was used."""

    name, is_shared = "django", False

    def __init__(self) -> None:
        self.used: list[object] = []

    def keep(self, item: Stored) -> None:
        self.used.append((item.key, item.value))

    async def load(self, data: memoryview) -> None:
        self.used.append(bytes(data))

    async def flush(self) -> None:
        self.used.append("flushed")

    async def dump(self) -> list[bytes]:
        return [b"dump", b"ed"]

    async def close(self) -> None:
        self.used.append("closed")


def test_clean_values_of_the_log_reach_the_own_backing_store(survivor: NodeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    own = OwnStore()
    monkeypatch.setattr(new_cluster, "backing_store", lambda config: own)
    Recovery(survivor).carry_out(None)
    assert own.used == [b"saved", ("clean", b"2"), ("dirty", b"1"), "flushed", "closed"]
    store = store_of(survivor)
    assert store.read_snapshot(store.load().snapshot).endswith(b"dumped")
    store.close()


def test_a_recovery_that_is_refused_changes_nothing(survivor: NodeConfig, tmp_path: Path) -> None:
    assert "for example to dss-2," in refusal(lambda: Recovery(config_of(tmp_path, "dss")))
    assert "there is no log" in refusal(lambda: Recovery(config_of(tmp_path / "elsewhere")))
    running = LogStore(Path(survivor.data_dir) / "raft", "node-1", "dss")
    assert "another running process" in refusal(lambda: Recovery(survivor))
    running.close()
    for _ in range(2):
        recovery = Recovery(survivor)
        recovery.close()
    with pytest.raises(CannotFound, match="at least"):
        Recovery(survivor).carry_out(1)
    store = LogStore(Path(survivor.data_dir) / "raft", "node-1", "dss")
    assert store.last_index == LAST_INDEX
    store.close()


def test_an_older_release_does_not_recover_a_survivor_that_it_cannot_read(survivor: NodeConfig, tmp_path: Path) -> None:
    store = LogStore(Path(survivor.data_dir) / "raft", "node-1", "dss")
    data = encode_batch(START_MS, [encode_command(SetClusterVersion(version=2))], [])
    store.write(Persist(3, HardState(4, ""), 0, [Entry(LAST_INDEX + 1, 4, EntryKind.COMMANDS, data)]))
    store.close()
    with pytest.raises(UnsupportedVersion):
        Recovery(config_of(tmp_path, **OLDER_RELEASE))
    recovery = Recovery(survivor)
    assert recovery.replica.cluster_version == 2
    recovery.close()


def test_a_recovery_that_was_interrupted_is_repeated(survivor: NodeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, renamed = Files.rename, []

    def crash_at_the_second(files: Files, source: Path, target: Path) -> None:
        if target.name in ("raft", "raft.before-recovery"):
            renamed.append(target.name)
            if len(renamed) == 2:
                raise KeyboardInterrupt
        rename(files, source, target)

    monkeypatch.setattr(Files, "rename", crash_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        Recovery(survivor).carry_out(None)
    directory = Path(survivor.data_dir) / "raft"
    assert not directory.exists()
    with pytest.raises(StoreRefused, match="was interrupted"):
        founding.refuse_unfinished(directory)
    monkeypatch.undo()
    Recovery(survivor).carry_out(None)
    founding.refuse_unfinished(directory)
    store_of(survivor).close()
