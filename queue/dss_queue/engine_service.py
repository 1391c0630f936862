"""The engine `redis` as a node has it: connected in the background, and checked for as long as the node runs.

A node starts and serves everything else while the engine is away. Calls that need it are then refused at once, with the reason, and go
on by themselves when it is back. A server counts as away when it has not answered for a short time: during that time a replica may
take over, and calls are repeated. See `redis_engine/health.py`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal, cast

import structlog
from msgspec.structs import asdict

from dss_api.errors import Refused
from dss_api.supervised import Tasks
from dss_queue.core.broker import Broker
from dss_queue.core.commands import PutTopicRequest, TopicSettings
from dss_queue.core.topic import Topic
from dss_queue.redis_engine.errors import EngineAway, UnfitServer
from dss_queue.redis_engine.keys import engine_name, parts_of
from dss_queue.redis_engine.messages import QueueSettings
from dss_raft.replication.clocks import wall_clock_ms

if TYPE_CHECKING:
    from dss_queue.redis_engine.administration import Administration
    from dss_queue.redis_engine.engine import RedisEngine
    from dss_queue.redis_engine.lifecycle import InLog
    from dss_queue.redis_engine.servers import Servers
    from dss_queue.redis_engine.views import Views
    from dss_raft.node import Node

log = structlog.get_logger("queue")

SERVICE = "queue.engine"
#: none: no URL is set; away: a server does not answer; unfit: a server lacks something that the engine needs. The partitions on other
#: servers go on.
State = Literal["none", "connecting", "ready", "away", "unfit"]
NONE = "this node has no engine for topics: set DSS_ENGINE_URL"

#: Between two checks.
CHECK_S = 1.0
#: A check of what servers are and how they are set comes after this time; the others only see whether they answer.
THOROUGH_CHECK_S = 30.0
#: Between two checks of servers that are away or unfit.
PAUSE_S_MIN, PAUSE_S_MAX = 0.25, 5.0
#: Failed calls lead to a check, but not sooner than this after the last one.
CHECK_S_MIN = 0.1
#: Servers that have not answered for this time are away: a replica in a Cluster may take over meanwhile.
GRACE_S, CLUSTER_GRACE_S = 1.0, 5.0


class EngineService:
    """See the module.

    Attributes:
        detail: why the engine is not ready, for people; empty while it is.
        since_ms: when it came into its state, by the wall clock.

    Args:
        url: of the servers, see `redis_engine.address`; empty: the node has no engine.
        replicas_min: see `Servers`.
        keyspace: see `DSS_ENGINE_KEYSPACE`; empty: the cluster's name.
    """

    def __init__(self, node: Node, url: str = "", replicas_min: int = 1, keyspace: str = "") -> None:
        self.state: State = "connecting" if url else "none"
        self.detail = "the node has just started" if url else NONE
        self.since_ms = wall_clock_ms()
        #: see `is_usable`
        self._is_usable = False
        self._node = node
        self._url = url
        self._replicas_min = replicas_min
        self._keyspace = keyspace
        self._servers: Servers | None = None
        self._engine: RedisEngine
        self._administration: Administration
        self._views: Views
        #: end with the service
        self.tasks = Tasks()
        #: a call has failed
        self._wants_check = asyncio.Event()
        node.services[SERVICE] = self

    async def start(self) -> None:
        """Begin to connect."""
        if not self._url:
            return
        # Imported here: it would take a tenth of the start of every node without an engine.
        from dss_queue.redis_engine.administration import Administration
        from dss_queue.redis_engine.engine import RedisEngine
        from dss_queue.redis_engine.servers import Servers
        from dss_queue.redis_engine.views import Views

        self._servers = Servers(self._url, replicas_min=self._replicas_min)
        self._servers.health.on_trouble = self._wants_check.set
        self._engine = RedisEngine(self._servers, node=self._node.node_id, groups_in_log=self._groups_in_log)
        self._administration = Administration(self._servers, self._engine)
        self._views = Views(self._servers, self._engine)
        self.tasks.keep("engine", self._run)

    async def stop(self) -> None:
        """End the waits, and close all connections."""
        await self.tasks.stop()
        if self._servers is not None:
            await self._engine.close()
            await self._servers.close()
            self._servers = None
            self.state, self.detail, self._is_usable = "away", "this node is stopping", False

    # --------------------------------------------------------------- for callers

    def engine(self) -> RedisEngine:
        """
        Raises:
            EngineAway: it is not ready; with the reason.
        """
        self.require_ready()
        return self._engine

    def administration(self) -> Administration:
        """As `engine`."""
        self.require_ready()
        return self._administration

    def views(self) -> Views:
        """As `engine`."""
        self.require_ready()
        return self._views

    @property
    def is_usable(self) -> bool:
        """Whether some of its partitions can be used, although the engine may not be `ready`."""
        return self._is_usable

    def require_ready(self) -> None:
        """Raises:
        EngineAway: none of its partitions can be used; with the reason.
        """
        if not self._is_usable:
            raise EngineAway(self.detail)

    def name_of(self, topic: Topic) -> str:
        """What the engine calls a topic that is on it."""
        assert topic.engine is not None
        return self.name_in(topic.engine.incarnation, topic.name)

    @staticmethod
    def settings_of(topic: Topic) -> TopicSettings:
        """The settings of a topic as the engine needs them."""
        settings = topic.messages.settings
        return settings if topic.queue is None else QueueSettings(**asdict(settings))

    def name_in(self, incarnation: int, topic_name: str) -> str:
        """What the engine calls a topic in an incarnation."""
        return engine_name(self._keyspace or self._node.config.cluster_id, incarnation, topic_name)

    async def check_settings(self, settings: TopicSettings | PutTopicRequest) -> None:
        """Check whether the servers have what settings of a topic on the engine need.

        Raises:
            EngineAway: it is not ready.
            Refused: `not_on_engine`, with the field.
        """
        self.require_ready()
        assert self._servers is not None
        if settings.acks in (None, "primary"):
            return
        try:
            await self._servers.health.check_confirmations(needs_disk=settings.acks == "fsync")
        except UnfitServer as error:
            raise Refused("not_on_engine", f"`acks: {settings.acks}` cannot be kept: {error}", field="acks") from None

    async def _groups_in_log(self, name: str) -> InLog | None:
        """See `GroupsInLog`."""
        incarnation, topic_name = parts_of(name)
        await self._node.read_index()
        topic = cast(Broker, self._node.machine("queue")).topics.get(topic_name)
        if topic is None or topic.engine is None or topic.engine.incarnation != incarnation:
            return None
        # Imported late, as in `start`.
        from dss_queue.redis_engine.lifecycle import InLog

        return InLog(list(topic.groups), topic.engine.is_leaving)

    # -------------------------------------------------------------------- checks

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        servers = self._servers
        assert servers is not None
        pause_s, thorough_at_s = PAUSE_S_MIN, 0.0
        while True:
            began_s = loop.time()
            is_thorough = self.state != "ready" or began_s >= thorough_at_s
            grace_s = CLUSTER_GRACE_S if servers.is_cluster else GRACE_S
            condition = await servers.health.look(is_thorough=is_thorough, grace_s=grace_s)
            if is_thorough:
                thorough_at_s = began_s + THOROUGH_CHECK_S
            self._become(condition.state, condition.detail, is_usable=condition.is_usable)
            if self.state == "ready":
                pause_s = PAUSE_S_MIN
                await asyncio.sleep(CHECK_S_MIN)
                await self._wait(CHECK_S - CHECK_S_MIN)
            else:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)

    async def _wait(self, seconds: float) -> None:
        """Until the time is over, or a call has failed."""
        try:
            async with asyncio.timeout(seconds):
                await self._wants_check.wait()
        except TimeoutError:
            return
        finally:
            self._wants_check.clear()

    def _become(self, state: State, detail: str = "", *, is_usable: bool = False) -> None:
        self._is_usable = is_usable or state == "ready"
        if (state, detail) == (self.state, self.detail):
            return
        if state != self.state:
            self.since_ms = wall_clock_ms()
            if state == "ready":
                log.info("queue.engine_ready")
            else:
                log.warning(f"queue.engine_{state}", reason=detail)
        self.state, self.detail = state, detail


def engine_of(node: Node) -> EngineService:
    """The engine of this node."""
    return cast(EngineService, node.services[SERVICE])
