"""The base Struct of every command, and the commands of a session.

A command is the one definition of a request's field names, limits and defaults: the JSON fast path decodes into it, DRF's
serializers and the OpenAPI schema are derived from it, and its msgpack form is what the Raft log holds. Every field is
written to the log, defaults included, so that changing a default never changes what an old entry means.

Fields that the log keeps in another form than the client sends (a JSON value is kept as its encoded bytes) stand in a
common base with two children: the request, and the command.
"""

from __future__ import annotations

from dss_api.fields import Fields, Index


class Command(Fields, tag_field="op"):
    """Base of everything that is proposed to Raft. A subclass names itself with `tag="locks.acquire"`."""


class Cancel(Command, tag="session.cancel"):
    """Undo the earlier command `seq` of the same session: its caller has gone.

    A command that still waits is taken out of its queue. One that was answered in the meantime (a lock granted, messages
    handed out) is given back, because nobody will ever see that answer.
    """

    seq: Index


class Nothing(Command, tag="session.nothing"):
    """Takes the place of a command whose caller was told `unknown_outcome` before it was ever applied.

    It keeps the session's sequence without a gap, and keeps the late command from having an effect nobody expects.
    """


class OpenSession(Command, tag="session.open"):
    """First command of a new incarnation of a node: closes the session of the previous one."""
