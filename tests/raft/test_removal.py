"""When a node believes that it was removed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dss_raft.removal import ASK_AFTER_S, ASK_EVERY_S, ROUNDS, NodeRemoved, RemovalWatch


class Links:
    """Who has answered, and how."""

    def __init__(self, peers: str, disowned_by: str, up: str) -> None:
        self.peers = list(peers)
        self.disowned_by = set(disowned_by)
        self._up = up

    def is_up(self, peer: str) -> bool:
        return peer in self._up

    def probe(self, peer: str) -> None:
        assert peer != "a"


def believes(members: str, *, disowned_by: str, up: str = "", peers: str = "") -> bool:
    """Whether the node `a` believes that it was removed, with these members in its configuration."""
    configuration = SimpleNamespace(members=[SimpleNamespace(id=name) for name in members])
    core: Any = SimpleNamespace(node_id="a", leader_id="", term=3, configuration=configuration)
    links: Any = Links(peers or members, disowned_by, up)
    watch = RemovalWatch(core, links, "data")
    watch.check(1.0)
    try:
        for number in range(ROUNDS + 1):
            watch.check(1.0 + ASK_AFTER_S + number * ASK_EVERY_S)
    except NodeRemoved:
        return True
    return False


def test_one_member_is_enough_if_no_other_one_accepts_the_node() -> None:
    assert believes("abc", disowned_by="b")
    assert not believes("abc", disowned_by="")
    assert not believes("abc", disowned_by="b", up="c")


def test_a_node_that_was_removed_together_with_another_one_finds_out() -> None:
    """Each of them is linked to the other, which does not know of its removal either."""
    assert believes("abcde", disowned_by="cde", up="b")
    assert not believes("abcde", disowned_by="de", up="b"), "it may have been added again"


def test_a_node_that_is_being_removed_accepts_for_no_one() -> None:
    assert believes("acde", disowned_by="c", up="b", peers="bcde")


def test_a_node_without_a_configuration_asks_its_peers() -> None:
    assert believes("", disowned_by="b", peers="bc")
    assert not believes("", disowned_by="b", up="c", peers="bc")


@pytest.mark.parametrize("disowned_by", ["b", "bc"])
def test_one_round_is_not_enough(disowned_by: str) -> None:
    """A member that lags may not know a new member yet."""
    core: Any = SimpleNamespace(
        node_id="a", leader_id="", term=3, configuration=SimpleNamespace(members=[SimpleNamespace(id=name) for name in "abc"])
    )
    links: Any = Links("abc", disowned_by, "")
    watch = RemovalWatch(core, links, "data")
    watch.check(1.0)
    watch.check(1.0 + ASK_AFTER_S)
    links.disowned_by = set()
    for number in range(1, ROUNDS + 1):
        watch.check(1.0 + ASK_AFTER_S + number * ASK_EVERY_S)
