"""The check that every command passes before it can reach the log.

A committed command that cannot be decoded would stop every node that applies it. So a node proposes only what the replica's own
decoder accepts: each command is encoded once, measured, and decoded again with the types of all state machines. This covers the
fields that a node computes itself, which no request decoder has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from dss_api.codec import invalid
from dss_api.errors import Refused
from dss_api.request_id import RequestId
from dss_raft.replication.batch import command_union, encode_command
from dss_raft.replication.commands import Command, Once
from dss_raft.size_limits import COMMAND_BYTES_MAX
from dss_raft.versions import LATEST, MIN


class Admission:
    """Encodes the commands of one node.

    Args:
        command_types: of all state machines.
        cluster_version: returns the present one; newer commands are refused.
    """

    def __init__(self, command_types: Sequence[type[Command]], cluster_version: Callable[[], int] = lambda: LATEST) -> None:
        self._decode = msgspec.msgpack.Decoder(command_union(command_types, LATEST)).decode
        self._cluster_version = cluster_version

    def encode(self, command: Command) -> bytes:
        """The command as it is stored in the log.

        Raises:
            Refused: `too_large`; `invalid` with the field, if the log's decoder would not accept it; `not_supported_yet` if not all
                members of the cluster know it.
        """
        if command.since > MIN:
            self._require_version(command.since)
        try:
            encoded = encode_command(command)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise _not_encodable(command, error) from None
        if len(encoded) > COMMAND_BYTES_MAX:
            raise Refused(
                "too_large", f"the call needs {len(encoded)} bytes in the log; a command has at most {COMMAND_BYTES_MAX}"
            )
        try:
            self._decode(encoded)
        except msgspec.ValidationError as error:
            raise invalid(str(error)) from None
        except (ValueError, RecursionError) as error:
            raise Refused("invalid", f"the call cannot be stored: {error}") from None
        return encoded

    def encode_once(self, command: Command, once: RequestId) -> bytes:
        """The command of a client's request as it is stored in the log: an `Once`.

        Raises:
            Refused: as `encode`.
        """
        return self.encode(
            Once(
                session=once.session,
                number=once.number,
                part=once.part,
                answered=once.answered,
                digest=once.digest,
                command=self.encode(command),
            )
        )

    def _require_version(self, since: int) -> None:
        version = self._cluster_version()
        if since > version:
            raise Refused(
                "not_supported_yet",
                f"this call needs cluster version {since}, and the cluster has version {version} until all members support a newer one",
                needed=since,
                cluster_version=version,
            )


def _not_encodable(command: Any, error: Exception) -> Refused:
    """The refusal of a command that msgpack cannot express, such as an integer beyond 64 bits."""
    for name in command.__struct_fields__:
        try:
            msgspec.msgpack.encode(getattr(command, name))
        except (TypeError, ValueError, OverflowError, RecursionError):
            return Refused("invalid", f"`{name}`: {error}", field=name)
    return Refused("invalid", f"the call cannot be stored: {error}")
