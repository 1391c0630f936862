"""Approximate counts of recent uses for very many keys in little memory: a count-min sketch (Cormode, Muthukrishnan 2005).

After a number of uses all counts are halved, so that old popularity fades (Einziger, Friedman, Manes 2017).
"""

from __future__ import annotations

from zlib import crc32

#: Counts stop here: only which count is higher matters, not by how much.
COUNT_MAX = 15
ROWS = 4
WIDTH_MIN, WIDTH_MAX = 64, 1 << 22
#: Uses between two halvings, for each line of the capacity.
USES_PER_ITEM = 10
_HALVED = bytes(count >> 1 for count in range(256))


class FrequencySketch:
    """About how often a key was used recently, in a few bytes for each line.

    Args:
        items_max: capacity in lines.
    """

    def __init__(self, items_max: int) -> None:
        wanted = min(max(4 * items_max, WIDTH_MIN), WIDTH_MAX)
        self._width = 1 << (wanted - 1).bit_length()
        self._mask = self._width - 1
        self._counts = bytearray(ROWS * self._width)
        self._uses = 0
        self._uses_max = USES_PER_ITEM * max(items_max, WIDTH_MIN)

    def add(self, key: str) -> None:
        counts = self._counts
        for position in self._positions(key):
            if counts[position] < COUNT_MAX:
                counts[position] += 1
        self._uses += 1
        if self._uses >= self._uses_max:
            self._uses //= 2
            self._counts = counts.translate(_HALVED)

    def count(self, key: str) -> int:
        counts = self._counts
        return min([counts[position] for position in self._positions(key)])

    def _positions(self, key: str) -> tuple[int, int, int, int]:
        """The key's counters: one in each row, by double hashing."""
        width, mask = self._width, self._mask
        first = crc32(key.encode())
        step = (first * 0x9E3779B1 >> 13) | 1
        return (
            first & mask,
            width + (first + step & mask),
            2 * width + (first + 2 * step & mask),
            3 * width + (first + 3 * step & mask),
        )
