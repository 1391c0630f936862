"""What the engine `redis` has of topics, for metrics and pages.

Both are made in one go, without waiting for a server. So the statistics are read in the background, in rounds, while there is a reader:
for `WANTED_S` after a scrape or a look of an open page. Without one, nothing is read. A round is bounded: the `TOPICS_MAX` topics that
were used last, `AT_ONCE_MAX` of them at a time, each of them not again within `PAUSE_S`.

Numbers that are not current are not given: while the engine is away, when a read has failed, or when they are older than `CURRENT_S`.

On the leader, each read also tells the dead letters since the one before, for the metric that counts them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, cast

from dss_api.errors import Refused
from dss_api.supervised import report_failure
from dss_queue.core.broker import Broker
from dss_queue.core.engines import started_ms
from dss_queue.core.topic import Topic
from dss_queue.routing import Routing

if TYPE_CHECKING:
    from dss_queue.answers import GroupStats
    from dss_queue.redis_engine.views import EngineTopicStats
    from dss_raft.node import Node

SERVICE = "queue.engine_numbers"
#: Reading goes on for this time after the last scrape, or look of a page.
WANTED_S = 30.0
#: Between two reads of a topic, and between two rounds.
PAUSE_S = 5.0
#: A round that took long is followed by a pause of so many times its length.
PAUSE_PER_ROUND = 4
#: Topics that are read: those that pages show, and those that calls at this node used last.
TOPICS_MAX = 100
#: Topics that are read at the same time. Each read is a call for each partition, and for each partition of each group.
AT_ONCE_MAX = 4
#: For the read of a topic.
TIMEOUT_S = 5.0
#: Older numbers are not current.
CURRENT_S = 30.0


class TopicNumbers(NamedTuple):
    """What the engine has of a topic.

    Attributes:
        groups: by name.
    """

    topic: EngineTopicStats
    groups: dict[str, GroupStats]


#: What the engine has of a topic of the log; None: nothing, or that is not known.
OnEngine = Callable[[Topic], TopicNumbers | None]


class _Read(NamedTuple):
    """The last read of a topic.

    Attributes:
        of: the stay of the topic on the engine, and since when the engine had been ready. It may come back with other data.
        numbers: None: it failed.
    """

    of: tuple[int, int]
    at_s: float
    numbers: TopicNumbers | None


class EngineNumbers:
    """See the module. One for each node, created before it starts; all methods run in its event loop.

    Attributes:
        on_dead: called on the leader with the reason and the number of new dead letters.

    Args:
        clock: in seconds.
    """

    def __init__(self, node: Node, routing: Routing, clock: Callable[[], float] = monotonic) -> None:
        self._node = node
        self._routing = routing
        self._service = routing.service
        self._clock = clock
        self._broker = cast(Broker, node.machine("queue"))
        self._reads: dict[str, _Read] = {}
        self._dead = _DeadLetters()
        self.on_dead: Callable[[str, int], None] = lambda reason, count: None
        self._wanted_until_s = float("-inf")
        #: topics that pages show, and until when
        self._shown: dict[str, float] = {}
        self._reading: asyncio.Task[None] | None = None
        #: a round should begin now
        self._wake = asyncio.Event()
        #: a round is over
        self._is_over = asyncio.Event()
        node.on_leader_change(lambda leader, term: self._dead.begin())
        node.services[SERVICE] = self

    # -------------------------------------------------------------- for readers

    def of(self, topic: Topic) -> TopicNumbers | None:
        """The current numbers of a topic; None: it has nothing on the engine, or they are not known now."""
        read = self._last_read(topic)
        if read is None or self._service.state != "ready" or self._clock() - read.at_s > CURRENT_S:
            return None
        return read.numbers

    def want(self, shown: Iterable[str] = ()) -> None:
        """Read for the next `WANTED_S`.

        Args:
            shown: topics that are read first.
        """
        self._wanted_until_s = self._clock() + WANTED_S
        for name in shown:
            self._shown.pop(name, None)
            self._shown[name] = self._wanted_until_s
            if len(self._shown) > TOPICS_MAX:
                del self._shown[next(iter(self._shown))]
        if self._reading is not None or self._service.state != "ready":
            return
        if self._topics():
            self._reading = self._service.tasks.spawn("engine", self._read_on())
        else:
            # A topic that comes later begins without dead letters.
            self._dead.end_round(set(), self._node.now_ms())

    async def look(self, shown: Iterable[str] = (), *, wait_s: float) -> None:
        """As `want`. If numbers are not known yet, wait for the round, but not longer than `wait_s`."""
        self.want(shown)
        if self._reading is None or not any(self.of(topic) is None and self._is_due(topic) for topic in self._topics()):
            return
        self._wake.set()
        self._is_over.clear()
        try:
            async with asyncio.timeout(wait_s):
                await self._is_over.wait()
        except TimeoutError:
            return

    # ------------------------------------------------------------------- rounds

    def _topics(self) -> list[Topic]:
        """The topics that a round reads."""
        now_s = self._clock()
        self._shown = {name: until_s for name, until_s in self._shown.items() if until_s >= now_s}
        found: dict[str, Topic] = {}
        for name in (*reversed(self._shown), *reversed(self._routing.used)):
            topic = self._broker.topics.get(name)
            if topic is not None and topic.engine is not None and len(found) < TOPICS_MAX:
                found[name] = topic
        for name, topic in self._broker.topics.items():
            if len(found) >= TOPICS_MAX:
                break
            if topic.engine is not None:
                found.setdefault(name, topic)
        return list(found.values())

    def _last_read(self, topic: Topic) -> _Read | None:
        """The last read of this stay of the topic, since the engine is ready."""
        read, use = self._reads.get(topic.name), topic.engine
        return None if read is None or use is None or read.of != (use.incarnation, self._service.since_ms) else read

    def _is_due(self, topic: Topic) -> bool:
        read = self._last_read(topic)
        return read is None or self._clock() - read.at_s >= PAUSE_S

    async def _read_on(self) -> None:
        try:
            while self._service.state == "ready" and self._clock() < self._wanted_until_s and (topics := self._topics()):
                self._wake.clear()
                began_s = self._clock()
                await self._round(topics)
                self._is_over.set()
                await self._wait(max(PAUSE_S, PAUSE_PER_ROUND * (self._clock() - began_s)))
        finally:
            self._reading = None

    async def _wait(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _round(self, topics: list[Topic]) -> None:
        began_ms, turns = self._node.now_ms(), asyncio.Semaphore(AT_ONCE_MAX)

        async def one(topic: Topic) -> None:
            async with turns:
                await self._read(topic)

        await asyncio.gather(*(one(topic) for topic in topics if self._is_due(topic)))
        kept = {topic.name for topic in topics}
        self._reads = {name: read for name, read in self._reads.items() if name in kept}
        self._dead.end_round({read.of[0] for read in self._reads.values()}, began_ms)

    async def _read(self, topic: Topic) -> None:
        use, since_ms, numbers = topic.engine, self._service.since_ms, None
        if use is None:
            return
        try:
            async with asyncio.timeout(TIMEOUT_S):
                name = self._service.name_in(use.incarnation, topic.name)
                stats, groups = await self._service.views().topic_stats(name, self._node.now_ms())
            numbers = TopicNumbers(stats, {group.group: group for group in groups})
        except (Refused, TimeoutError):
            # The numbers are not known; the next round tries again.
            numbers = None
        except Exception as error:
            # Others do not wait for this one.
            report_failure("engine", error)
        self._reads[topic.name] = _Read((use.incarnation, since_ms), self._clock(), numbers)
        if numbers is not None and self._node.is_leader:
            for reason, count in self._dead.new(use.incarnation, numbers).items():
                self.on_dead(reason, count)


class _DeadLetters:
    """Finds out how many dead letters are new, from what each read finds, while this node leads."""

    def __init__(self) -> None:
        #: incarnation -> (group, reason) -> how many there were at the last read
        self._known: dict[int, dict[tuple[str, str], int]] = {}
        #: topics that came to the engine since then have had none; None: there was no round yet
        self._since_ms: int | None = None

    def begin(self) -> None:
        """Forget everything: what there is at the next read was counted by the leader before, or by none."""
        self._known.clear()
        self._since_ms = None

    def new(self, incarnation: int, numbers: TopicNumbers) -> Counter[str]:
        """Those since the last read, by reason."""
        known = self._known.get(incarnation)
        if known is None and self._since_ms is not None and started_ms(incarnation) >= self._since_ms:
            known = {}
        now = {(group.group, reason): count for group in numbers.groups.values() for reason, count in group.dead_total.items()}
        self._known[incarnation] = now
        new: Counter[str] = Counter()
        if known is not None:
            for (group, reason), count in now.items():
                before = known.get((group, reason), 0)
                # A group that was deleted and created again begins with 0.
                new[reason] += count - before if count >= before else count
        return new

    def end_round(self, incarnations: set[int], began_ms: int) -> None:
        """Forget topics that are not read any more.

        Args:
            began_ms: when the round began, by the clock of the log.
        """
        self._known = {incarnation: known for incarnation, known in self._known.items() if incarnation in incarnations}
        self._since_ms = began_ms


def numbers_of(node: Node) -> EngineNumbers:
    """The numbers of the engine at this node."""
    return cast(EngineNumbers, node.services[SERVICE])
