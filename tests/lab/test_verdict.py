"""The lab says at once what it has done to a node; the nodes notice it after a second or two."""

from __future__ import annotations

from typing import Any

from dss_dev.lab.verdict import verdict_of

HEALTHY = {"code": "healthy", "word": "HEALTHY", "text": "All 3 members answer.", "action": "", "since": ""}


def facts(**processes: str) -> list[dict[str, Any]]:
    """node1="paused": what is not named runs, and "cut" is cut off."""
    given = [(f"node-{number}", processes.get(f"node{number}", "running")) for number in (1, 2, 3)]
    return [{"id": name, "process": "running" if state == "cut" else state, "is_cut": state == "cut"} for name, state in given]


def cards(leader: int = 1, silent: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    shapes = {number: "silent" if number in silent else "follower" for number in (1, 2, 3)} | {leader: "leader"}
    return [{"id": f"node-{number}", "shape": shape} for number, shape in shapes.items()]


def verdict(leader: int = 1, silent: tuple[int, ...] = (), seen: Any = HEALTHY, **processes: str) -> tuple[str, str]:
    found = verdict_of(seen, facts(**processes), cards(leader, silent))
    assert found is not None
    return found["word"], found["text"]


def test_nothing_is_changed_while_all_nodes_run() -> None:
    assert verdict_of(HEALTHY, facts(), cards()) is HEALTHY
    assert verdict_of(None, facts(node1="ended"), cards()) is None


def test_a_node_that_was_just_stopped_is_named() -> None:
    assert verdict(node3="ended") == ("DEGRADED", "node-3 has ended. Writes work: the others are a majority.")
    assert verdict(node3="paused")[1].startswith("node-3 is paused. ")
    assert verdict(node3="cut")[1].startswith("node-3 is cut off. ")


def test_without_the_leader_writes_wait() -> None:
    assert (
        verdict(leader=3, node3="ended")[1]
        == "node-3 has ended. It was the leader: writes wait until the others elect another one."
    )


def test_without_a_majority_writes_are_refused() -> None:
    lost = "1 of 3 voters is left, and a write needs 2."
    assert verdict(node2="cut", node3="ended") == ("REFUSING WRITES", f"node-2 is cut off; node-3 has ended. {lost}")
    assert verdict(silent=(2,), node3="ended") == ("REFUSING WRITES", f"node-3 has ended. {lost}"), "one was silent before"


def test_the_nodes_are_believed_when_they_have_noticed_it() -> None:
    noticed = {**HEALTHY, "code": "degraded", "word": "DEGRADED", "text": "node-3 has been silent for 4 s. Writes work."}
    assert verdict_of(noticed, facts(node3="ended"), cards()) is noticed
    assert verdict(seen=noticed, node3="ended", node2="ended")[0] == "REFUSING WRITES"


def test_a_name_that_begins_another_one_is_no_word_of_it() -> None:
    noticed = {**HEALTHY, "text": "node-10 has been silent for 4 s. Writes work."}
    assert verdict(seen=noticed, node1="ended", leader=2)[1].startswith("node-1 has ended. ")
    ends = {**HEALTHY, "text": "Nothing is heard of node-1."}
    assert verdict_of(ends, facts(node1="ended"), cards(2)) is ends
