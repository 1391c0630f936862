"""A message that cannot be processed does not block the messages after it."""

from __future__ import annotations

from typing import Any

from dss_dev.lab.lab import Said
from dss_dev.lab.picture import Arrow, Box, Picture, row_of
from dss_dev.lab.scenes.scene import Ask, Scene, Script, Tell

TOPIC, GROUP, KEY = "lab-orders", "billing", "customer-7"
VISIBILITY_MS = 1500
ATTEMPTS = 3
TIMEOUT_MS = 8000


class DeadLetter(Scene):
    id = "dead-letter"
    title = "Dead letter"
    lead = (
        "A worker takes messages from a queue, and one message fails every time. What happens with it, and with those behind it?"
    )
    clients = ["shop", "worker"]
    steps = 6

    def __init__(self, *arguments, **options) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*arguments, **options)
        #: number of each message -> where it is, and its attempt
        self._places: dict[int, str] = {}
        self._attempts: dict[int, int] = {}

    @property
    def watched(self) -> dict[str, str]:
        return {"topic": TOPIC}

    def picture(self) -> Picture:
        places = ("ready", "in flight", "dead")
        lefts = dict(zip(places, row_of(3, 146), strict=True))
        boxes = [Box(place, lefts[place], 96, 146, 40, place, [], "bad" if place == "dead" else "") for place in places]
        boxes.insert(0, Box("worker", 167, 8, 146, 44, "worker", ["group " + GROUP]))
        for number, place in self._places.items():
            attempt = self._attempts.get(number, 0)
            line = f"attempt {attempt} of {ATTEMPTS}" if attempt else "not tried yet"
            tone = {"dead": "bad", "in flight": "accent", "done": "ok"}.get(place, "")
            x = lefts.get(place, lefts["ready"])
            boxes.append(
                Box(
                    f"message {number}",
                    x,
                    148 + 62 * (number - 1),
                    146,
                    54,
                    f"message {number}",
                    [place if place == "done" else line],
                    tone,
                )
            )
        arrows = [Arrow("in flight", "worker", "delivers", "accent")] if "in flight" in self._places.values() else []
        return Picture(f"Where the messages of topic {TOPIC} are", 276, boxes, arrows)

    async def clean(self) -> None:
        await self._call("lab", "DELETE", f"/queue/topic?topic={TOPIC}", None, is_shown=False)

    async def _call(self, who: str, method: str, path: str, body: Any, *, is_shown: bool = True) -> Said:
        return await self.lab.call(who, self.lab.ids[0 if who == "shop" else 1], method, path, body, is_shown=is_shown)

    async def _consume(self, timeout_ms: int = TIMEOUT_MS, visibility_ms: int = 600_000) -> Said:
        body = {"topic": TOPIC, "group": GROUP, "timeout_ms": timeout_ms, "visibility_ms": visibility_ms}
        said = await self._call("worker", "POST", "/queue/consume", body)
        if said.body.get("msg_id"):
            number = said.body["value"]["order"]
            self._places[number], self._attempts[number] = "in flight", said.body["attempt"]
        return said

    async def _nack(self, msg_id: str, number: int, place: str) -> None:
        await self._call("worker", "POST", "/queue/nack", {"topic": TOPIC, "group": GROUP, "msg_id": msg_id, "delay_ms": 0})
        self._places[number] = place

    async def _ack(self, said: Said) -> None:
        await self._call("worker", "POST", "/queue/ack", {"topic": TOPIC, "group": GROUP, "msg_id": said.body["msg_id"]})
        self._places[said.body["value"]["order"]] = "done"

    async def play(self) -> Script:
        yield Ask(
            "Publish two messages",
            f"The topic {TOPIC} allows {ATTEMPTS} attempts for a message. The shop publishes two orders of one customer: they "
            f"have the same routing key, {KEY}, so their order matters.",
            button="Publish",
        )
        await self._call("shop", "PUT", "/queue/topic", {"topic": TOPIC, "max_attempts": ATTEMPTS, "backoff_ms": 0})
        await self._call("shop", "PUT", "/queue/group", {"topic": TOPIC, "group": GROUP, "start": "first"}, is_shown=False)
        for number in (1, 2):
            await self._call("shop", "POST", "/queue/publish", {"topic": TOPIC, "key": KEY, "value": {"order": number}})
            self._places[number] = "ready"
        yield Tell("Both are in the replicated log, and wait for a worker.")

        yield Ask(
            "The worker hangs",
            f"The worker takes message 1. It has {VISIBILITY_MS / 1000:g} s to acknowledge it (visibility_ms). It hangs, and "
            "does nothing.",
            "What happens with message 1?",
            ("it is lost", f"it can be taken again after {VISIBILITY_MS / 1000:g} s", "it is a dead letter"),
        )
        await self._consume(visibility_ms=VISIBILITY_MS)
        self.lab.changed()
        again = await self._consume()
        yield Tell(
            f"After the visibility timeout the next consume gets it again: attempt {again.body.get('attempt')}. A delivery is "
            "at least once, so a worker that dies loses nothing.",
            (1,),
        )

        yield Ask(
            "Ask for more",
            "Message 1 is with the worker (in flight). A second worker of the same group asks for a message.",
            "Does it get message 2?",
            ("yes, it is ready", "no, it waits for message 1"),
        )
        more = await self._consume(timeout_ms=200)
        yield Tell(
            f"It gets nothing: {more.body.get('empty_reason')}. Messages with one routing key are delivered in order, one at a "
            "time. Messages with other keys would not wait.",
            (1,),
        )

        yield Ask(
            "It fails again and again",
            f"The worker refuses message 1 (nack), takes it once more, and refuses it again. That was attempt {ATTEMPTS} of "
            f"{ATTEMPTS}.",
            "Where is message 1 then?",
            ("ready, for one more attempt", "a dead letter of the group", "deleted"),
        )
        await self._nack(again.body["msg_id"], 1, "ready")
        last = await self._consume()
        await self._nack(last.body["msg_id"], 1, "dead")
        stats = await self._call("worker", "GET", f"/queue/stats?topic={TOPIC}", None)
        dead = sum(group.get("dead", 0) for group in _groups(stats.body))
        yield Tell(
            f"The group has {dead} dead letter. It keeps the value and the reason, and no consumer gets it until a person decides.",
            (1,),
        )

        yield Ask(
            "Ask for the next one",
            "The worker asks for a message again.",
            "What does it get?",
            ("message 2, attempt 1", "nothing: message 1 must be solved first"),
        )
        second = await self._consume()
        if second.body.get("msg_id"):
            await self._ack(second)
        yield Tell(f"Message 2, attempt {second.body.get('attempt')}. A dead letter does not block the messages behind it.", (0,))

        yield Ask(
            "Redrive",
            "The fault in the worker is repaired. An operator puts the dead letters back into the queue (redrive), and the "
            "worker takes one.",
            "Which attempt is it?",
            ("attempt 1: it starts again", "attempt 4: it continues"),
        )
        await self._call("worker", "POST", "/queue/redrive", {"topic": TOPIC, "group": GROUP})
        back = await self._consume()
        attempt = back.body.get("attempt", 0)
        if back.body.get("msg_id"):
            await self._ack(back)
        yield Tell(
            f"Attempt {attempt}, and this time it is acknowledged. It comes after message 2 now: a redriven message has lost "
            "its place.",
            (0 if attempt == 1 else 1,),
        )


def _groups(body: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for topic in body.get("topics", [body]):
        groups = topic.get("groups", [])
        found += groups.values() if isinstance(groups, dict) else groups
    return found
