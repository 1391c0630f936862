"""How large things may be on their way through Raft. Each limit follows from the one below it, so that what was accepted can be sent.

    value < command < group < entry < AppendEntries < frame

A command that is accepted fits into a group, a group into an entry, and an entry into one frame between members: no caller can
bring about an entry that its leader cannot replicate. The limits are fixed by the version of the program, because all members must
agree on them. Only the limits of a value and of a request's body are settings, and they cannot exceed what is given here.
"""

from __future__ import annotations

from typing import Final

MIB: Final = 1024 * 1024
KIB: Final = 1024

#: One encoded command, with everything in it. Larger ones are refused before they reach the log.
COMMAND_BYTES_MAX: Final = 8 * MIB
#: What a command has besides the values of its caller: names, numbers, headers of a message.
COMMAND_OVERHEAD_BYTES: Final = 128 * KIB
#: Upper bound of the setting DSS_VALUE_BYTES_MAX.
VALUE_BYTES_MAX: Final = COMMAND_BYTES_MAX - COMMAND_OVERHEAD_BYTES
#: Upper bound of the setting DSS_BODY_BYTES_MAX: a longer body could not become a command.
BODY_BYTES_MAX: Final = COMMAND_BYTES_MAX

#: A group takes further commands until it has this many bytes.
GROUP_FILL_BYTES: Final = 512 * KIB
#: Confirmed results that one group names; the others are named by the next groups.
ANSWERED_PER_GROUP_MAX: Final = 4096
#: An integer in msgpack.
_INTEGER_BYTES: Final = 9
#: Ids, list headers and the fixed fields of a Struct.
_HEAD_BYTES: Final = 4 * KIB
GROUP_BYTES_MAX: Final = GROUP_FILL_BYTES + COMMAND_BYTES_MAX + ANSWERED_PER_GROUP_MAX * _INTEGER_BYTES + _HEAD_BYTES

#: An entry takes further groups and commands of the leader until it has this many bytes.
ENTRY_FILL_BYTES: Final = MIB
ENTRY_BYTES_MAX: Final = ENTRY_FILL_BYTES + GROUP_BYTES_MAX + _HEAD_BYTES

#: One AppendEntries takes entries of this many bytes together, or a single larger one.
APPEND_FILL_BYTES: Final = MIB
APPEND_ENTRIES_MAX: Final = 1024
#: index, term, kind, the length of the data
_ENTRY_HEAD_BYTES: Final = 4 * _INTEGER_BYTES
APPEND_BYTES_MAX: Final = max(APPEND_FILL_BYTES, ENTRY_BYTES_MAX) + APPEND_ENTRIES_MAX * _ENTRY_HEAD_BYTES + _HEAD_BYTES

#: What members send each other, in one piece.
FRAME_BYTES_MAX: Final = 16 * MIB

assert VALUE_BYTES_MAX < COMMAND_BYTES_MAX < GROUP_BYTES_MAX < ENTRY_BYTES_MAX < APPEND_BYTES_MAX < FRAME_BYTES_MAX
