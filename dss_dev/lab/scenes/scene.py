"""A lesson: a person predicts what will happen, takes the step, and sees what has happened.

The script of a lesson is an async generator. It yields an `Ask`, carries out the step with real calls when it is resumed, and yields a
`Tell`. So a script reads from the top to the bottom, as a person plays it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Coroutine
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from dss_dev.lab.lab import Call, Lab, NotReached
from dss_dev.lab.picture import Picture


@dataclass
class Ask:
    """The next step."""

    title: str
    text: str
    #: "" with no options: a step that is only taken
    question: str = ""
    options: tuple[str, ...] = ()
    #: on the button, in place of "Predict and step"
    button: str = ""
    #: a replay that the page shows with this step, and where: "", "divergence" or "violation"
    replay: str = ""
    replay_at: str = ""


@dataclass
class Tell:
    """What has happened."""

    text: str
    #: the options that were right
    right: tuple[int, ...] = ()


@dataclass
class Taken:
    """A step that was taken, as the page shows it."""

    title: str
    question: str
    choice: str
    right: str
    is_right: bool | None
    text: str
    calls: list[Call]


Script = AsyncGenerator[Ask | Tell, None]


class Scene(ABC):
    """See the module."""

    id: ClassVar[str]
    title: ClassVar[str]
    lead: ClassVar[str]
    #: of the recording, above the nodes
    clients: ClassVar[list[str]] = []
    #: how many steps the script has
    steps: ClassVar[int]
    #: whether nodes are needed
    is_live: ClassVar[bool] = True

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.taken: list[Taken] = []
        self.ask: Ask | None = None
        self.is_busy = False
        self.problem = ""
        self._script: Script | None = None
        self._task: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[Any]] = set()

    # ---- for the lessons

    @property
    def watched(self) -> dict[str, str]:
        """What `cluster.watch` shows in addition."""
        return {}

    @abstractmethod
    def play(self) -> Script:
        """The steps."""

    @abstractmethod
    def picture(self) -> Picture | None:
        """The stage as it is now."""

    async def clean(self) -> None:  # noqa: B027  (most scenes leave nothing)
        """Remove what this scene has made in the cluster, in this run or an earlier one."""

    def beside(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run it beside the steps, until the scene ends."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    # ---- for the page

    def begin(self, after: asyncio.Task[None] | None = None) -> None:
        """Begin, when the task `after` has ended."""
        self._start(self._begin(after))

    def step(self, choice: int | None) -> bool:
        """Take the next step. False: one is being taken, or there is none."""
        if self.is_busy or self.ask is None:
            return False
        self._start(self._step(self.ask, choice))
        return True

    async def close(self) -> None:
        tasks = [*self._background, *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._script is not None:
            await self._script.aclose()

    async def tidy(self, after: asyncio.Task[None] | None = None) -> None:
        """The scene was closed: remove what it has made in the cluster, when the task `after` has ended."""
        if after is not None:
            await asyncio.wait([after])
        if self.is_live:
            # A person can have stopped the nodes by other means. Then the next scene says so.
            with suppress(NotReached):
                await self.lab.restore()
                await self.lab.ready()
                await self.clean()
                # Among them may be one that waited for what was just removed.
                await self.lab.all_answered()
                await self.clean()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self.is_busy = True
        self.problem = ""
        self._task = asyncio.create_task(self._guarded(work))
        self.lab.changed()

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            # A person who kills nodes by hand can make any step fail.
            what = str(error) if isinstance(error, NotReached) else "a call got an answer that this step does not expect"
            self.problem = f"The step did not finish: {what}. “Start again” repairs the cluster and begins the scene again."
            self.ask = None
        finally:
            self.is_busy = False
            self.lab.changed()

    async def _begin(self, after: asyncio.Task[None] | None) -> None:
        if self.is_live:
            if after is not None:
                await asyncio.wait([after])
            await self.lab.restore()
            await self.lab.ready()
            await self.clean()
        self.lab.record(f"Scene: {self.title}", list(self.clients))
        self._script = self.play()
        await self._advance()

    async def _advance(self) -> None:
        assert self._script is not None
        try:
            found = await self._script.asend(None)
        except StopAsyncIteration:
            self.ask = None
            return
        assert isinstance(found, Ask)
        self.ask = found

    async def _step(self, ask: Ask, choice: int | None) -> None:
        assert self._script is not None
        self.lab.calls = []
        self.lab.recording.add("", "step", ask.title)
        tell = await self._script.asend(None)
        assert isinstance(tell, Tell)
        options = ask.options
        self.taken.append(
            Taken(
                ask.title,
                ask.question,
                options[choice] if choice is not None and choice < len(options) else "",
                ", or ".join(options[number] for number in tell.right),
                choice in tell.right if choice is not None and options else None,
                tell.text,
                self.lab.calls,
            )
        )
        self.lab.calls = []
        self.ask = None
        await self._advance()

    def shown(self) -> dict[str, Any]:
        """For the page."""
        picture = None
        with suppress(StopIteration):
            picture = self.picture()
        return {
            "id": self.id,
            "title": self.title,
            "lead": self.lead,
            "step": min(len(self.taken) + 1, self.steps),
            "steps": self.steps,
            "is_live": self.is_live,
            "is_busy": self.is_busy,
            "is_done": self.ask is None and not self.is_busy and not self.problem,
            "problem": self.problem,
            "ask": asdict(self.ask) if self.ask is not None else None,
            "taken": [asdict(taken) for taken in self.taken],
            "calls": [asdict(call) for call in self.lab.calls] if self.is_busy else [],
            "picture": picture,
        }
