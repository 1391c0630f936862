"""Starts a new cluster from a backup, or from the data directory of the last member of a lost majority. The node must not run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from django.core.management import call_command

from dss_cache.backing_store import Stored
from dss_cache.core.events import Written
from dss_cache.service import CacheService
from dss_cli import backup
from dss_project.config import NodeConfig
from dss_project.runtime import backing_store, state_machines
from dss_raft.core.messages import Configuration, Member
from dss_raft.replication import founding
from dss_raft.replication.clocks import wall_clock_ms
from dss_raft.replication.founding import CannotFound, Survivor
from dss_raft.replication.replica import ApplyFailed, Replica
from dss_raft.replication.snapshot_keeper import split
from dss_raft.versions import MIN, Supported


def store_directory(config: NodeConfig) -> Path:
    """Where the node has its log."""
    return Path(config.data_dir) / "raft"


def restore(file: Path, config: NodeConfig, members: Sequence[Member], raise_by: int | None) -> tuple[backup.Header, int]:
    """Fill this node's empty data directory from a backup. Returns the file's header, and the index at which the cluster begins.

    Args:
        members: of the new cluster; empty for this node alone.
        raise_by: by how much to raise the index; None: computed from the age of the state.

    Raises:
        BackupInvalid: the file cannot be used; the text is one line.
        StoreError: the directory cannot be used; the text is one line.
        UnsupportedVersion: the state is of a cluster version that this node does not support.
        OSError: the disk failed.
    """
    header, body = backup.read(file)
    founding.require_new_name(header.cluster, config.cluster_id)
    _require_empty(Path(config.data_dir))
    replica = _replica(config)
    state, parts = split(body)
    replica.restore(state)
    members = tuple(sorted(members or [Member(config.node_id, config.url)], key=lambda member: member.id))
    if config.node_id not in [member.id for member in members]:
        raise CannotFound(f"this node, {config.node_id}, is not among the members")
    if raise_by is None:
        raise_by = founding.index_raise(replica.at_ms, wall_clock_ms())
        if len(members) > 1:
            raise CannotFound(
                "all members of the new cluster must begin at the same index: give --raise-index-by on each of them, with the same "
                f"number, for example {raise_by}"
            )
    directory = store_directory(config)
    Path(config.data_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
    index = founding.found(
        directory,
        config.node_id,
        config.cluster_id,
        Configuration(members),
        replica,
        header.term,
        raise_by,
        {name: [bytes(part)] for name, part in parts.items()},
    )
    founding.put_in_place(directory)
    return header, index


def _replica(config: NodeConfig) -> Replica:
    return Replica(config.node_id, state_machines(), Supported(MIN, config.cluster_version_max))


def _require_empty(data_dir: Path) -> None:
    """Raises:
    CannotFound: a node has used this directory.
    """
    used = sorted(path.name for path in data_dir.glob("*") if path.name.startswith("raft") or ".sqlite3" in path.name)
    if used:
        raise CannotFound(f"{data_dir} is not empty ({', '.join(used)}): restore into a new directory (DSS_DATA_DIR)")


class Recovery:
    """The last member of a lost majority, before it becomes the only member of a new cluster.

    Raises:
        StoreError: the directory cannot be used; the text is one line.
    """

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._directory = store_directory(config)
        founding.undo_unfinished(self._directory)
        self.survivor = Survivor(self._directory, config.node_id)
        try:
            founding.require_new_name(self.survivor.cluster_id, config.cluster_id)
            self.replica = _replica(config)
            self._written = self._replay()
        except BaseException:
            self.survivor.close()
            raise

    def _replay(self) -> dict[str, Stored]:
        """Apply the whole log. Returns the last value of each key that was written in it."""
        written = {}
        try:
            for events in self.survivor.replay(self.replica):
                for event in events:
                    if isinstance(event, Written):
                        written[event.key] = Stored(event.key, event.version, event.value)
        except ApplyFailed as error:
            raise CannotFound(f"the log cannot be applied: {error}; see docs/how-to/skip-an-entry.md") from None
        return written

    def carry_out(self, raise_by: int | None) -> tuple[int, Path | None]:
        """Replace the store. Returns the index at which the new cluster begins, and where the previous store is now."""
        config, survivor = self._config, self.survivor
        try:
            parts = {CacheService.name: asyncio.run(self._clean_values(survivor.parts().get(CacheService.name)))}
        finally:
            survivor.close()
        index = founding.found(
            self._directory,
            config.node_id,
            config.cluster_id,
            Configuration((Member(config.node_id, config.url),)),
            self.replica,
            max(survivor.hard_state.term, survivor.last_term),
            founding.index_raise(self.replica.at_ms, wall_clock_ms()) if raise_by is None else raise_by,
            parts,
        )
        return index, founding.put_in_place(self._directory)

    async def _clean_values(self, part: memoryview | None) -> list[bytes]:
        """Bring the cache's own backing store to the end of the log, as a running node does. Returns its content for the snapshot."""
        store = backing_store(self._config)
        try:
            if store.is_shared:
                return []
            if part is not None:
                await store.load(part)
            for item in self._written.values():
                store.keep(item)
            await store.flush()
            return list(await store.dump())
        finally:
            await store.close()

    def migrate(self) -> None:
        """Bring this node's database up to date, as a start does."""
        call_command("migrate", verbosity=0, interactive=False)

    def close(self) -> None:
        """Leave everything as it is."""
        self.survivor.close()
