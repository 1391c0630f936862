"""The content of a log entry: a stamped batch of commands, grouped by session.

A group is encoded once, by the node that received the calls. The leader copies it into an entry without decoding it. So the
costs of fsync, framing and bookkeeping arise per batch, not per command.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar, Union

import msgspec

from dss_raft.replication.commands import Cancel, Command, Nothing, OpenSession

C = TypeVar("C")

SESSION_COMMANDS: tuple[type[Command], ...] = (Cancel, Nothing, OpenSession)


class Group(msgspec.Struct, Generic[C], array_like=True, frozen=True):
    """Consecutive commands of one session."""

    node: str
    incarnation: int
    #: sequence number of `commands[0]`; the others follow without a gap
    first_seq: int
    #: sequence numbers whose results have reached their callers, so that the session table may drop them
    answered: list[int]
    commands: list[C]


class Batch(msgspec.Struct, Generic[C], array_like=True, frozen=True):
    """The data of a COMMANDS entry."""

    #: the leader's stamp (`StampClock`) in ms; applied time never goes back even if the stamp does
    at_ms: int
    #: the leader's own commands; never sent again after a leader change
    own: list[C]
    groups: list[Group[C]]


class _EncodedBatch(msgspec.Struct, array_like=True, frozen=True):
    at_ms: int
    own: list[msgspec.Raw]
    groups: list[msgspec.Raw]


_encoder = msgspec.msgpack.Encoder()


def encode_command(command: Command) -> bytes:
    """A command as it is encoded in a group."""
    return _encoder.encode(command)


def encode_group(node: str, incarnation: int, first_seq: int, answered: list[int], commands: Sequence[bytes]) -> bytes:
    """A group of encoded commands, ready for the leader."""
    return _encoder.encode(Group(node, incarnation, first_seq, answered, [msgspec.Raw(command) for command in commands]))


def encode_batch(at_ms: int, own: Sequence[bytes], groups: Sequence[bytes]) -> bytes:
    """The data of an entry, from groups as they arrived."""
    return _encoder.encode(
        _EncodedBatch(at_ms, [msgspec.Raw(command) for command in own], [msgspec.Raw(group) for group in groups])
    )


def batch_decoder(command_types: Sequence[type[Command]]) -> msgspec.msgpack.Decoder[Batch[Any]]:
    """A strict decoder for entries with these commands and the session commands."""
    union: Any = Union[(*command_types, *SESSION_COMMANDS)]
    return msgspec.msgpack.Decoder(Batch[union])
