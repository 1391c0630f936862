"""Helpers of the log store's tests: factories for its arguments, a naive model, and a disk recorder."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from dss_raft.core.messages import Configuration, Entry, Member, SnapshotMeta
from dss_raft.core.ready import BootState, HardState, Persist
from dss_raft.disk.store import LogStore

CONFIGURATION = Configuration((Member("node-1", "http://127.0.0.1:8101"), Member("node-2", "http://127.0.0.1:8102")))


class Make:
    """Factories for the arguments of the store."""

    configuration = CONFIGURATION

    @staticmethod
    def entries(first: int, last: int, term: int = 1, size: int = 40) -> list[Entry]:
        return [Entry(index, term, 0, f"{term}:{index} ".encode().ljust(size, b".")) for index in range(first, last + 1)]

    @staticmethod
    def persist(
        entries: list[Entry],
        term: int = 1,
        vote: str = "node-1",
        truncate_from: int = 0,
        snapshot: SnapshotMeta | None = None,
    ) -> Persist:
        return Persist(1, HardState(term, vote), truncate_from, entries, snapshot)

    @staticmethod
    def meta(index: int, term: int, size: int = 0, crc: int = 0) -> SnapshotMeta:
        return SnapshotMeta(index, term, CONFIGURATION, size, crc)

    @staticmethod
    def store(directory: Path) -> LogStore:
        """An open store with its first configuration."""
        store = LogStore(directory, "node-1", "cluster")
        if store.is_new:
            store.bootstrap(CONFIGURATION)
        return store


class Model:
    """A naive model of what a store must hold."""

    def __init__(self) -> None:
        self.log: dict[int, Entry] = {}
        self.hard_state = HardState()
        self.snapshot = SnapshotMeta(0, 0, CONFIGURATION)

    def write(self, persist: Persist) -> None:
        self.hard_state = persist.hard_state
        if persist.truncate_from:
            self.log = {index: entry for index, entry in self.log.items() if index < persist.truncate_from}
        if persist.snapshot is not None:
            self.snapshot, self.log = persist.snapshot, {}
        self.log.update({entry.index: entry for entry in persist.entries})

    def boot_state(self) -> BootState:
        kept = [entry for index, entry in sorted(self.log.items()) if index > self.snapshot.index]
        return BootState(self.hard_state, self.snapshot, kept)


@pytest.fixture
def make() -> type[Make]:
    return Make


@pytest.fixture
def new_model() -> type[Model]:
    return Model


@pytest.fixture
def directory() -> Iterator[Path]:
    """A data directory, on a memory file system if there is one, so that hundreds of recoveries do not wait for a disk."""
    parent = "/dev/shm" if Path("/dev/shm").is_dir() else None
    path = Path(tempfile.mkdtemp(prefix="dss-store-", dir=parent))
    yield path / "node-1"
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def crash_disk() -> ModuleType:
    """The module `crash_disk.py` beside this file."""
    path = Path(__file__).with_name("crash_disk.py")
    spec = importlib.util.spec_from_file_location("dss_store_crash_disk", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
