"""The content of a log entry: a stamped batch of commands, grouped by session.

A group is encoded once, by the node that received the calls. The leader copies it into an entry without decoding it. So the
costs of fsync, framing and bookkeeping arise per batch, not per command.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, Union

import msgspec

from dss_raft.replication.commands import (
    AdvanceTime,
    Cancel,
    Command,
    HashState,
    Nothing,
    OpenSession,
    SetClusterVersion,
    Skip,
)
from dss_raft.versions import LATEST

C = TypeVar("C")

SESSION_COMMANDS: tuple[type[Command], ...] = (Cancel, Nothing, OpenSession)
LEADER_COMMANDS: tuple[type[Command], ...] = (Skip, AdvanceTime, SetClusterVersion, HashState)


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


def command_union(command_types: Sequence[type[Command]], latest: int) -> Any:
    """The type of any command in the log: one of these, or a command of a session or of a leader.

    Args:
        latest: the cluster version of the newest commands.
    """
    known = [each for each in (*command_types, *SESSION_COMMANDS, *LEADER_COMMANDS) if each.since <= latest]
    return Union[(*known,)]


class Undecodable(msgspec.Struct, frozen=True):
    """Takes the place of a command, or of a whole batch, that cannot be decoded."""

    #: for the log only: it depends on the version of the decoder
    reason: str


class BatchDecoder:
    """Decodes entries strictly. What cannot be decoded is replaced by `Undecodable`: no entry makes decoding fail.

    Args:
        command_types: of all state machines.
        latest: newer commands than those of this cluster version are not known.
    """

    def __init__(self, command_types: Sequence[type[Command]], latest: int = LATEST) -> None:
        union: Any = command_union(command_types, latest)
        self._decode: Callable[[bytes], Batch[Any]] = msgspec.msgpack.Decoder(Batch[union]).decode
        self._decode_command: Callable[[Any], Command] = msgspec.msgpack.Decoder(union).decode

    def decode(self, data: bytes) -> Batch[Any] | Undecodable:
        """The batch; if it has a fault, each command is decoded by itself."""
        try:
            return self._decode(data)
        except _NOT_DETERMINISTIC:
            raise
        except Exception:
            return self._decode_parts(data)

    def _decode_parts(self, data: bytes) -> Batch[Any] | Undecodable:
        try:
            raw = _decode_raw(data)
        except _NOT_DETERMINISTIC:
            raise
        except Exception as error:
            return Undecodable(str(error))
        groups = [
            Group(one.node, one.incarnation, one.first_seq, one.answered, [self._command(command) for command in one.commands])
            for one in raw.groups
        ]
        return Batch(raw.at_ms, [self._command(command) for command in raw.own], groups)

    def _command(self, command: msgspec.Raw) -> Command | Undecodable:
        try:
            return self._decode_command(command)
        except _NOT_DETERMINISTIC:
            raise
        except Exception as error:
            return Undecodable(str(error))


_decode_raw = msgspec.msgpack.Decoder(Batch[msgspec.Raw]).decode
#: Faults of one node at one moment. They say nothing about the data.
_NOT_DETERMINISTIC = (MemoryError, RecursionError)
