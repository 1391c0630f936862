"""The commands that move topics to the engine `redis` and back. See engines.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dss_api.result import Result
from dss_queue.core.commands import TopicSettings
from dss_queue.core.engines import (
    ABANDONED_MAX,
    EngineClosed,
    EngineForgotten,
    EngineLeft,
    EngineUse,
    contradiction,
    incarnation_bytes,
    new_incarnation,
    not_on_engine,
)
from dss_queue.core.publishing import over_limit
from dss_queue.core.registry import Registry
from dss_queue.core.topic import Topic
from dss_raft.replication.commands import Command
from dss_raft.replication.machine import Origin


class EngineMoves:
    """See the module. `topics` are the topics of a broker by name."""

    def __init__(self, topics: dict[str, Topic], registry: Registry) -> None:
        self._topics = topics
        self._registry = registry
        self.appliers: dict[type[Command], Callable[[Any, int, int, Origin], Result | None]] = {
            EngineClosed: self._closed,
            EngineLeft: self._left,
            EngineForgotten: self._forgotten,
        }

    def needed(self, name: str, settings: TopicSettings, *, is_queue: bool = False) -> int | Result:
        """How many bytes more a topic needs with these settings, or a refusal of them.

        Args:
            is_queue: it is, or becomes, a queue of the SQS endpoint.
        """
        refused = contradiction(settings)
        if refused is not None:
            return refused
        topic = self._topics.get(name)
        target = self._topics.get(settings.dead_letter_topic)
        is_new = topic is None or topic.messages.settings.dead_letter_topic != settings.dead_letter_topic
        if is_new and target is not None and target.is_on_engine:
            detail = f"topic {target.name!r} is on the engine `redis`, which gets no dead letters of other topics"
            return not_on_engine("dead_letter_topic", detail)
        if settings.engine == "raft":
            # What is published from then on would mix with what is left from before, and overtake what is on the engine.
            is_coming = topic is not None and topic.moving_from == "raft"
            return _is_moving(name, "the log to the engine `redis`") if is_coming else 0
        if is_queue and self._registry.is_subscribed(name):
            return not_on_engine("engine", f"queue {name!r} is subscribed to a topic of SNS, which needs the engine `raft`")
        if topic is not None and topic.engine is not None:
            return _is_moving(name, "the engine `redis` to the log") if topic.engine.is_leaving else 0
        abandoned = len(self._registry.abandoned)
        if abandoned >= ABANDONED_MAX:
            detail = f"{abandoned} topics have left the engine `redis`, and their keys there are not deleted yet"
            return over_limit("abandoned_max", ABANDONED_MAX, detail)
        return incarnation_bytes(name)

    def change_settings(self, topic: Topic, settings: TopicSettings, at_ms: int) -> None:
        """Replace the settings of a topic, for which `needed` gave no refusal; it moves if they name another engine."""
        topic.settings_changed(settings, at_ms)
        use = topic.engine
        if settings.engine == "raft":
            if use is not None and not use.is_leaving:
                topic.set_engine(EngineUse(use.incarnation, is_leaving=True))
            return
        if use is None:
            topic.set_engine(EngineUse(new_incarnation(at_ms, self._registry.next_serial())))
        topic.serve(at_ms)

    def _leaving(self, command: EngineClosed | EngineLeft) -> Topic | None:
        """The topic of a command, if it is leaving in this incarnation."""
        topic = self._topics.get(command.topic)
        use = None if topic is None else topic.engine
        return topic if use is not None and use.is_leaving and use.incarnation == command.incarnation else None

    def _closed(self, command: EngineClosed, at_ms: int, index: int, origin: Origin) -> Result:
        topic = self._leaving(command)
        if topic is not None:
            topic.set_engine(EngineUse(command.incarnation, is_leaving=True, is_closed=True))
        return Result({"closed": topic is not None})

    def _left(self, command: EngineLeft, at_ms: int, index: int, origin: Origin) -> Result:
        topic = self._leaving(command)
        if topic is not None:
            topic.abandon_engine()
            # The log does not know of the calls that the engine has answered.
            topic.used_ms = at_ms
        return Result({"left": topic is not None})

    def _forgotten(self, command: EngineForgotten, at_ms: int, index: int, origin: Origin) -> Result:
        # As an ordered set: nothing prevents a leader from naming one twice.
        known = [one for one in dict.fromkeys(command.incarnations) if one in self._registry.abandoned]
        for incarnation in known:
            self._registry.forget(incarnation)
        return Result({"forgotten": len(known)})


def _is_moving(name: str, way: str) -> Result:
    detail = f"topic {name!r} is still being moved from {way}; wait until `queue.stats` shows no `moving_from`"
    return Result({"field": "engine", "detail": detail}, "moving")
