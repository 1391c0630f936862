"""The log in memory: all entries since its base, and which of them are committed, handed to the store, and durable.

Theory of operation. `base_index` is the last entry that was dropped (a snapshot covers it). The entries follow it without a gap.
These marks move through the log:

    base_index <= committed <= last_index          what a majority holds (paper 5.3)
    durable <= handed <= last_index                what the store has confirmed, and what it was given

`durable` is the last index up to which the durable log is known to equal this one. A truncation therefore lowers it immediately,
even while the write of the truncated entries is still in progress. On a follower `committed` may be ahead of `durable`.
"""

from __future__ import annotations

from bisect import bisect_right

from dss_raft.core.errors import InvariantViolation
from dss_raft.core.messages import Entry


def _term_of(entry: Entry) -> int:
    return entry.term


class RaftLog:
    """Entries after `base_index`, addressed by their Raft index."""

    __slots__ = (
        "_bytes",
        "_entries",
        "base_index",
        "base_term",
        "committed",
        "durable",
        "handed",
        "last_index",
        "last_term",
        "truncated_from",
        "writing",
    )

    def __init__(self, base_index: int, base_term: int, entries: list[Entry]) -> None:
        self._reset(base_index, base_term)
        if not well_formed(base_index, base_term, entries):
            raise InvariantViolation(f"the log read at start has a gap or a decreasing term after index {base_index}")
        self.append(entries)
        #: everything read at start is durable
        self.durable = self.handed = self.last_index
        #: the last entry of the write in progress that this log still holds
        self.writing = self.last_index
        #: entries from this index on must be removed from the store; 0: none
        self.truncated_from = 0

    def _reset(self, base_index: int, base_term: int) -> None:
        self._entries: list[Entry] = []
        #: `_bytes[i]`: payload bytes of the first i entries, so that any range's size is one subtraction
        self._bytes: list[int] = [0]
        self.base_index = base_index
        self.base_term = base_term
        self.last_index = base_index
        self.last_term = base_term
        self.committed = base_index

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def first_index(self) -> int:
        """The first entry held; `last_index + 1` when there is none."""
        return self.base_index + 1

    def term(self, index: int) -> int | None:
        """The term of the entry at `index`; None when it is compacted or not there yet."""
        position = index - self.base_index
        if position > 0:
            return self._entries[position - 1].term if index <= self.last_index else None
        return self.base_term if position == 0 else None

    def known_term(self, index: int) -> int:
        """Like `term`, for an index that must be in the log."""
        term = self.term(index)
        if term is None:
            raise InvariantViolation(f"index {index} is outside the log ({self.base_index}, {self.last_index}]")
        return term

    def slice(self, first: int, last: int) -> list[Entry]:
        """Entries `first` to `last`, both included."""
        base = self.base_index
        if first <= base:
            raise InvariantViolation(f"index {first} has been compacted (base {base})")
        return self._entries[first - base - 1 : last - base]

    def size(self, after: int, to: int) -> int:
        """Payload bytes of the entries after `after` up to `to`, if they are still held."""
        base = self.base_index
        return self._bytes[max(to - base, 0)] - self._bytes[max(after - base, 0)] if to > after else 0

    def batch_end(self, first: int, entries_max: int, bytes_max: int) -> int:
        """The last index of a batch from `first` within both limits. A batch has at least one entry."""
        start = first - self.base_index - 1
        sizes = self._bytes
        end = min(first + entries_max - 1, self.last_index)
        if sizes[end - self.base_index] - sizes[start] <= bytes_max:
            return end
        fits = bisect_right(sizes, sizes[start] + bytes_max, start, end - self.base_index + 1) - 1
        return max(fits + self.base_index, first)

    def append(self, entries: list[Entry]) -> None:
        """Add entries that follow the last one. The caller has checked entries from a peer with `well_formed`."""
        if not entries:
            return
        if entries[0].index != self.last_index + 1 or entries[0].term < self.last_term:
            raise InvariantViolation(
                f"entry {entries[0].index} (term {entries[0].term}) cannot follow entry {self.last_index} (term {self.last_term})"
            )
        sizes = self._bytes
        total = sizes[-1]
        for entry in entries:
            total += len(entry.data)
            sizes.append(total)
        self._entries += entries
        self.last_index += len(entries)
        self.last_term = entries[-1].term

    def truncate(self, first: int) -> None:
        """Remove `first` and everything after it (paper 5.3: a conflict with the leader).

        Raises:
            InvariantViolation: `first` is committed.
        """
        if first <= self.committed:
            raise InvariantViolation(
                f"entry {first} conflicts with the leader's, but everything up to {self.committed} is committed"
            )
        del self._entries[first - self.base_index - 1 :]
        del self._bytes[first - self.base_index :]
        self.last_index = first - 1
        self.last_term = self.known_term(first - 1)
        self.durable = min(self.durable, first - 1)
        self.writing = min(self.writing, first - 1)
        if self.handed >= first:
            self.handed = first - 1
            self.truncated_from = min(self.truncated_from, first) if self.truncated_from else first

    def hand_over(self) -> tuple[int, list[Entry]]:
        """What the store must do next: (remove entries from this index on, 0 for none; entries to append)."""
        truncate_from = self.truncated_from
        entries = self.slice(self.handed + 1, self.last_index)
        self.truncated_from = 0
        self.handed = self.writing = self.last_index
        return truncate_from, entries

    def written(self) -> None:
        """The last `hand_over` is durable, except for what has been truncated since."""
        self.durable = max(self.durable, self.writing)

    def commit_to(self, index: int) -> None:
        """Move the commit index forward.

        Raises:
            InvariantViolation: it would go back, or beyond the end.
        """
        if not self.committed <= index <= self.last_index:
            raise InvariantViolation(f"commit index {self.committed} cannot become {index}: the log ends at {self.last_index}")
        self.committed = index

    def compact(self, to: int) -> None:
        """Drop the entries up to `to`, which a durable snapshot covers."""
        if to <= self.base_index:
            return
        if to > min(self.committed, self.durable):
            raise InvariantViolation(f"cannot compact to {to}: committed {self.committed}, durable {self.durable}")
        count = to - self.base_index
        self.base_term = self.known_term(to)
        del self._entries[:count]
        del self._bytes[:count]
        self.base_index = to

    def restore(self, index: int, term: int) -> None:
        """Replace the whole log by a snapshot that ends at `index`, which this log does not contain."""
        if index <= self.committed:
            raise InvariantViolation(f"a snapshot at {index} would undo what is committed up to {self.committed}")
        kept = self.committed
        self._reset(index, term)
        self.durable = min(self.durable, kept)
        self.writing = min(self.writing, kept)
        self.handed = index
        self.truncated_from = 1

    def last_with_term_at_most(self, index: int, term: int) -> int:
        """The last index <= `index` whose term is <= `term`: the last place where two logs can agree (paper 5.3)."""
        end = min(index, self.last_index) - self.base_index
        if end <= 0:
            # compacted: the index itself is the best answer
            return min(index, self.base_index)
        return self.base_index + bisect_right(self._entries, term, 0, end, key=_term_of)

    def conflict(self, entries: list[Entry]) -> int:
        """How many of `entries` this log already holds: the position of the first that is missing or has another term."""
        position = entries[0].index - self.base_index - 1
        if position >= len(self._entries):
            return 0
        held = self._entries[position : position + len(entries)]
        last = len(held) - 1
        # Terms never decrease, and one leader writes all entries of a term: equal at the end means equal before (log matching).
        if held[last].term == entries[last].term:
            return last + 1
        for count, (mine, theirs) in enumerate(zip(held, entries, strict=False)):
            if mine.term != theirs.term:
                return count
        return len(held)


def well_formed(prev_index: int, prev_term: int, entries: list[Entry]) -> bool:
    """Whether `entries` follow (`prev_index`, `prev_term`) without a gap and with terms that never decrease."""
    index, term = prev_index, prev_term
    for entry in entries:
        index += 1
        if entry.index != index or entry.term < term:
            return False
        term = entry.term
    return True
