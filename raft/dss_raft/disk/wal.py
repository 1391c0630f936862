"""Reads SQLite's write-ahead log before SQLite does, to tell a torn end from damage in the middle.

SQLite ends its recovery at the first frame with a wrong checksum, and drops every frame after it. At the end of the file that is
right: a crash tore a transaction that was not acknowledged. In the middle it would silently drop transactions that were synced
and acknowledged. With `synchronous=FULL`, a transaction is written only after the previous one is synced. So if frames of a later
transaction follow a bad frame, the bad frame was good once, and the file is damaged.

Format: https://www.sqlite.org/fileformat2.html#the_write_ahead_log . A header of 32 bytes, then frames: a header of 24 bytes
(page, size of the database after a commit or 0, two salts, two checksums) and a page. Each checksum continues the previous one.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24
_MAGIC_LITTLE = 0x377F0682
_MAGIC_BIG = 0x377F0683
_MASK = 0xFFFFFFFF


class WalReport(NamedTuple):
    """The result of a check."""

    #: the header is intact, or nothing was written after it
    header_valid: bool
    #: description of the damage, for people; "" if there is none
    damage: str


def inspect(wal: bytes) -> WalReport:
    """Check the whole content of a `-wal` file."""
    if len(wal) <= HEADER_BYTES:
        return WalReport(True, "")  # the header is synced before the first frame: no frame, nothing acknowledged
    magic, _version, page_bytes, _checkpoint, salt1, salt2, sum1, sum2 = struct.unpack_from(">8I", wal)
    if magic not in (_MAGIC_LITTLE, _MAGIC_BIG) or page_bytes < 512 or page_bytes > 65536 or page_bytes & (page_bytes - 1):
        return WalReport(False, "")
    order = ">" if magic == _MAGIC_BIG else "<"
    sums = _checksum(wal[:24], order, (0, 0))
    if sums != (sum1, sum2):
        return WalReport(False, "")
    valid = 0
    frame_bytes = FRAME_HEADER_BYTES + page_bytes
    count = (len(wal) - HEADER_BYTES) // frame_bytes
    for number in range(count):
        start = HEADER_BYTES + number * frame_bytes
        page, _size, frame_salt1, frame_salt2, sum1, sum2 = struct.unpack_from(">6I", wal, start)
        if page == 0 or (frame_salt1, frame_salt2) != (salt1, salt2):
            break
        sums = _checksum(wal[start : start + 8] + wal[start + FRAME_HEADER_BYTES : start + frame_bytes], order, sums)
        if sums != (sum1, sum2):
            break
        valid = number + 1
    return WalReport(True, _damage_behind(wal, valid, count, frame_bytes, (salt1, salt2)))


def _damage_behind(wal: bytes, valid: int, count: int, frame_bytes: int, salts: tuple[int, int]) -> str:
    """Look after the first bad frame for a second transaction of the same generation."""
    ended = False
    for number in range(valid, count):
        start = HEADER_BYTES + number * frame_bytes
        _page, size, salt1, salt2 = struct.unpack_from(">4I", wal, start)
        if (salt1, salt2) != salts:
            continue
        if ended:
            return f"frame {valid + 1} of the write-ahead log has a wrong checksum, but a later transaction follows it"
        ended = size != 0
    return ""


def _checksum(data: bytes, order: str, start: tuple[int, int]) -> tuple[int, int]:
    sum1, sum2 = start
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for first, second in zip(words, words, strict=True):
        sum1 = (sum1 + first + sum2) & _MASK
        sum2 = (sum2 + second + sum1) & _MASK
    return sum1, sum2
