"""What the store keeps: the log, term and vote, the incarnation, and the owner of the directory."""

from __future__ import annotations

import sqlite3
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from dss_raft.core.messages import Configuration
from dss_raft.core.ready import BootState, HardState
from dss_raft.disk.store import LogStore, StoreError, StoreFailed, StoreRefused


def test_a_new_store_has_the_configuration_it_was_given(directory, make):
    store = LogStore(directory, "node-1", "cluster")
    assert store.is_new
    with pytest.raises(StoreError, match="bootstrap"):
        store.load()
    store.bootstrap(make.configuration)
    assert not store.is_new
    assert store.load() == BootState(HardState(), make.meta(0, 0), [])
    with pytest.raises(StoreError, match="already"):
        store.bootstrap(Configuration(()))
    store.close()


def test_the_incarnation_grows_with_each_start(directory, make):
    for expected in (1, 2, 3):
        store = make.store(directory)
        assert store.count_start() == expected
        store.close()


@pytest.mark.parametrize("stopped_cleanly", [True, False])
def test_an_overwritten_suffix_is_gone(directory, make, stopped_cleanly):
    store = make.store(directory)
    store.write(make.persist(make.entries(1, 5, term=1), term=1))
    store.write(make.persist(make.entries(3, 4, term=2), term=2, vote="", truncate_from=3))
    if stopped_cleanly:
        store.close()
    found = reopen(store, directory)
    assert found.entries == [*make.entries(1, 2, term=1), *make.entries(3, 4, term=2)]
    assert found.hard_state == HardState(2, "")


@pytest.mark.parametrize(
    ("entries", "term", "truncate_from", "words"),
    [
        ((5, 6), 1, 0, "do not follow index 3"),
        ((3, 4), 1, 0, "do not follow index 3"),
        ((2, 2), 0, 2, "term 0 after term 1"),
    ],
)
def test_a_write_that_would_break_the_log_never_reaches_the_disk(directory, make, entries, term, truncate_from, words):
    store = make.store(directory)
    store.write(make.persist(make.entries(1, 3)))
    with pytest.raises(StoreFailed, match=words):
        store.write(make.persist(make.entries(*entries), term=term, truncate_from=truncate_from))
    with pytest.raises(StoreFailed, match="stopped earlier"):
        store.write(make.persist(make.entries(4, 4)))
    assert reopen(store, directory).entries == make.entries(1, 3)


def test_the_directory_of_another_node_or_cluster_is_refused(directory, make):
    make.store(directory).close()
    with pytest.raises(StoreRefused, match="belongs to node 'node-1', not to 'node-2'"):
        LogStore(directory, "node-2", "cluster")
    with pytest.raises(StoreRefused, match="belongs to cluster 'cluster', not to 'other'"):
        LogStore(directory, "node-1", "other")
    make.store(directory).close()


def test_a_directory_in_use_is_refused_until_its_process_has_died(directory, make):
    make.store(directory).close()
    script = "import sys, pathlib, dss_raft.disk.store as s; s.LogStore(pathlib.Path(sys.argv[1]), 'node-1', 'cluster'); print(); input()"
    other = subprocess.Popen([sys.executable, "-c", script, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    with pytest.raises(StoreRefused, match=f"pid {other.pid}"):
        make.store(directory)
    other.kill()
    other.communicate()
    make.store(directory).close()


def test_the_database_is_never_open_in_two_processes(directory, make):
    store = make.store(directory)
    with sqlite3.connect(directory / "raft.sqlite3", timeout=0) as shell:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            shell.execute("SELECT * FROM entries")
        store.close()
        shell.execute("PRAGMA locking_mode=exclusive")
        shell.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreRefused, match="another process has"):
            make.store(directory)
    shell.close()
    make.store(directory).close()


def test_a_directory_that_cannot_be_used_gives_a_clear_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreFailed, match="cannot open the log store"):
        LogStore(tmp_path / "file" / "raft", "node-1")


def reopen(store: LogStore, directory) -> BootState:
    """The state that the next process finds, whether or not this one has closed the store."""
    store.close()
    again = LogStore(directory, "node-1", "cluster")
    try:
        return again.load()
    finally:
        again.close()


def test_any_sequence_of_writes_reads_back_like_the_naive_model(directory, make, new_model):
    class Writes(RuleBasedStateMachine):
        count = 0

        @initialize()
        def begin(self) -> None:
            Writes.count += 1
            self.directory = directory.with_name(f"run-{Writes.count}")
            self.store, self.model, self.term = make.store(self.directory), new_model(), 1

        @property
        def last(self) -> int:
            return max(self.model.log, default=self.model.snapshot.index)

        @rule(count=st.integers(0, 5), size=st.sampled_from([0, 1, 200, 9000]), new_term=st.booleans())
        def append(self, count: int, size: int, new_term: bool) -> None:
            self.term += new_term
            self.write(make.persist(make.entries(self.last + 1, self.last + count, self.term, size), self.term))

        @rule(back=st.integers(1, 4), count=st.integers(0, 3))
        @precondition(lambda self: self.last > self.model.snapshot.index)
        def overwrite(self, back: int, count: int) -> None:
            self.term += 1
            start = max(self.last - back + 1, self.model.snapshot.index + 1)
            entries = make.entries(start, start + count - 1, self.term)
            self.write(make.persist(entries, self.term, vote="", truncate_from=start))

        @rule(behind=st.integers(0, 3), keep=st.integers(0, 3), data=st.binary(max_size=100))
        @precondition(lambda self: self.last > self.model.snapshot.index)
        def snapshot(self, behind: int, keep: int, data: bytes) -> None:
            index = max(self.last - behind, self.model.snapshot.index + 1)
            self.model.snapshot = self.store.save_snapshot(make.meta(index, self.term), data, keep)
            assert self.store.read_snapshot(self.model.snapshot) == data

        @rule()
        def restart(self) -> None:
            self.store.close()
            self.store = LogStore(self.directory, "node-1", "cluster")
            assert self.store.load() == self.model.boot_state()

        @invariant()
        def never_new(self) -> None:
            assert not self.store.is_new

        def write(self, persist) -> None:
            self.store.write(persist)
            self.model.write(persist)

        def teardown(self) -> None:
            self.restart()
            self.store.close()

    run_state_machine_as_test(
        Writes,
        settings=settings(max_examples=30, stateful_step_count=20, suppress_health_check=list(HealthCheck)),
    )
