"""Write what happens in a seed of the simulated world as one HTML file, with a scrubber.

story.py --seed 7                                      the seed as it is
story.py --seed 10 --bug "compares logs the wrong way round"
story.py --bugs                                        the bugs that can be planted
story.py --recordings                                  write the replays of the lab again
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import sim_mutants
import sim_story
from sim_mutant_list import MUTANTS

ROOT = Path(__file__).resolve().parents[3]
LAB = ROOT / "dss_dev" / "lab"
VERSION = 1
#: the replays of the lab: name -> seed and planted bug
RECORDINGS = {
    "seed-10": (10, "compares logs the wrong way round"),
    "seed-10-append": (10, "no check of the previous entry's term"),
}

Events = list[list[Any]]


def tell(seed: int, bug: str = "") -> tuple[dict[str, Any], Events]:
    """The header of a story, and its events.

    Raises:
        LookupError: there is no such bug.
    """
    world, outcome = _run(seed, bug)
    events: Events = world.story
    header = {
        "version": VERSION,
        "title": f"Seed {seed}" + (f", with a planted bug: {bug}" if bug else ""),
        "about": f"Simulated time. {outcome.detail or 'All checks hold, from the beginning to the end.'}",
        "lanes": world.lanes(),
        "seed": seed,
        "bug": bug,
    }
    if bug:
        other = _run(seed, "")[0].story
        pairs = zip(events, other, strict=False)
        header["divergence"] = next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(events), len(other)))
    return header, events


def _run(seed: int, bug: str) -> tuple[Any, Any]:
    if not bug:
        world = sim_story.StoryWorld(seed)
        return world, world.run()
    mutant = next((mutant for mutant in MUTANTS if mutant.name == bug), None)
    if mutant is None:
        raise LookupError(f"There is no bug {bug!r}; `--bugs` lists them")
    with sim_mutants.planted(mutant):
        world = importlib.import_module("sim_story").StoryWorld(seed)
        return world, world.run()


def lines(header: dict[str, Any], events: Events) -> str:
    return "".join(f"{json.dumps(each, ensure_ascii=False, separators=(',', ':'))}\n" for each in (header, *events))


def page(header: dict[str, Any], events: Events) -> str:
    """One file that needs no other: the player, its styles, and the story."""
    static = LAB / "static"
    script = (static / "player.js").read_text().replace("export ", "")
    style = (ROOT / "dss_console/static/dss/live.css").read_text() + (static / "player.css").read_text()
    # Texts of a story cannot end the element that holds it.
    story = lines(header, events).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(header["title"])}</title>
<style>{style}</style>
</head>
<body>
<main><h1>{escape(header["title"])}</h1><section class="panel"><div data-player></div></section></main>
<script type="application/jsonl" id="story">{story}</script>
<script type="module">{script}
new Player(document.querySelector("[data-player]")).load(parseStory(document.getElementById("story").textContent), "start", null);
</script>
</body>
</html>
"""


def record() -> None:
    """Write the replays of the lab, each with and without its bug."""
    directory = LAB / "stories"
    directory.mkdir(exist_ok=True)
    for name, (seed, bug) in RECORDINGS.items():
        header, events = tell(seed, bug)
        (directory / f"{name}.jsonl").write_text(lines(header, events))
        clean, others = tell(seed)
        clean["divergence"] = header["divergence"]
        # It is compared with the run that has the bug, which is over sooner.
        (directory / f"{name}-clean.jsonl").write_text(lines(clean, others[: 2 * len(events)]))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--bug", default="", help="the name of a planted bug")
    parser.add_argument("--bugs", action="store_true", help="list the bugs that can be planted")
    parser.add_argument("--recordings", action="store_true", help="write the replays of the lab again")
    parser.add_argument("--out", type=Path, help="the file to write (default: report/story-SEED.html)")
    options = parser.parse_args(arguments)
    if options.bugs:
        print("\n".join(mutant.name for mutant in MUTANTS))
        return 0
    if options.recordings:
        record()
        return 0
    try:
        header, events = tell(options.seed, options.bug)
    except LookupError as error:
        print(error.args[0], file=sys.stderr)
        return 2
    out: Path = options.out or ROOT / "report" / f"story-{options.seed}.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(header, events))
    print(f"{header['title']}: {len(events)} events. {header['about']}")
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
