"""Backup files: what is written is read again, and every fault of a file is one clear line."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest

from dss_cli import backup
from dss_cli.backup import MAGIC, BackupInvalid, BackupMember, BackupWriter, Header

BODY = bytes(range(256)) * 40


def header_of(body: bytes) -> Header:
    return Header(
        cluster="dss",
        node="node-2",
        index=4711,
        term=3,
        members=(BackupMember("node-1", "http://127.0.0.1:8101"), BackupMember("node-2", "http://127.0.0.1:8102", True)),
        saved_at_ms=1_795_581_789_119,
        bytes=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "dss.backup"
    with BackupWriter(path, header_of(BODY)) as writer:
        writer.write(BODY[:100])
        assert not path.exists(), "a file with its final name is complete"
        writer.write(BODY[100:])
        writer.finish()
    return path


def test_what_is_written_is_read_again(file: Path) -> None:
    assert backup.check(file) == header_of(BODY)
    assert backup.read(file) == (header_of(BODY), BODY)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_only_the_owner_may_read_it(file: Path) -> None:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_left_part_of_another_mode_is_replaced(tmp_path: Path) -> None:
    part = tmp_path / "dss.backup.part"
    part.write_text("left by a crash")
    part.chmod(0o644)
    with BackupWriter(tmp_path / "dss.backup", header_of(b"x")) as writer:
        writer.write(b"x")
        writer.finish()
    assert stat.S_IMODE((tmp_path / "dss.backup").stat().st_mode) == 0o600


def test_a_body_that_is_not_the_announced_one_is_not_saved(tmp_path: Path) -> None:
    for body in (BODY[:-1], BODY + b"x", BODY[::-1]):
        with BackupWriter(tmp_path / "f", header_of(BODY)) as writer:
            writer.write(body)
            with pytest.raises(BackupInvalid, match="nothing was saved"):
                writer.finish()
    assert list(tmp_path.iterdir()) == []


def fault_of(path: Path) -> str:
    with pytest.raises(BackupInvalid) as refused:
        backup.check(path)
    text = str(refused.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text.removeprefix(str(path)).strip()


def test_every_truncation_is_noticed(file: Path) -> None:
    whole = file.read_bytes()
    start = len(whole) - len(BODY)
    for length in (*range(start + 2), start + 5000, len(whole) - 1):
        file.write_bytes(whole[:length])
        fault = fault_of(file)
        expected = "is not a backup of a cluster" if length == 0 else "is cut short: it ends within its header"
        assert fault == (
            expected if length < start else f"is cut short: it has {length - start} of {len(BODY)} bytes of the state"
        )


def test_every_flipped_byte_is_noticed(file: Path) -> None:
    whole = file.read_bytes()
    start = len(whole) - len(BODY)
    for position in (*range(start + 1), len(whole) - 1):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        file.write_bytes(damaged)
        fault = fault_of(file)
        if position < len(MAGIC):
            assert fault == "is not a backup of a cluster"
        elif position >= start:
            assert fault == "is damaged: its state fails its checksum"


def test_bytes_after_the_end_are_noticed(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"xyz")
    assert fault_of(file) == "is damaged: 3 bytes follow its end"


def test_the_version_is_read_before_everything_else(file: Path) -> None:
    file.write_bytes(MAGIC + (2).to_bytes(4, "big") + b"whatever a later release writes")
    assert fault_of(file) == "has format 2, and this release reads formats up to 1: use a newer release"


def test_fields_of_later_releases_are_ignored(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(Header, frozen=True, kw_only=True):
        zone: str

    later = Later(zone="a", **{name: getattr(header_of(BODY), name) for name in Header.__struct_fields__})
    file.write_bytes(backup.encode_header(later) + BODY)
    assert backup.check(file) == header_of(BODY)
