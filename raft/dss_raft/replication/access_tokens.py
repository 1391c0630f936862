"""The tokens of callers, as replicated state: every node knows all of them, and a revocation ends a token on every node.

Theory of operation
-------------------
1. A token is an id, a name, scopes (`dss_api.rights`) and a generation. Nothing secret is stored: a node computes the secret from a key
   of the cluster, the id and the generation (`dss_api.token_text`). `key` names the key with which the secret was made, so that a node
   with several keys knows which one to use.
2. Scopes never change. A token with other scopes is a new token.
3. Rotation raises the generation. The secret of the generation before stays valid for `overlap_ms`, so that clients can change over.
4. A token expires when applied time reaches its `expires_ms`. It stays in the list, so that an operator sees why calls fail, until it is
   revoked or until its place is needed. Applied time does not advance on a node that is cut off from the cluster.
5. Once the first token exists, the cluster is closed for calls without a token, and stays so: revoking the last token must not open it.
6. The time of the last use is coarse. Nodes report it in batches (`NoteTokensUsed`), at most once in `USE_STEP_MS` for each token.

The machine is empty below the cluster version that has its commands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Any, ClassVar

import msgspec

from dss_api.fields import DurationMs, Name, OptionalName, check_name
from dss_api.result import Result
from dss_api.rights import SCOPE_LENGTH_MAX, SCOPES_PER_TOKEN_MAX
from dss_api.token_text import ID_PATTERN, KEY_PATTERN
from dss_raft.core.messages import Entry, EntryKind
from dss_raft.replication.commands import Command
from dss_raft.replication.limits import StateLimit, StateLimits, text_bytes
from dss_raft.replication.machine import Event, Origin, WithoutWaiters

SINCE = 4
#: every entry with a `CreateToken` contains these bytes
CREATE_TAG = b"tokens.create"
TOKENS_LIMIT = "tokens_max"
TOKENS_MAX_DEFAULT = 1_000
#: The last use is as exact as this.
USE_STEP_MS = 3_600_000
USED_PER_COMMAND_MAX = 1_000
OVERLAP_MS_MAX = 30 * 24 * 3600 * 1000
#: What a token costs in the account besides its texts, with the objects around it.
TOKEN_BYTES = 1024
SCOPE_BYTES = 128

TokenId = Annotated[str, msgspec.Meta(pattern=ID_PATTERN, description="the part of a token that is not secret")]
KeyId = Annotated[str, msgspec.Meta(pattern=KEY_PATTERN)]
#: Which texts are scopes is checked before a command is proposed: a later release may have more of them.
ScopeText = Annotated[str, msgspec.Meta(min_length=1, max_length=SCOPE_LENGTH_MAX)]
Scopes = Annotated[list[ScopeText], msgspec.Meta(min_length=1, max_length=SCOPES_PER_TOKEN_MAX)]
OverlapMs = Annotated[int, msgspec.Meta(ge=0, le=OVERLAP_MS_MAX)]


class CreateToken(Command, tag="tokens.create", kw_only=True):
    """Add a token."""

    since: ClassVar[int] = SINCE

    #: random; made by the node that got the call
    id: TokenId
    name: Name
    scopes: Scopes
    #: names the key with which its secret is made
    key: KeyId
    #: 0: never
    expires_in_ms: DurationMs = 0
    #: who made it
    by: OptionalName = ""

    def __post_init__(self) -> None:
        check_name("name", self.name)
        check_name("by", self.by)


class RotateToken(Command, tag="tokens.rotate", kw_only=True):
    """Give a token another secret."""

    since: ClassVar[int] = SINCE

    id: TokenId
    key: KeyId
    #: the present secret stays valid for this time
    overlap_ms: OverlapMs = 0


class RevokeToken(Command, tag="tokens.revoke", kw_only=True):
    """Delete a token."""

    since: ClassVar[int] = SINCE

    id: TokenId


class NoteTokensUsed(Command, tag="tokens.used", kw_only=True):
    """A node's: calls were made with these tokens since they were last reported."""

    since: ClassVar[int] = SINCE

    ids: Annotated[list[TokenId], msgspec.Meta(max_length=USED_PER_COMMAND_MAX)]


class TokensChanged(Event, frozen=True):
    """A token was added, rotated or revoked, or a secret has expired."""


@dataclass(slots=True, eq=False)
class AccessToken:
    """One token. All times are applied time."""

    id: str
    name: str
    scopes: tuple[str, ...]
    #: from 1; part of what its secret is computed from
    generation: int
    key: str
    created_ms: int
    #: 0: never
    expires_ms: int
    created_by: str
    rotated_ms: int = 0
    #: 0: not used yet, or less than `USE_STEP_MS` ago
    used_ms: int = 0
    #: the secret of the generation before is valid until then; 0: it is not
    previous_until_ms: int = 0
    previous_key: str = ""
    is_expired: bool = False

    @property
    def bytes(self) -> int:
        texts = text_bytes(self.name) + text_bytes(self.created_by)
        return TOKEN_BYTES + texts + sum(SCOPE_BYTES + text_bytes(scope) for scope in self.scopes)

    @property
    def next_ms(self) -> int:
        """When something of it ends; 0: never."""
        due = [ms for ms in (0 if self.is_expired else self.expires_ms, self.previous_until_ms) if ms]
        return min(due) if due else 0


class StoredToken(msgspec.Struct, array_like=True):
    """A token in a snapshot."""

    id: str
    name: str
    scopes: list[str]
    generation: int
    key: str
    created_ms: int
    expires_ms: int
    created_by: str
    rotated_ms: int
    used_ms: int
    previous_until_ms: int
    previous_key: str
    is_expired: bool


class _Stored(msgspec.Struct, array_like=True):
    is_closed: bool = False
    tokens: list[StoredToken] = []


_FIELDS = StoredToken.__struct_fields__


class AccessTokens(WithoutWaiters):
    """The state machine `tokens`. See the module."""

    name = "tokens"
    format_version = 1
    commands: tuple[type[Command], ...] = (CreateToken, RotateToken, RevokeToken, NoteTokensUsed)

    def __init__(self, limits: StateLimits | None = None) -> None:
        self._limits = limits = limits or StateLimits()
        #: by id, oldest first
        self.tokens: dict[str, AccessToken] = {}
        #: a token exists or existed: calls need one
        self.is_closed = False
        self._bytes = 0
        #: when the next secret ends; changes are rare, so it is computed again after each
        self._next_ms: int | None = None
        self._events: list[Event] = []
        self._appliers: dict[type[Command], Callable[[Any, int], Result]] = {
            CreateToken: self._create,
            RotateToken: self._rotate,
            RevokeToken: self._revoke,
            NoteTokensUsed: self._note_used,
        }
        limits.declare(StateLimit(TOKENS_LIMIT, TOKENS_MAX_DEFAULT, "count", lambda: len(self.tokens), SINCE))

    def apply(self, command: Command, at_ms: int, index: int, origin: Origin) -> Result | None:
        """See `StateMachine.apply`."""
        return self._appliers[type(command)](command, at_ms)

    def _create(self, command: CreateToken, at_ms: int) -> Result:
        if command.id in self.tokens:
            return Result({"field": "id", "detail": "`id` is in use"}, "invalid")
        if any(token.name == command.name and not token.is_expired for token in self.tokens.values()):
            return Result(
                {"field": "name", "detail": "`name` is that of another token; revoke it first, or rotate it"}, "invalid"
            )
        if len(self.tokens) >= self._limits.maxima[TOKENS_LIMIT] and not self._drop_expired():
            return self._limits.over_limit(TOKENS_LIMIT)
        expires_ms = at_ms + command.expires_in_ms if command.expires_in_ms else 0
        token = AccessToken(command.id, command.name, tuple(command.scopes), 1, command.key, at_ms, expires_ms, command.by)
        self._add(token)
        self.is_closed = True
        self._changed()
        return Result(describe(token))

    def _drop_expired(self) -> bool:
        """Make room: forget the token that expired first."""
        expired = [token for token in self.tokens.values() if token.is_expired]
        if not expired:
            return False
        self._remove(min(expired, key=attrgetter("expires_ms", "id")))
        return True

    def _rotate(self, command: RotateToken, at_ms: int) -> Result:
        token = self.tokens.get(command.id)
        if token is None:
            return _unknown(command.id)
        if token.is_expired:
            return Result({"field": "id", "detail": f"the token {token.id} has expired; create another one"}, "invalid")
        token.previous_until_ms = at_ms + command.overlap_ms if command.overlap_ms else 0
        token.previous_key = token.key if command.overlap_ms else ""
        token.generation += 1
        token.key, token.rotated_ms = command.key, at_ms
        self._changed()
        return Result(describe(token))

    def _revoke(self, command: RevokeToken, at_ms: int) -> Result:
        token = self.tokens.get(command.id)
        if token is None:
            return Result({"revoked": False})
        self._remove(token)
        self._changed()
        return Result({"revoked": True})

    def _note_used(self, command: NoteTokensUsed, at_ms: int) -> Result:
        for token_id in command.ids:
            token = self.tokens.get(token_id)
            if token is not None:
                token.used_ms = at_ms
        return Result()

    def _add(self, token: AccessToken) -> None:
        self.tokens[token.id] = token
        self._bytes += token.bytes

    def _remove(self, token: AccessToken) -> None:
        del self.tokens[token.id]
        self._bytes -= token.bytes

    def _changed(self) -> None:
        self._next_ms = min((token.next_ms for token in self.tokens.values() if token.next_ms), default=None)
        self._events.append(TokensChanged())

    # -- the rest of the interface of a state machine ------------------------------------------------------------------------------

    def expire(self, at_ms: int, index: int) -> None:
        """See `StateMachine.expire`."""
        for token in self.tokens.values():
            if token.expires_ms and token.expires_ms <= at_ms:
                token.is_expired = True
            if token.is_expired or token.previous_until_ms <= at_ms:
                token.previous_until_ms, token.previous_key = 0, ""
        self._changed()

    def next_deadline_ms(self) -> int | None:
        """See `StateMachine.next_deadline_ms`."""
        # It stays when a new leader rearms the leases: the end of a token is none.
        return self._next_ms

    def take_events(self) -> list[Event]:
        """See `StateMachine.take_events`."""
        events, self._events = self._events, []
        return events

    def usage(self) -> dict[str, int]:
        """See `HasUsage`."""
        return {"tokens": self._bytes}

    def snapshot(self) -> Any:
        """See `StateMachine.snapshot`."""
        tokens = [StoredToken(**{name: getattr(token, name) for name in _FIELDS}) for token in self.tokens.values()]
        return _Stored(self.is_closed, tokens)

    def restore(self, state: Any) -> None:
        """See `StateMachine.restore`. An empty state is that of a release without tokens."""
        stored = msgspec.convert(state, _Stored) if state else _Stored()
        self.tokens.clear()
        self._bytes, self.is_closed = 0, stored.is_closed
        for one in stored.tokens:
            fields = {name: getattr(one, name) for name in _FIELDS}
            self._add(AccessToken(**{**fields, "scopes": tuple(one.scopes)}))
        self._changed()
        self._events = []


def describe(token: AccessToken) -> dict[str, Any]:
    """The fields of a token in answers and pages. None of them is secret."""
    return {
        "id": token.id,
        "name": token.name,
        "scopes": list(token.scopes),
        "generation": token.generation,
        "created_ms": token.created_ms,
        "created_by": token.created_by,
        "rotated_ms": token.rotated_ms or None,
        "expires_ms": token.expires_ms or None,
        "expired": token.is_expired,
        "used_ms": token.used_ms or None,
        "previous_until_ms": token.previous_until_ms or None,
    }


def last_with_token(entries: Iterable[Entry]) -> int:
    """The index of the last entry that may add a token; 0: none. It is not decoded: text of a client can look like a token, too."""
    return max((entry.index for entry in entries if entry.kind == EntryKind.COMMANDS and CREATE_TAG in entry.data), default=0)


def _unknown(token_id: str) -> Result:
    return Result({"detail": f"there is no token {token_id}"}, "not_found")
