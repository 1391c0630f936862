"""A story tells what happens in a world, and changes nothing in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import story
from sim_story import StoryWorld
from sim_world import World

ENDS = ("receive", "lost", "dropped")


@pytest.mark.parametrize("seed", [3, 7, 10])
def test_a_seed_has_the_same_hash_with_a_story(seed: int) -> None:
    told = StoryWorld(seed)
    assert told.run().trace_hash == World(seed).run().trace_hash
    assert len(told.story) > 50


def test_a_message_ends_no_earlier_than_it_is_sent_and_on_another_lane() -> None:
    world = StoryWorld(3)
    world.run()
    sent: dict[int, list[Any]] = {}
    kinds = set()
    for event in world.story:
        at, lane, kind, _, _, message, _ = event
        kinds.add(kind)
        if kind == "send":
            sent[message] = event
        elif message:
            assert sent[message][0] <= at
            assert (lane == sent[message][1]) == (kind in ("lost", "doubled"))
    assert {"send", "receive", "lost", "role", "commit", "log", "fault"} <= kinds


def test_a_story_is_told_the_same_way_twice() -> None:
    assert story.tell(7) == story.tell(7)


def test_the_bug_of_seed_10_breaks_leader_completeness() -> None:
    header, events = story.tell(10, "compares logs the wrong way round")
    violation = [event for event in events if event[2] == "violation"]
    assert [event[3].partition(":")[0] for event in violation] == ["leader_completeness"]
    asked, other = events[header["divergence"] - 1], story.tell(10)[1]
    assert asked == other[header["divergence"] - 1]
    assert "vote for me" in asked[3]


def test_one_file_has_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "story.html"
    assert story.main(["--seed", "7", "--out", str(out)]) == 0
    page = out.read_text()
    assert "src=" not in page
    assert "href=" not in page
    assert "import " not in page.partition('<script type="module">')[2].partition("new Player(")[0].replace("It imports", "")
    assert str(out) in capsys.readouterr().out
    assert story.main(["--bug", "no such bug"]) == 2


def test_the_replays_of_the_lab_can_be_read() -> None:
    names = {path.stem for path in (story.LAB / "stories").glob("*.jsonl")}
    assert names == {name + end for name in story.RECORDINGS for end in ("", "-clean")}
    for name in names:
        header, *events = map(json.loads, (story.LAB / "stories" / f"{name}.jsonl").read_text().splitlines())
        assert header["version"] == story.VERSION
        assert len(events) > header["divergence"]
        assert [event[2] for event in events].count("violation") == (not name.endswith("-clean"))
