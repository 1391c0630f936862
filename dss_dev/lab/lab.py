"""The lab itself: its nodes, the scene that is played, and what happens when no browser is open. All of it runs in the loop of the lab."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dss_dev.lab.desk import Desk
from dss_dev.lab.picture import Arrow, Box, Picture, row_of
from dss_dev.lab.recording import Recording
from dss_dev.lab.relays import Relays
from dss_dev.lab.verdict import verdict_of
from dss_dev.lab.watch import LiveView
from dss_dev.local_cluster import PROBE_S, LocalNode

#: what a step waits for, at most
PATIENCE_S = 60.0
POLL_S = 0.05
#: how long a step waits for the live view to show who has voted; nodes report twice a second
VOTES_S = 20.0
#: paused nodes are resumed and cuts are healed when no browser has been open for this time
ABSENCE_S = 60.0
SHOWN_MAX = 400
#: ids of events that are known to be recorded; more than nodes send at a time
SEEN_MAX = 2_000


class NotReached(Exception):
    """What a step waits for has not happened."""


@dataclass
class Said:
    """An answer to a call."""

    #: 0: the node did not answer
    status: int
    body: dict[str, Any]

    @property
    def ok(self) -> bool:
        return self.status == 200


@dataclass
class Call:
    """A call, as the page shows it."""

    who: str
    text: str
    answer: str
    status: int


class Lab:
    """See the module.

    Args:
        nodes: the list of the process of `make run`, which may grow.
        absence_s: see `ABSENCE_S`.
    """

    def __init__(self, nodes: list[LocalNode], desk: Desk, relays: Relays, absence_s: float = ABSENCE_S) -> None:
        self._nodes = nodes
        self.desk = desk
        self.relays = relays
        self.live = LiveView(self._watchable, self._took)
        self.recording = Recording("", [])
        #: calls of the present step
        self.calls: list[Call] = []
        #: calls without an answer yet, also those of a scene that was left
        self._under_way: set[asyncio.Future[Said]] = set()
        self.version = 0
        self._change = asyncio.Event()
        self._browsers = 0
        self._absence_s = absence_s
        self._left: float | None = None
        #: in the order in which they came
        self._seen_events: dict[str, None] = {}

    # ---- nodes

    @property
    def ids(self) -> list[str]:
        return [node.id for node in self._nodes]

    def node(self, node_id: str) -> LocalNode:
        return next(node for node in self._nodes if node.id == node_id)

    def process_of(self, node_id: str) -> str:
        return self.desk.states.get(node_id, "ended")

    def is_reachable(self, node_id: str) -> bool:
        return self.process_of(node_id) == "running" and node_id not in self.relays.cut_off

    def _watchable(self) -> Sequence[LocalNode]:
        running = [node for node in self._nodes if self.process_of(node.id) == "running"]
        return [node for node in running if self.is_reachable(node.id)] or running

    async def act(self, action: str, node_id: str) -> None:
        """`kill`, `pause`, `resume`, `start`, `cut` or `heal`. `KeyError`: there is no such node."""
        if node_id not in self.ids:
            raise KeyError(node_id)
        if action == "cut":
            self.relays.cut(node_id)
        elif action == "heal":
            self.relays.heal(node_id)
        else:
            await asyncio.wrap_future(self.desk.ask(action, node_id))  # type: ignore[arg-type]
        self.recording.add(node_id, "fault", _DONE[action])
        self.changed()

    async def restore(self) -> None:
        """All nodes run, and all links carry messages."""
        for node_id in self.ids:
            if node_id in self.relays.cut_off:
                await self.act("heal", node_id)
            if self.process_of(node_id) == "paused":
                await self.act("resume", node_id)
            if self.process_of(node_id) == "ended":
                await self.act("start", node_id)

    # ---- calls

    async def call(self, who: str, node_id: str, method: str, path: str, body: Any = None, *, is_shown: bool = True) -> Said:
        """A call of the client `who`. The page shows it with its answer."""
        node = self.node(node_id)
        shown = f"{method} {node.url}{path}" + (f" {_short(body)}" if body is not None else "")
        message = (
            self.recording.send(who, f"{who} asks {node_id}: {method} {path} {_short(body) if body else ''}") if is_shown else 0
        )
        if message:
            self.recording.add(node_id, "receive", f"{node_id} gets {method} {path} of {who}", message=message)
        answering = asyncio.ensure_future(asyncio.to_thread(_call, node, method, path, body))
        self._under_way.add(answering)
        answering.add_done_callback(self._under_way.discard)
        # The caller may be cancelled; the call is made in any case.
        said = await asyncio.shield(answering)
        if is_shown:
            answer = _short(said.body) if said.status else "no answer"
            self.calls.append(Call(who, shown, answer, said.status))
            back = self.recording.send(node_id, f"{node_id} answers {said.status or 'nothing'}: {answer}")
            self.recording.add(who, "receive", f"{who} gets {said.status or 'no answer'}: {answer}", message=back)
            self.changed()
        return said

    async def all_answered(self) -> None:
        """Wait until every call that was made has its answer, or has failed."""
        if self._under_way:
            await asyncio.wait(self._under_way)

    async def until(self, condition: Callable[[], Awaitable[Any]], what: str) -> Any:
        """The first result that is true.

        Raises:
            NotReached: there was none in time.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not (result := await condition()):
            if time.monotonic() > deadline:
                raise NotReached(f"{what}: not within {PATIENCE_S:.0f} s")
            await asyncio.sleep(POLL_S)
        return result

    async def leader(self, among: Sequence[str] | None = None) -> tuple[str, int]:
        """The node that leads, as it says itself, and its term."""

        async def find() -> tuple[str, int] | None:
            found = []
            for node_id in among if among is not None else self.ids:
                if self.process_of(node_id) == "running":
                    status = await self.status(node_id)
                    if status and status["state"]["name"] == "LEADER":
                        found.append((status["term"], node_id))
            return max(found)[::-1] if found else None  # type: ignore[return-value]

        found: tuple[str, int] = await self.until(find, "a node leads")
        return found

    async def until_level(self, node_ids: Sequence[str], leader: str) -> None:
        """Wait until each of these nodes has what the leader has committed."""
        leading = await self.until(lambda: self.status(leader), f"{leader} answers")
        for node_id in node_ids:

            async def is_level(node_id: str = node_id) -> bool:
                status = await self.status(node_id)
                return status is not None and status["commit_index"] >= leading["commit_index"]

            await self.until(is_level, f"{node_id} has every committed entry")

    async def status(self, node_id: str) -> dict[str, Any] | None:
        return await asyncio.to_thread(self.node(node_id).status, PROBE_S)

    async def ready(self, node_ids: Sequence[str] | None = None) -> None:
        for node_id in node_ids or self.ids:

            async def is_ready(node_id: str = node_id) -> bool:
                return await asyncio.to_thread(self.node(node_id).is_ready)

            await self.until(is_ready, f"{node_id} is ready")

    # ---- browsers

    def browser_came(self) -> None:
        self._browsers += 1
        self._left = None

    def browser_left(self) -> None:
        self._browsers -= 1
        if self._browsers == 0:
            self._left = time.monotonic()

    @property
    def is_watched(self) -> bool:
        return self._browsers > 0

    async def guard_absence(self, leave: Callable[[], Awaitable[None]]) -> None:
        """Resume paused nodes and heal cuts when no browser is open: a person who has closed the page has forgotten them.

        Args:
            leave: leaves the present scene.
        """
        while True:
            await asyncio.sleep(min(1.0, self._absence_s / 4))
            if self._left is None or time.monotonic() - self._left < self._absence_s:
                continue
            self._left = None
            for node_id in self.ids:
                if self.process_of(node_id) == "paused":
                    await self.act("resume", node_id)
                if node_id in self.relays.cut_off:
                    await self.act("heal", node_id)
            await leave()

    # ---- changes

    def changed(self) -> None:
        self.version += 1
        self._change.set()
        self._change = asyncio.Event()

    async def wait_for_change(self, version: int, timeout_s: float) -> None:
        if self.version == version:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._change.wait()

    def _took(self, event: dict[str, Any]) -> None:
        for row in reversed(event.get("events", ())):
            if row["id"] not in self._seen_events:
                self._seen_events[row["id"]] = None
                if event["kind"] != "state":
                    self.recording.add(row["node"], row["kind"], f"{row['node']} {row['text']}")
        while len(self._seen_events) > SEEN_MAX:
            del self._seen_events[next(iter(self._seen_events))]
        self.changed()

    def record(self, title: str, clients: list[str]) -> None:
        """Begin a new recording."""
        self.recording = Recording(title, [*clients, *self.ids])

    # ---- what the stage shows of the nodes

    def facts(self) -> list[dict[str, Any]]:
        """Each node: its process, its link, and what the live view says."""
        cards = {card["id"]: card for card in self.live.parts.get("nodes", ())} if self.live.is_fresh else {}
        return [
            {
                "id": node.id,
                "url": node.url,
                "process": self.process_of(node.id),
                "is_cut": node.id in self.relays.cut_off,
                "shape": cards.get(node.id, {}).get("shape", ""),
                "term": cards.get(node.id, {}).get("term", 0),
                "commit": cards.get(node.id, {}).get("commit", 0),
            }
            for node in list(self._nodes)
        ]

    @property
    def verdict(self) -> Mapping[str, Any] | None:
        """The state of the cluster; None: no node has told it yet."""
        parts = self.live.parts
        return verdict_of(parts.get("verdict"), self.facts(), parts.get("nodes", ()))

    def node_boxes(self, y: int, height: int = 96, extra: Callable[[str], list[str]] = lambda node_id: []) -> list[Box]:
        """The first three nodes side by side."""
        boxes = []
        for x, fact in zip(row_of(3, 146), self.facts()[:3], strict=False):
            word, tone = _look_of(fact)
            lines = [word]
            if fact["process"] == "running" and fact["term"]:
                lines.append(f"term {fact['term']}")
            boxes.append(Box(fact["id"], x, y, 146, height, fact["id"], [*lines, *extra(fact["id"])], tone))
        return boxes

    def heartbeats(self, boxes: Sequence[Box]) -> list[Arrow]:
        """From the leader to those that it reaches."""
        leader = next((box.id for box in boxes if box.tone == "accent"), None)
        others = [box.id for box in boxes if box.id != leader and box.tone == ""]
        return [
            Arrow(leader, other, "replicates", "accent", is_below=True, is_in_table=other != others[-1])
            for other in others
            if leader is not None
        ]

    def votes(self, term: int) -> dict[str, str]:
        """The votes of this term that nodes gave to others, as far as the live view has them: voter -> candidate."""
        rows = self.live.parts.get("events", ())
        return {row["subject"]: row["object"] for row in rows if row["kind"] == "vote" and row["term"] == term}

    async def until_voted(self, candidate: str, term: int) -> list[str]:
        """The voters of this candidate. Waits until the live view shows one; without a live view there are none."""
        deadline = time.monotonic() + VOTES_S
        while not (found := [voter for voter, whom in self.votes(term).items() if whom == candidate]):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(POLL_S)
        return found

    def nodes_picture(self, label: str, extra: Callable[[str], list[str]] = lambda node_id: []) -> Picture:
        boxes = self.node_boxes(34, 110, extra)
        return Picture(label, 208, boxes, self.heartbeats(boxes))


_DONE = {
    "kill": "is killed (kill -9)",
    "pause": "is paused (SIGSTOP)",
    "resume": "is resumed (SIGCONT)",
    "start": "is started again",
    "cut": "is cut off: no message to or from its peers gets through",
    "heal": "is connected again",
}
_SHAPES = {
    "leader": ("★ leader", "accent"),
    "follower": ("○ follower", ""),
    "candidate": ("◇ candidate", "warn"),
    "learner": ("◌ learner", ""),
    "silent": ("✕ silent", "bad"),
    "unready": ("▲ not ready", "warn"),
}


def _look_of(fact: dict[str, Any]) -> tuple[str, str]:
    if fact["process"] == "ended":
        return "✕ killed", "gone"
    if fact["process"] == "paused":
        return "‖ paused", "warn"
    if fact["is_cut"]:
        return "✂ cut off", "warn"
    return _SHAPES.get(fact["shape"], ("…", ""))


def _call(node: LocalNode, method: str, path: str, body: Any) -> Said:
    try:
        reply = node.call(method, path, body, headers=node.credentials)
        found = reply.json
    except (OSError, http.client.HTTPException, ValueError):
        return Said(0, {})
    return Said(reply.status, found if isinstance(found, dict) else {})


#: fields of answers that say nothing to a reader of the lab
_LEFT_OUT = (
    "type",
    "title",
    "encoding",
    "published_ms",
    "visible_until_ms",
    "delivered_ms",
    "headers",
    "lock_delay_ms",
    "meta",
    "session",
)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        value = {name: inner for name, inner in value.items() if name not in _LEFT_OUT}
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_MAX else text[: SHOWN_MAX - 1] + "…"
