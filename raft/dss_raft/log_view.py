"""A log entry in a form that people can read. It needs no types of commands, so it shows what cannot be decoded or applied, too."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from dss_raft.answers import LogCommand, LogEntry, LogGroup
from dss_raft.core.membership import decode as decode_configuration
from dss_raft.core.messages import Entry, EntryKind
from dss_raft.formats import WrongFormat
from dss_raft.replication.batch import Batch, decode_raw
from dss_raft.replication.commands import Once

#: What is shown of an entry; the rest is counted.
COMMANDS_SHOWN_MAX = 1000
BYTES_SHOWN_MAX = 256 * 1024
TEXT_SHOWN_MAX = 1024
#: instead of the hash of a password
HIDDEN = "(hidden)"


def show(entry: Entry, *, committed: bool | None, applied: bool | None, skipped: bool | None) -> LogEntry:
    """Everything in one entry; long parts are cut. None: not known, because no node runs."""
    kinds = {kind.value: kind.name.lower() for kind in EntryKind}
    view = LogEntry(
        index=entry.index,
        term=entry.term,
        kind=kinds.get(entry.kind, str(entry.kind)),
        bytes=len(entry.data),
        committed=committed,
        applied=applied,
        skipped=skipped,
    )
    try:
        if entry.kind == EntryKind.CONFIGURATION:
            view.members = [member.id for member in decode_configuration(entry).members]
        elif entry.kind == EntryKind.COMMANDS:
            _show_batch(view, decode_raw(entry.data))
    except (ValueError, RecursionError, WrongFormat) as error:
        view.fault = f"cannot be decoded: {error}"
    return view


def _show_batch(view: LogEntry, batch: Batch[msgspec.Raw]) -> None:
    room = _Room()
    view.at_ms = batch.at_ms
    view.own = [room.show(0, command) for command in batch.own if room.is_left]
    view.groups = [
        LogGroup(
            node=group.node,
            boot=group.incarnation,
            first_seq=group.first_seq,
            commands=[room.show(seq, command) for seq, command in enumerate(group.commands, group.first_seq) if room.is_left],
        )
        for group in batch.groups
    ]
    total = len(batch.own) + sum(len(group.commands) for group in batch.groups)
    view.commands_left_out = total - room.commands


class _Room:
    """Counts what has been shown."""

    def __init__(self) -> None:
        self.commands = 0
        self._bytes = 0

    @property
    def is_left(self) -> bool:
        return self.commands < COMMANDS_SHOWN_MAX and self._bytes < BYTES_SHOWN_MAX

    def show(self, seq: int, raw: msgspec.Raw) -> LogCommand:
        self.commands += 1
        self._bytes += min(len(bytes(raw)), TEXT_SHOWN_MAX)
        try:
            decoded = msgspec.msgpack.decode(raw)
        except (ValueError, RecursionError) as error:
            return LogCommand(seq=seq, op="", fields={"undecodable": _text(bytes(raw)), "error": str(error)})
        if not isinstance(decoded, dict):
            return LogCommand(seq=seq, op="", fields={"value": _readable(decoded)})
        if decoded.get("op") == Once.__struct_config__.tag:
            decoded["command"] = _decoded(decoded.get("command"))
        op = str(decoded.pop("op", ""))
        return LogCommand(seq=seq, op=op, fields=_readable(decoded))


def _decoded(command: Any) -> Any:
    """The command inside an `Once`; as it is, if it cannot be decoded."""
    try:
        return msgspec.msgpack.decode(command)
    except (TypeError, ValueError, RecursionError):
        return command


def _readable(value: Any) -> Any:
    """The value in JSON's types. Bytes are text if they are UTF-8, else base64; integers beyond 53 bits are text."""
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, str):
        return _cut(value)
    if isinstance(value, dict):
        return {str(name): HIDDEN if name == "password_hash" and part else _readable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(part) for part in value]
    if isinstance(value, bool | None | float):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**53 else str(value)
    return str(value)


def _text(data: bytes) -> str:
    try:
        return _cut(data.decode())
    except UnicodeDecodeError:
        return _cut("base64:" + base64.b64encode(data[:TEXT_SHOWN_MAX]).decode())


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_SHOWN_MAX else f"{text[:TEXT_SHOWN_MAX]}… ({len(text)} characters)"
