"""A damaged file is refused, or does not matter: a start returns exactly what was acknowledged, or nothing.

Each test damages copies of a real data directory, of a node that was stopped or killed (then its last writes are in the
write-ahead log).
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dss_raft.core.ready import BootState
from dss_raft.disk.acknowledged import FORMAT
from dss_raft.disk.rows import SCHEMA_VERSION
from dss_raft.disk.store import LogStore, StoreDamaged, StoreError, StoreRefused

DATABASE = "raft.sqlite3"
WAL = "raft.sqlite3-wal"


@pytest.fixture
def life(directory, make, new_model) -> Iterator[tuple[LogStore, BootState]]:
    """A store with snapshots, a checkpointed part and a part in the write-ahead log, and its content."""
    model, store = new_model(), make.store(directory)
    store.count_start()
    for persist in (
        make.persist(make.entries(1, 40)),
        make.persist(make.entries(38, 60, term=2), term=2, truncate_from=38),
    ):
        store.write(persist)
        model.write(persist)
    model.snapshot = store.save_snapshot(make.meta(30, 1), b"state " * 50, 5)
    store.close()
    store = make.store(directory)
    store.count_start()
    for index in range(61, 66):
        persist = make.persist(make.entries(index, index, term=2), term=2)
        store.write(persist)
        model.write(persist)
    yield store, model.boot_state()
    store.close()


@pytest.fixture
def killed(life, directory) -> tuple[Path, BootState]:
    """The directory of the store after a kill."""
    return copy_of(directory, "killed"), life[1]


@pytest.fixture
def stopped(life, directory) -> tuple[Path, BootState]:
    """The directory of the store after a clean stop."""
    life[0].close()
    return copy_of(directory, "stopped"), life[1]


def copy_of(directory: Path, name: str) -> Path:
    return Path(shutil.copytree(directory, directory.with_name(name)))


def outcome(directory: Path) -> BootState | str:
    """The result of a start: the state, with the bytes of the snapshot verified, or the refusal."""
    try:
        store = LogStore(directory, "node-1", "cluster")
    except StoreError as error:
        return f"{type(error).__name__}: {error}"
    try:
        if store.is_new:
            return "NEW"
        found = store.load()
        if found.snapshot.index:
            store.read_snapshot(found.snapshot)
        return found if store.count_start() == 3 else "LOST AN INCARNATION"
    except StoreDamaged as error:
        return f"StoreDamaged: {error}"
    finally:
        store.close()


def damage(sound: Path, name: str, change: Callable[[bytearray], object]) -> Path:
    """A fresh copy of `sound` in which one file is changed."""
    target = sound.with_name("damaged")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(sound, target)
    path = target / name
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return target


def assert_never_shorter(sound: tuple[Path, BootState], name: str, change: Callable[[bytearray], object], label: str) -> bool:
    """True when the damage was refused."""
    directory, expected = sound
    damaged = damage(directory, name, change)
    found = outcome(damaged)
    if isinstance(found, BootState):
        assert found == expected, label
        return False
    assert found.startswith("Store"), f"{label}: {found}"
    if found.startswith("StoreDamaged"):
        again = outcome(damaged)
        assert isinstance(again, str), f"{label}: the second start forgot what the first one refused"
        assert again.startswith("StoreDamaged"), f"{label}: {again}"
    return True


def flip(position: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[position] ^= 1 << position % 8

    return change


def cut(length: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        del data[length:]

    return change


def test_the_undamaged_directories_open(killed, stopped):
    assert outcome(copy_of(killed[0], "one")) == killed[1]
    assert outcome(copy_of(stopped[0], "two")) == stopped[1]


@pytest.mark.parametrize("start", range(3))
def test_a_flipped_bit_in_the_database_of_a_stopped_node(stopped, start):
    size = (stopped[0] / DATABASE).stat().st_size
    positions = range(start * 29, size, 89)
    refused = sum(assert_never_shorter(stopped, DATABASE, flip(position), f"bit of byte {position}") for position in positions)
    assert refused > 20


def test_a_flipped_bit_in_the_write_ahead_log_of_a_killed_node(killed):
    size = (killed[0] / WAL).stat().st_size
    frame = 4096 + 24
    headers = [32 + number * frame + byte for number in range((size - 32) // frame) for byte in range(0, 24, 5)]
    positions = [*range(32), *headers, *range(32, size, 211)]
    refused = sum(assert_never_shorter(killed, WAL, flip(position), f"bit of byte {position}") for position in positions)
    # Every frame of it was acknowledged. Only the bytes of the header that SQLite ignores may be wrong without harm.
    assert refused >= len(positions) - 32


@pytest.mark.parametrize("name", [DATABASE, WAL])
def test_a_file_cut_short_anywhere(killed, name):
    size = (killed[0] / name).stat().st_size
    for length in [*range(0, size, 1361), size - 4096, size - 1]:
        refused = assert_never_shorter(killed, name, cut(length), f"cut at {length}")
        assert refused or name == DATABASE  # a page that is also in the write-ahead log is not needed


def test_garbage_in_the_middle_of_the_log_is_damage_even_without_the_high_water_mark(killed):
    """After a power failure the high-water mark may be old; the frames after the bad one are enough."""
    damaged = damage(killed[0], WAL, flip(32 + 4120 + 500))
    (damaged / "raft.acknowledged").write_bytes(b"")
    found = outcome(damaged)
    assert "a later transaction follows it" in found


@pytest.mark.parametrize("position", [0, 9, 17, 25])
def test_a_damaged_header_of_the_write_ahead_log_is_refused_permanently(killed, position):
    """SQLite ignores such a log and deletes it on close, so only the first start can see what happened."""
    damaged = damage(killed[0], WAL, flip(position))
    (damaged / "raft.acknowledged").write_bytes(b"")
    assert "header of the write-ahead log is damaged" in outcome(damaged)
    assert "an earlier start found" in outcome(damaged)


def test_damage_where_no_row_is_stored_is_found(stopped):
    """A damaged list of free pages would destroy rows that are written later."""
    with sqlite3.connect(stopped[0] / DATABASE) as connection:
        assert connection.execute("PRAGMA freelist_count").fetchone() == (0,)
        connection.execute("CREATE TABLE spare (data BLOB)")
        connection.execute("INSERT INTO spare VALUES (randomblob(50000))")
        connection.execute("DROP TABLE spare")
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    trunk = int.from_bytes((stopped[0] / DATABASE).read_bytes()[32:36], "big")
    assert outcome(damage(stopped[0], DATABASE, lambda data: None)) == stopped[1]
    assert "SQLite reports damage" in outcome(damage(stopped[0], DATABASE, flip((trunk - 1) * 4096 + 7)))


def test_an_empty_database_file_does_not_make_a_new_node(stopped):
    (stopped[0] / DATABASE).unlink()
    with sqlite3.connect(stopped[0] / DATABASE) as connection:
        connection.execute("PRAGMA journal_mode=wal")
        connection.execute("CREATE TABLE other (x)")
        connection.execute("DROP TABLE other")
    connection.close()
    assert outcome(stopped[0]).startswith("StoreDamaged")


@pytest.mark.parametrize("name", [DATABASE, WAL])
def test_a_missing_file(killed, name):
    damaged = damage(killed[0], name, lambda data: None)
    (damaged / name).unlink()
    assert outcome(damaged).startswith("StoreDamaged")


def test_a_missing_database_and_write_ahead_log_do_not_make_a_new_node(killed):
    damaged = damage(killed[0], DATABASE, lambda data: None)
    (damaged / DATABASE).unlink()
    (damaged / WAL).unlink()
    assert "missing or empty" in outcome(damaged)


def test_an_old_copy_of_the_database_is_noticed(life, directory, make):
    store, _ = life
    store.close()
    old = (directory / DATABASE).read_bytes()
    store = make.store(directory)
    store.write(make.persist(make.entries(66, 66, term=2), term=2))
    store.close()
    (directory / DATABASE).write_bytes(old)
    assert "acknowledged transactions are missing" in outcome(directory)


def test_a_missing_high_water_mark_is_refused_until_an_operator_vouches_for_the_rest(killed):
    """It is durable before the first vote. An old copy of the database without it would look complete."""
    mark = killed[0] / "raft.acknowledged"
    mark.unlink()
    refusal = outcome(killed[0])
    assert "raft.acknowledged is missing" in refusal
    assert "create it empty" in refusal, "the message says what to do"
    assert outcome(killed[0]) == refusal, "it is not created by the refused start"
    mark.write_bytes(b"")
    assert outcome(killed[0]) == killed[1]


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("DELETE FROM entries WHERE idx = 40", "has entry 41 in place of entry 40"),
        ("DELETE FROM entries WHERE idx = 26", "has entry 27 in place of entry 26"),
        ("DELETE FROM entries WHERE idx = 65", "ends at entry 64 instead of 65"),
        ("DELETE FROM entries", "ends at entry 25 instead of 65"),
        ("UPDATE entries SET data = 'text' WHERE idx = 50", "entry 50 fails its checksum"),
        ("UPDATE entries SET term = NULL WHERE idx = 50", "entry 50 fails its checksum"),
        ("UPDATE entries SET term = 1 WHERE idx = 50", "entry 50 fails its checksum"),
        ("UPDATE entries SET kind = 2 WHERE idx = 50", "entry 50 fails its checksum"),
        ("DELETE FROM meta WHERE name = 'state'", "`state` is missing"),
        ("DELETE FROM meta WHERE name = 'snapshot'", "`snapshot` is missing"),
        ("UPDATE meta SET value = x'00' WHERE name = 'state'", "`state` fails its checksum"),
        ("DROP TABLE entries", "schema"),
    ],
)
def test_a_changed_row(stopped, statement, words):
    directory, _ = stopped
    with sqlite3.connect(directory / DATABASE) as connection:
        connection.execute(statement)
    connection.close()
    found = outcome(directory)
    assert words in found
    assert "manage.py member replace node-1" in found, "the message says what to do"


def test_a_missing_or_changed_snapshot(stopped):
    name = next((stopped[0] / "snapshots").glob("*.snap")).relative_to(stopped[0])
    assert "fails its checksum" in outcome(damage(stopped[0], str(name), flip(7)))
    assert "bytes instead of" in outcome(damage(stopped[0], str(name), lambda data: data.pop()))
    gone = damage(stopped[0], str(name), lambda data: None)
    (gone / name).unlink()
    assert "is missing" in outcome(gone)


def test_a_store_whose_creation_was_interrupted_is_new(directory, make):
    """Nothing had been acknowledged: no vote, no entry."""
    store = LogStore(directory, "node-1", "cluster")
    unused = copy_of(directory, "unused")
    store.close()
    assert outcome(unused) == "NEW"
    (unused / DATABASE).unlink()
    (unused / WAL).unlink(missing_ok=True)
    (unused / "raft.acknowledged").unlink()
    assert outcome(unused) == "NEW"


def test_a_newer_schema_is_refused_but_is_not_damage(stopped):
    with sqlite3.connect(stopped[0] / DATABASE) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(StoreRefused, match=f"the log has format {SCHEMA_VERSION + 1}, and this release reads formats up to"):
        LogStore(stopped[0], "node-1", "cluster")
    assert not (stopped[0] / "raft.damaged").exists()


def test_a_newer_high_water_mark_is_refused_but_is_not_damage(stopped):
    mark = stopped[0] / "raft.acknowledged"
    mark.write_bytes(bytes([FORMAT.version + 1]) + bytes(20))
    with pytest.raises(StoreRefused, match=f"raft.acknowledged has format {FORMAT.version + 1}, and this release reads"):
        LogStore(stopped[0], "node-1", "cluster")
    assert not (stopped[0] / "raft.damaged").exists()


@pytest.mark.parametrize("written", [b"", bytes(13), bytes(12), bytes([FORMAT.version]), bytes([FORMAT.version]) + bytes(12)])
def test_a_torn_high_water_mark_tells_nothing(stopped, written):
    (stopped[0] / "raft.acknowledged").write_bytes(written)
    assert outcome(stopped[0]) == stopped[1]
