"""The commands that create and delete topics and groups, beyond `PutTopic`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from dss_api.fields import Fields, Name, check_name
from dss_queue.core.commands import MessageId
from dss_raft.replication.commands import Command

#: Topics that one `DropIdle` names.
IDLE_PER_COMMAND_MAX = 1000


class DeleteTopic(Command, tag="queue.topic_delete", kw_only=True):
    """Delete a topic with its messages, dead letters, groups and settings."""

    topic: Name

    def __post_init__(self) -> None:
        check_name("topic", self.topic)


class GroupFields(Fields, kw_only=True):
    topic: Name
    group: Name

    def __post_init__(self) -> None:
        check_name("topic", self.topic)
        check_name("group", self.group)


class PutGroup(GroupFields, Command, tag="queue.group", kw_only=True):
    """Create a group before its first consume. An existing group stays as it is."""

    #: "first": the oldest retained message; "now": the next message that is published, or whose delay ends
    start: Literal["first", "now"] = "first"
    #: start with this message, or the next retained one after it; not with `start`
    msg_id: MessageId | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.msg_id is not None and self.start != "first":
            raise ValueError("give either `start` or `msg_id`")


class CreateGroup(GroupFields, Command, tag="queue.create_group", kw_only=True):
    """Create a group as a consume does: a topic that nothing uses is still deleted. For consumes that continue on the engine `redis`."""

    since: ClassVar[int] = 5


class DeleteGroup(GroupFields, Command, tag="queue.group_delete", kw_only=True):
    """Delete a group with its dead letters. Messages that only this group had not finished are deleted, too."""


class DeleteDead(GroupFields, Command, tag="queue.delete_dead", kw_only=True):
    """Delete one dead letter of a group. `Purge` deletes all of them."""

    since: ClassVar[int] = 5

    msg_id: MessageId


class PutQueueSettings(Command, tag="queue.settings", kw_only=True):
    """Settings of all topics, for the whole cluster. A field that is left out gets its default."""

    #: whether `publish` and `consume` create a topic that does not exist; otherwise they are refused
    create_topics: bool = True


class DropIdle(Command, tag="queue.drop_idle", kw_only=True):
    """Delete those of these topics that are empty and have no settings. The leader proposes it for topics that were not used."""

    topics: Annotated[list[Name], msgspec.Meta(max_length=IDLE_PER_COMMAND_MAX)]
