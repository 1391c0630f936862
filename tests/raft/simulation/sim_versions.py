"""Two releases in one simulated world: nodes are upgraded and go back at restarts, while the leader raises the cluster's version.

The dice are their own, so a world in which all nodes have one release is as it was without this module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, ClassVar

from dss_raft.replication.commands import Command
from dss_raft.versions import Supported

if TYPE_CHECKING:
    from sim_node import SimNode

OLD, NEW = Supported(1, 1), Supported(1, 3)
#: what a peer has announced counts for this time: then its link is down
LINKED_US = 150_000


class AddTwice(Command, tag="sim.add_twice"):
    """A command of version 2. Its effect shows in every later answer."""

    since: ClassVar[int] = 2

    value: int


class Releases:
    """Which release each node has.

    Args:
        is_mixed: false: all nodes have the same release.
    """

    def __init__(self, seed: int, is_mixed: bool, now_us: Callable[[], int], happened: Counter[str]) -> None:
        self._dice = Random(f"releases {seed}")
        self.now_us = now_us
        self.happened = happened
        self.is_mixed = is_mixed and self._dice.random() < 0.5
        #: all nodes are upgraded in the end, so the version must rise
        self.end_upgraded = self.is_mixed and self._dice.random() < 0.5
        self.is_end = False
        #: the leader raises the version as soon as it can
        self.must_rise = self.is_mixed

    def first(self) -> Supported:
        """The release of a new node."""
        return self._dice.choice((OLD, OLD, NEW)) if self.is_mixed else NEW

    def restarts(self, node: SimNode) -> None:
        """The node is about to start: perhaps with another release."""
        if self.is_end and self.end_upgraded:
            node.supported = NEW
        elif self.is_mixed and self._dice.random() < 0.5:
            before, node.supported = node.supported, self._dice.choice((OLD, NEW, NEW))
            if before is not node.supported:
                self.happened["upgrade" if node.supported is NEW else "way back"] += 1

    def wants_newer_command(self) -> bool:
        return self.is_mixed and self._dice.random() < 0.3
