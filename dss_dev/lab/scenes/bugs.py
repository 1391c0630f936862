"""Replays of simulated clusters with a planted bug."""

from __future__ import annotations

from dss_dev.lab.picture import Picture
from dss_dev.lab.scenes.scene import Ask, Scene, Script, Tell


class FindTheBug(Scene):
    id = "bug"
    title = "Find the bug"
    lead = (
        "The simulator runs the real Raft code in a world of faults. For these recordings, a bug was planted in it. "
        "The same seed gives the same faults each time."
    )
    steps = 6
    is_live = False

    def picture(self) -> Picture | None:
        return None

    async def play(self) -> Script:
        yield Ask(
            "A vote",
            "The replay is at the moment before the bug makes a difference. b asks a for its vote. Compare their logs in the "
            "table below the replay: each entry is shown as index:term. The log whose last entry has the higher term is more "
            "complete; if the terms are equal, the longer log is.",
            "What must a do?",
            ("grant its vote", "refuse its vote"),
            replay="seed-10",
            replay_at="divergence",
        )
        yield Tell(
            "It must grant its vote: the log of b is more complete than its own, which is empty. With the bug it does not, "
            "because it compares the logs the wrong way round. A good candidate loses a vote. That alone breaks no promise.",
            (0,),
        )
        yield Ask(
            "The consequence",
            "Nodes that compare logs the wrong way round go on like this. Some elections later, a check of the simulator fails.",
            "Which promise of Raft is broken then?",
            ("a term has two leaders", "a new leader lacks a committed entry", "a node forgets its vote"),
            replay="seed-10",
            replay_at="divergence",
        )
        yield Tell(
            "leader_completeness: a new leader must have every entry that was committed before. These voters elect the node "
            "that knows least. What was answered would be lost.",
            (1,),
        )
        yield Ask(
            "Look at it",
            "The replay is at the first violation. Compare the last entry of the three logs. Go back with ◀ to see who voted "
            "for whom.",
            button="Next bug",
            replay="seed-10",
            replay_at="violation",
        )
        yield Tell(
            "b leads in term 7 with another entry 10 than a and c have committed. c voted for it, although its own log is more complete."
        )
        yield Ask(
            "Entries",
            "The same seed, with another bug. The leader a tells c what its log has before the next entry: entry 5 is of term "
            "3. Look at entry 5 of c in the table.",
            "What must c answer?",
            ("that it has everything up to 5", "that its log differs"),
            replay="seed-10-append",
            replay_at="divergence",
        )
        yield Tell(
            "It must refuse: its entry 5 is of another term. The leader then goes back, entry by entry, to where both logs are "
            "equal, and sends what follows. With the bug, only the index is compared, and c says that it has everything.",
            (1,),
        )
        yield Ask(
            "The next entry",
            "Now a sends entry 6 to c, and c appends it.",
            "What is wrong with the logs then?",
            ("the same entry follows different entries", "an entry is there twice", "a log is empty"),
            replay="seed-10-append",
            replay_at="divergence",
        )
        yield Tell(
            "log_matching: if two logs have an entry with the same index and term, they must be equal up to there. Entry 6 of "
            "term 4 comes after an entry of term 3 in one log, and after one of term 1 in the other one.",
            (0,),
        )
        yield Ask(
            "Look at it",
            "The replay is at the first violation. Switch “with the planted bug” off to see how the same seed goes on without "
            "it.",
            button="Finish",
            replay="seed-10-append",
            replay_at="violation",
        )
        yield Tell(
            "“make story SEED=10” writes the replay of a seed into one HTML file. “make mutants” plants many bugs, and checks that each of "
            "them is found."
        )
