"""A cache line goes through the states M, E, S and I."""

from __future__ import annotations

from typing import Any

from dss_dev.lab.lab import Said
from dss_dev.lab.picture import Arrow, Box, Picture, row_of
from dss_dev.lab.scenes.scene import Ask, Scene, Script, Tell

KEY = "lab/price"
WORDS = {
    "M": "modified: written here, not yet in the store",
    "E": "exclusive: alone, equal to the store",
    "S": "shared: other nodes also have it",
    "I": "invalid: no copy",
}


class Mesi(Scene):
    id = "mesi"
    title = "M, E, S, I"
    lead = "Each node keeps copies of values in its memory. Four letters say what a node knows about its copy, so that no read is stale."
    clients = ["client"]
    steps = 6

    def __init__(self, *arguments, **options) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*arguments, **options)
        self._letters: dict[str, str] = {}
        self._value: object = None

    @property
    def watched(self) -> dict[str, str]:
        return {"key": KEY}

    def picture(self) -> Picture:
        boxes = []
        for x, node_id in zip(row_of(3, 146), self.lab.ids[:3], strict=False):
            letter = self._letters.get(node_id, "I")
            boxes.append(
                Box(
                    node_id, x, 12, 146, 92, node_id, [letter, WORDS[letter].partition(":")[0] if letter in WORDS else ""], letter
                )
            )
        store = "no value" if self._value is None else "older value" if "M" in self._letters.values() else f"{self._value}"
        boxes.append(Box("store", 167, 168, 146, 56, "backing store", [store]))
        same = [box for box in boxes[:3] if box.tone in ("E", "S")]
        arrows = [Arrow("store", box.id, "same value", box.tone, True, is_in_table=box is not same[-1]) for box in same]
        arrows += [Arrow(box.id, "store", "to be written back", "M") for box in boxes[:3] if box.tone == "M"]
        return Picture(f"The line of {KEY} on each node", 236, boxes, arrows)

    async def clean(self) -> None:
        await self._call(0, "/cache/delete", {"key": KEY}, is_shown=False)
        self._value = None

    async def _call(self, place: int, path: str, body: dict[str, Any], *, is_shown: bool = True) -> Said:
        return await self.lab.call("client", self.lab.ids[place], "POST", path, body, is_shown=is_shown)

    async def _look(self) -> str:
        """The letters of the three nodes now."""
        said = await self.lab.call("lab", self.lab.ids[0], "GET", f"/cache/lines?key={KEY.replace('/', '%2F')}", is_shown=False)
        self._letters = {row["node"]: row.get("state") or "I" for row in said.body.get("lines", ())}
        letters = self._spelled()
        for node_id in self.lab.ids[:3]:
            self.lab.recording.add(
                node_id,
                "role",
                f"{node_id} has {KEY} {self._letters.get(node_id, 'I')}",
                {"line": self._letters.get(node_id, "I")},
            )
        self.lab.changed()
        return letters

    def _spelled(self) -> str:
        return " ".join(self._letters.get(node_id, "I") for node_id in self.lab.ids[:3])

    async def _written_back(self) -> bool:
        return "M" not in await self._look()

    async def _is_shared(self) -> bool:
        """Whether all nodes have applied the entry with which a reader began to share: a node that has not shows M or E."""
        return not {"M", "E"} & set((await self._look()).split())

    async def play(self) -> Script:
        lab = self.lab
        one, two, three = lab.ids[:3]
        yield Ask(
            f"Write at {one}",
            f"No node has {KEY}. The client writes 10 at {one}. The letters below are in the order {one}, {two}, {three}.",
            "Which letters do the nodes have right after the write?",
            ("M I I", "S S S", "E I I", "M S S"),
        )
        said = await self._call(0, "/cache/put", {"key": KEY, "value": 10})
        self._value = 10
        self._letters = {one: said.body.get("state", "M")}
        first = self._spelled()
        self.lab.changed()
        yield Tell(
            f"{first}. {one} has the only copy, and it is newer than the backing store: modified. The value is safe all the "
            "same, it is in the replicated log.",
            (0,),
        )

        yield Ask(
            "Wait for the write-back",
            f"{one} writes the value to the backing store (SQLite here; it can be Redis). The stage shows the lines at the end "
            f"of the last step.",
            "Which letters then?",
            ("M I I", "E I I", "S S S", "I I I"),
        )
        await lab.until(self._written_back, "the value is written back")
        yield Tell(f"{self._spelled()}. Exclusive: the copy is equal to the store, and no other node has one.", (1,))

        yield Ask(
            f"Read at {two}",
            f"The client reads {KEY} at {two}, which has no copy.",
            "Which letters then?",
            ("E E I", "I E I", "S S I", "M S I"),
        )
        said = await self._call(1, "/cache/get", {"key": KEY})
        await lab.until(self._is_shared, "the nodes share the value")
        letters = self._spelled()
        yield Tell(
            f"{letters}. {two} fetched the value ({'a hit' if said.body.get('hit') else 'a miss'}), and now both share it. The "
            "directory in the replicated log lists who has a copy.",
            (2,),
        )

        yield Ask(
            f"Read at {three}, and again",
            f"The client reads it twice at {three}.",
            "Which letters, and does the second read need the network?",
            ("S S S, and no", "S S S, and yes", "I I S, and no"),
        )
        await self._call(2, "/cache/get", {"key": KEY})
        again = await self._call(2, "/cache/get", {"key": KEY})
        await lab.until(self._is_shared, "the nodes share the value")
        letters = self._spelled()
        yield Tell(f"{letters}. The second read was {'a hit: it took no message' if again.body.get('hit') else 'a miss'}.", (0,))

        yield Ask(
            f"Write at {two}",
            f"The client writes 20 at {two}. Two other nodes have copies of 10.",
            "Which letters right after the write was answered?",
            ("S M S", "I M I", "I E I", "S S S"),
        )
        said = await self._call(1, "/cache/put", {"key": KEY, "value": 20})
        self._value = 20
        self._letters = {two: said.body.get("state", "M")}
        letters = self._spelled()
        self.lab.changed()
        yield Tell(
            f"{letters}. The write is answered only when each sharer has dropped its copy, or its lease has run out. So no node "
            "can still answer with 10.",
            (1,),
        )

        yield Ask(
            f"Read at {one}",
            f"The client reads it at {one}, whose copy of 10 is gone.",
            "What does it get?",
            ("10", "20", "nothing"),
        )
        said = await self._call(0, "/cache/get", {"key": KEY})
        await lab.until(self._is_shared, "the nodes share the value")
        letters = self._spelled()
        yield Tell(
            f"{said.body.get('value')}, and the letters are {letters}. Textbooks describe caches that watch one bus. Here the "
            "replicated log takes the place of the bus.",
            (1,),
        )
