"""The leader dies, and another time it is cut off."""

from __future__ import annotations

from dss_dev.lab.lab import Said
from dss_dev.lab.picture import Arrow, Box, Picture
from dss_dev.lab.scenes.scene import Ask, Scene, Script, Tell

KEY = "lab/colour"


class Election(Scene):
    id = "election"
    title = "Election"
    lead = "Three nodes keep the same log. One of them leads: it puts writes in order. What happens when it is gone?"
    clients = ["client"]
    steps = 7
    #: the node that the client has asked last
    _asked = ""
    #: the winner of the latest election, and those that voted for it; until the client asks a node again
    _elected: tuple[str, list[str]] = "", []

    def picture(self) -> Picture:
        picture = self.lab.nodes_picture("Three nodes, and who leads", self._lines)
        for box in picture.boxes:
            box.y += 84
        picture.height += 84
        picture.boxes.insert(0, Box("client", 165, 8, 150, 46, "client", [KEY], ""))
        winner, voters = self._elected
        picture.arrows += [Arrow(voter, winner, "votes", "ok") for voter in voters]
        if self._asked and not winner and self.lab.process_of(self._asked) == "running":
            picture.arrows.append(Arrow("client", self._asked, "asks"))
        return picture

    def _lines(self, node_id: str) -> list[str]:
        winner, voters = self._elected
        votes = [f"{len(voters) + 1} of 3 votes"] if node_id == winner and voters else []
        return [*_committed(self, node_id), *votes]

    async def _election(self, among: list[str]) -> tuple[str, int, str]:
        """The node of these that leads now, its term, and a sentence with the votes."""
        winner, term = await self.lab.leader(among)
        voters = await self.lab.until_voted(winner, term)
        self._elected = winner, voters
        self.lab.changed()
        return winner, term, f"{' and '.join(sorted(voters))} voted for {winner}, and it for itself." if voters else ""

    async def clean(self) -> None:
        await self.lab.call("client", (await self.lab.leader())[0], "POST", "/cache/delete", {"key": KEY}, is_shown=False)

    async def _write(self, node_id: str, value: str) -> Said:
        self._asked, self._elected = node_id, ("", [])
        return await self.lab.call("client", node_id, "POST", "/cache/put", {"key": KEY, "value": value})

    async def _read(self, node_id: str) -> object:
        self._asked, self._elected = node_id, ("", [])
        said = await self.lab.call("client", node_id, "POST", "/cache/get", {"key": KEY})
        return said.body.get("value")

    async def play(self) -> Script:
        lab = self.lab
        first, term = await lab.leader()
        yield Ask(
            "Write a value",
            f"{first} leads in term {term}. A term is a period with at most one leader. The client writes {KEY} = blue through "
            f"{first}.",
            "On how many of the three disks is the write, at least, when the client gets its answer?",
            ("one, the leader's", "two, a majority", "all three"),
        )
        await self._write(first, "blue")
        yield Tell(
            "A leader answers when a majority has the entry on disk. Two of three are enough, so one slow or dead node delays "
            "nothing.",
            (1,),
        )

        others = [node_id for node_id in lab.ids[:3] if node_id != first]
        yield Ask(
            f"Kill {first}",
            f"The process of {first} gets kill -9. It cannot tell the others.",
            "Which of them can lead next?",
            (f"only {others[0]}", f"only {others[1]}", "either of the two", f"none, until {first} is back"),
        )
        await lab.until_level(others, first)
        await lab.act("kill", first)
        second, new_term, votes = await self._election(others)
        yield Tell(
            f"{second} leads in term {new_term}; it was term {term}. The followers heard nothing for an election timeout, which "
            "each of them draws at random. The first one to run out asks for votes. A node votes only for a log that is at "
            f"least as complete as its own. Both logs were equal, so either could win, with two votes of three; {second} was "
            f"faster this time. {votes}".rstrip(),
            (2,),
        )

        yield Ask(
            "Read the value at the new leader",
            f"{first} took the write, and is dead. The client asks {second}.",
            f"What is {KEY} now?",
            ("blue", "there is none", "an error, because the write is in doubt"),
        )
        value = await self._read(second)
        yield Tell(
            f"It is {value}. The write was answered, so a majority had it. The new leader got votes from a majority, too, and "
            "two majorities have a node in common: a log without the write cannot win.",
            (0,),
        )

        yield Ask(
            f"Start {first} again",
            f"{first} starts with its old disk, on which it was the leader of term {term}.",
            "What will it be?",
            ("the leader again", "a follower", "a second leader, of the old term"),
        )
        await lab.act("start", first)
        await lab.ready([first])
        yield Tell(
            f"It follows {second}. The first message that it gets has a higher term, and a node that sees a higher term "
            "follows. It also gets the entries that it missed.",
            (1,),
        )

        third, third_term = await lab.leader()
        rest = [node_id for node_id in lab.ids[:3] if node_id != third]
        yield Ask(
            f"Cut {third} off",
            f"This time the leader, {third}, does not die. Its network does: no message to or from the other two gets through. "
            f"The client still reaches it, and writes {KEY} = red there.",
            f"What does {third} answer?",
            ("200, it is the leader", "an error, after some seconds", "200, but the write is lost later"),
        )
        await lab.act("cut", third)
        said = await self._write(third, "red")
        fourth, fourth_term, votes = await self._election(rest)
        mine = await lab.status(third)
        yield Tell(
            f"{said.status}, {said.body.get('code', 'no answer')}: it cannot get a majority, so it does not answer with "
            f"success. It also stopped leading by itself, in term {mine['term'] if mine else third_term}: it asks for pre-votes "
            f"first, and raises no term while no node answers. Meanwhile {fourth} leads in term {fourth_term}. {votes}".rstrip(),
            (1,),
        )

        yield Ask(
            f"Write at {fourth}",
            f"The client writes {KEY} = green at {fourth}, which reaches one other node.",
            "What does it answer?",
            ("200", f"an error: {third} is a member and does not answer"),
        )
        said = await self._write(fourth, "green")
        yield Tell(f"{said.status}. Two of three are a majority. The side with the majority goes on, the other one waits.", (0,))

        yield Ask(
            f"Connect {third} again",
            f"The links of {third} carry messages again. The client reads {KEY} there.",
            "What does it get?",
            ("red", "green", "blue"),
        )
        await lab.act("heal", third)
        await lab.ready([third])
        value = await self._read(third)
        yield Tell(
            f"It is {value}. {third} follows and has what the majority has agreed on. An entry that only it had is replaced: "
            "no client was told that it had succeeded.",
            (1,),
        )


def _committed(scene: Scene, node_id: str) -> list[str]:
    fact = next((fact for fact in scene.lab.facts() if fact["id"] == node_id), None)
    return [f"commit {fact['commit']}"] if fact and fact["process"] == "running" and fact["commit"] else []
