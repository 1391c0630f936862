"""Topics on the engine `redis`: what the log knows of them.

The settings of a topic, its groups and the choice of its engine are in the log. Its messages are on Valkey or Redis while `engine` is
`redis`. Nothing is copied when a topic moves: what is there is delivered from where it is, before anything that came later.

    in the log ──SetTopic, engine: redis──▶ on the engine ──SetTopic, engine: raft──▶ leaving
    leaving ──EngineClosed──▶ leaving, closed ──EngineLeft──▶ in the log

- *On the engine*: nothing more is published in the log. A group first gets what it has not finished in the log. When it has finished that,
  a consume is answered `on_engine`, and the node asks the engine.
- *Leaving*: a node that does not know of the move yet still publishes on the engine. So the log takes no messages before a node says that
  the engine takes none any more (`EngineClosed`). Otherwise both could have messages of a key, and later ones could be delivered first.
- *Leaving, closed*: new messages are published in the log.
- While a topic leaves, nodes deliver what is on the engine first: the log answers a consume `on_engine`, unless the node says that the
  group has nothing left there (`ConsumeAfterEngine`). The leader says when nothing is left at all.

Each stay on the engine has a number, its *incarnation*, which is part of the names of its keys: a topic that is deleted and created
again, or comes back, never meets old keys. When a stay is over, its incarnation is *abandoned*: the leader deletes the keys, and
says so (`EngineForgotten`).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from dss_api.fields import Name, check_name
from dss_api.result import Result
from dss_queue.core.commands import Acks, ConsumeRuns, Engine, PutTopicRequest, TopicSettings
from dss_raft.replication.commands import Command
from dss_raft.replication.limits import text_bytes

#: Incarnations whose keys are still to be deleted. No topic moves to the engine while there are that many.
ABANDONED_MAX = 10_000
#: Incarnations that one `EngineForgotten` names.
FORGOTTEN_PER_COMMAND_MAX = 1000
#: Bits of the serial number in an incarnation: enough for those that begin in one millisecond.
SERIAL_BITS = 20
#: An incarnation, in use or abandoned; the name of its topic is added.
INCARNATION_BYTES = 384

Incarnation = Annotated[int, msgspec.Meta(ge=0)]


class EngineUse(msgspec.Struct, array_like=True, frozen=True):
    """The part of a topic that is on the engine `redis`."""

    #: unique in the broker
    incarnation: int
    #: the topic is back in the log: what is on the engine is delivered first
    is_leaving: bool = False
    #: it is leaving, and the engine takes no more messages: the log takes them
    is_closed: bool = False


class ConsumeAfterEngine(ConsumeRuns, tag="queue.consume_after_engine", kw_only=True):
    """Take messages of a group that has nothing left on the engine `redis`, which its topic is leaving.

    A consume that was made before the node knew of the move would overtake what is on the engine.
    """

    #: the stay on the engine in which the group has finished everything
    incarnation: Incarnation


class EngineClosed(Command, tag="queue.engine_closed", kw_only=True):
    """The engine takes no more messages of a topic that is leaving it. The node has closed all partitions before."""

    since: ClassVar[int] = 5

    topic: Name
    incarnation: Incarnation

    def __post_init__(self) -> None:
        check_name("topic", self.topic)


class EngineLeft(Command, tag="queue.engine_left", kw_only=True):
    """The engine has nothing left of a topic that is leaving it. The leader proposes it."""

    since: ClassVar[int] = 5

    topic: Name
    incarnation: Incarnation

    def __post_init__(self) -> None:
        check_name("topic", self.topic)


class EngineForgotten(Command, tag="queue.engine_forgotten", kw_only=True):
    """The keys of these abandoned incarnations are deleted. The leader proposes it."""

    since: ClassVar[int] = 5

    incarnations: Annotated[list[Incarnation], msgspec.Meta(max_length=FORGOTTEN_PER_COMMAND_MAX)]


def new_incarnation(at_ms: int, serial: int) -> int:
    """A number that no other stay has. The time is in it: a cluster that begins again with the same name and empty disks does not meet
    the keys that the servers still have.

    Args:
        serial: of the broker, used only here.
    """
    return at_ms << SERIAL_BITS | serial % (1 << SERIAL_BITS)


def started_ms(incarnation: int) -> int:
    """When this stay on the engine began, by the clock of the log."""
    return incarnation >> SERIAL_BITS


def incarnation_bytes(topic: str) -> int:
    """The bytes of an incarnation of a topic with this name, in use or abandoned."""
    return INCARNATION_BYTES + text_bytes(topic)


def on_engine(topic: str) -> Result:
    """The refusal of a command about messages that the engine has, or may still get. A node asks the engine, or closes it, and clients do
    not see it."""
    return Result({"topic": topic, "detail": f"the messages of topic {topic!r} are on the engine `redis`"}, "on_engine")


def not_on_engine(field: str, detail: str) -> Result:
    """The refusal of what a topic on the engine cannot have."""
    return Result({"field": field, "detail": detail}, "not_on_engine")


def chosen(engine: Engine | None, acks: Acks | None, present: TopicSettings | None) -> tuple[Engine, Acks]:
    """The settings `engine` and `acks` after a call that may leave them out.

    Args:
        present: of the topic before the call; None: it does not exist.
    """
    present = present or TopicSettings()
    engine = engine or present.engine
    is_same = engine == present.engine
    return engine, acks or (present.acks if is_same else TopicSettings().acks)


def contradiction(settings: TopicSettings | PutTopicRequest) -> Result | None:
    """A refusal of settings that exclude each other, whatever the topic."""
    if settings.engine is None:
        return None
    if settings.engine == "raft":
        if settings.acks in (None, "primary"):
            return None
        return Result(
            {"field": "acks", "detail": "`acks` goes with `engine: redis`; in the log, a majority of disks acks"}, "invalid"
        )
    if settings.keep_ms:
        return not_on_engine("keep_ms", "a topic on the engine `redis` cannot have `keep_ms`")
    if settings.dead_letter_topic:
        detail = "a topic on the engine `redis` cannot have a `dead_letter_topic`: dead letters stay with their group"
        return not_on_engine("dead_letter_topic", detail)
    return None
