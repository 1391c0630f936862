"""The content of a log entry: a stamped batch of commands, grouped by session.

A group is encoded once, by the node that received the calls. The leader copies it into an entry without decoding it. So the
costs of fsync, framing and bookkeeping arise per batch, not per command.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, Union

import msgspec

from dss_raft.formats import Format, WrongFormat, array_version
from dss_raft.replication.commands import (
    AdvanceTime,
    Cancel,
    Command,
    HashState,
    Nothing,
    Once,
    OpenSession,
    SetClusterVersion,
    Skip,
)
from dss_raft.versions import LATEST

C = TypeVar("C")

#: of an entry with commands
FORMAT = Format("this entry of the log", 1, oldest=0)
#: of a group, from the node of its callers to the leader and in an entry
GROUP_FORMAT = Format("this group of commands", 1)

SESSION_COMMANDS: tuple[type[Command], ...] = (Cancel, Nothing, Once, OpenSession)
LEADER_COMMANDS: tuple[type[Command], ...] = (Skip, AdvanceTime, SetClusterVersion, HashState)


class Group(msgspec.Struct, Generic[C], array_like=True, frozen=True):
    """Consecutive commands of one session."""

    #: of the format; it is read first
    version: int
    node: str
    incarnation: int
    #: sequence number of `commands[0]`; the others follow without a gap
    first_seq: int
    #: sequence numbers whose results have reached their callers, so that the session table may drop them
    answered: list[int]
    commands: list[C]


class Batch(msgspec.Struct, Generic[C], array_like=True, frozen=True):
    """The data of a COMMANDS entry."""

    #: of the format; it is read first
    version: int
    #: the leader's stamp (`StampClock`) in ms; applied time never goes back even if the stamp does
    at_ms: int
    #: the leader's own commands; never sent again after a leader change
    own: list[C]
    groups: list[Group[C]]


class _EncodedBatch(msgspec.Struct, array_like=True, frozen=True):
    version: int
    at_ms: int
    own: list[msgspec.Raw]
    groups: list[msgspec.Raw]


class _GroupV0(msgspec.Struct, Generic[C], array_like=True, frozen=True):
    """A group of releases up to 662b62d."""

    node: str
    incarnation: int
    first_seq: int
    answered: list[int]
    commands: list[C]


class _BatchV0(msgspec.Struct, Generic[C], array_like=True, frozen=True):
    """An entry of releases up to 662b62d: the only array of three elements."""

    at_ms: int
    own: list[C]
    groups: list[_GroupV0[C]]


#: how data of `FORMAT` begin: an array of four elements, and the version
_START = bytes([0x94, FORMAT.version])
_START_V0 = b"\x93"
_encoder = msgspec.msgpack.Encoder()


def encode_command(command: Command) -> bytes:
    """A command as it is encoded in a group."""
    return _encoder.encode(command)


def encode_group(node: str, incarnation: int, first_seq: int, answered: list[int], commands: Sequence[bytes]) -> bytes:
    """A group of encoded commands, ready for the leader."""
    raw = [msgspec.Raw(command) for command in commands]
    return _encoder.encode(Group(GROUP_FORMAT.version, node, incarnation, first_seq, answered, raw))


def encode_batch(at_ms: int, own: Sequence[bytes], groups: Sequence[bytes]) -> bytes:
    """The data of an entry, from groups as they arrived."""
    raw_own, raw_groups = [msgspec.Raw(command) for command in own], [msgspec.Raw(group) for group in groups]
    return _encoder.encode(_EncodedBatch(FORMAT.version, at_ms, raw_own, raw_groups))


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
    """Decodes entries strictly. What cannot be decoded is replaced by `Undecodable`: no entry of a known version makes decoding fail.

    Args:
        command_types: of all state machines.
        latest: newer commands than those of this cluster version are not known.
    """

    def __init__(self, command_types: Sequence[type[Command]], latest: int = LATEST) -> None:
        union: Any = command_union(command_types, latest)
        self._decode: Callable[[bytes], Batch[Any]] = msgspec.msgpack.Decoder(Batch[union]).decode
        self._decode_v0: Callable[[bytes], _BatchV0[Any]] = msgspec.msgpack.Decoder(_BatchV0[union]).decode
        self._decode_command: Callable[[Any], Command] = msgspec.msgpack.Decoder(union).decode

    def decode(self, data: bytes) -> Batch[Any] | Undecodable:
        """The batch; if it has a fault, each command is decoded by itself.

        Raises:
            WrongFormat: a newer release wrote it.
        """
        try:
            return self._decode(data) if data.startswith(_START) else _present(data, self._decode_v0)
        except _MUST_BE_RAISED:
            raise
        except Exception:
            return self._decode_parts(data)

    def command(self, data: bytes) -> Command | Undecodable:
        """One command, as `encode_command` made it."""
        return self._command(msgspec.Raw(data))

    def _decode_parts(self, data: bytes) -> Batch[Any] | Undecodable:
        try:
            raw = decode_raw(data)
        except _MUST_BE_RAISED:
            raise
        except Exception as error:
            return Undecodable(str(error))
        groups = [
            msgspec.structs.replace(group, commands=[self._command(command) for command in group.commands])
            for group in raw.groups
        ]
        return Batch(raw.version, raw.at_ms, [self._command(command) for command in raw.own], groups)

    def _command(self, command: msgspec.Raw) -> Command | Undecodable:
        try:
            return self._decode_command(command)
        except _MUST_BE_RAISED:
            raise
        except Exception as error:
            return Undecodable(str(error))


def decode_raw(data: bytes) -> Batch[msgspec.Raw]:
    """The batch, with its commands as they are encoded.

    Raises:
        WrongFormat: a newer release wrote it.
        msgspec.DecodeError: it is not a batch.
    """
    return _decode_raw(data) if data.startswith(_START) else _present(data, _decode_raw_v0)


def require_format(data: bytes, name: str) -> None:
    """Raises:
    WrongFormat: `data`, an entry with commands, was written by a newer release.
    """
    if not data.startswith((_START, _START_V0)):
        FORMAT.require(array_version(data) or 0, name)


def _present(data: bytes, decode_v0: Callable[[bytes], _BatchV0[C]]) -> Batch[C]:
    """Convert a batch that does not begin as this release writes it to the present form."""
    if not data.startswith(_START_V0):
        FORMAT.require(array_version(data) or 0)
        raise msgspec.DecodeError("it does not begin as a batch")
    old = decode_v0(data)
    groups = [Group(0, group.node, group.incarnation, group.first_seq, group.answered, group.commands) for group in old.groups]
    return Batch(0, old.at_ms, old.own, groups)


_decode_raw = msgspec.msgpack.Decoder(Batch[msgspec.Raw]).decode
_decode_raw_v0 = msgspec.msgpack.Decoder(_BatchV0[msgspec.Raw]).decode
#: Lack of memory or stack is a fault of one node at one moment, and says nothing about the data. A newer format is not a fault.
_MUST_BE_RAISED = (MemoryError, RecursionError, WrongFormat)
