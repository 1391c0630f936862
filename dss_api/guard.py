"""Access checks, the same for every entry point: who calls, and no calls by pages of other sites.

A node is *open* or *closed*. A closed node answers 401 to every call without a token, except to calls that never need one. It is closed if
DSS_API_TOKEN is set, once the cluster has or had a token, or if others than this machine reach it (unless DSS_OPEN is set). See
docs/how-to/tokens.md.

Checking a token costs one lookup: a header that was found valid is kept until the tokens change. Only valid headers are kept, so there are
never more of them than tokens.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import structlog

from dss_api import token_text
from dss_api.caller import ANYONE, Caller
from dss_api.errors import Refused
from dss_api.failures import FailedTokens
from dss_api.quotas import TokenQuotas
from dss_api.rights import EVERYTHING, Access
from dss_api.supervised import report_failure
from dss_api.token_text import KEY_HOLDER, KEY_HOLDER_S, TokenKey

log = structlog.get_logger("access")

T = TypeVar("T")

TOKEN_WANTED = "send `Authorization: Bearer <token>`"
NOT_VALID = "the token is not valid"
TOKEN_ENDED = "the token was revoked or has expired, or calls need a token now"

API_TOKEN = "DSS_API_TOKEN"
_SCHEME = b"bearer "
#: Headers that are kept. Several clients may write the same token in several ways.
CACHED_MAX = 10_000


class Token(Protocol):
    """A token as the guard sees it."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def scopes(self) -> Sequence[str]: ...
    @property
    def generation(self) -> int: ...
    @property
    def key(self) -> str: ...
    @property
    def previous_until_ms(self) -> int: ...
    @property
    def previous_key(self) -> str: ...
    @property
    def is_expired(self) -> bool: ...


class TokenBook(Protocol):
    """The tokens that this node knows."""

    @property
    def is_closed(self) -> bool:
        """A token exists or existed."""

    def find(self, token_id: str) -> Token | None:
        """The token with this id."""


class _NoTokens:
    is_closed = False

    def find(self, token_id: str) -> None:
        return None


class Guard:
    """Checks a call's headers.

    Args:
        api_token: DSS_API_TOKEN, which may do everything; "" for none.
        is_open: calls need no token while the cluster has none.
        keys: of the cluster; the first one makes new secrets.
        quotas: how much each token may use of this node.
        wall_s: replaces the clock by which a key holder's token is checked.
    """

    def __init__(
        self,
        api_token: str = "",
        is_open: bool = True,
        keys: Sequence[TokenKey] = (),
        wall_s: Callable[[], float] = time.time,
        quotas: TokenQuotas | None = None,
    ) -> None:
        self._api_token = api_token.encode()
        self._may_be_open = is_open and not api_token
        self._keys = {key.id: key for key in keys}
        self._wall_s = wall_s
        self._quotas = quotas or TokenQuotas()
        self._failures = FailedTokens()
        self._tokens: TokenBook = _NoTokens()
        #: by the header of a call whose token was checked
        self._cached: dict[bytes, Caller] = {}
        #: by the id of the token. Not beside the headers: an id proves nothing.
        self._signers: dict[str, Caller] = {}
        #: keys of tokens that this node does not have, each reported once
        self._unknown_keys: set[str] = set()
        self._watchers: dict[Callable[[], None], None] = {}
        #: whether calls need no token now
        self.is_open = self._may_be_open
        #: the key that makes new secrets of tokens; None: this node cannot make tokens
        self.key = keys[0] if keys else None

    @property
    def has_tokens(self) -> bool:
        """Whether the cluster has or had a token."""
        return self._tokens.is_closed

    def use(self, tokens: TokenBook | None) -> None:
        """Check tokens against these from now on."""
        self._tokens = tokens or _NoTokens()
        self.changed()

    def changed(self) -> None:
        """The tokens have changed: check all open calls and connections again."""
        self._cached.clear()
        self._signers.clear()
        self.is_open = self._may_be_open and not self._tokens.is_closed
        for watcher in list(self._watchers):
            try:
                watcher()
            except Exception as error:  # a fault with one client must not keep the others' tokens valid
                report_failure("tokens", error)

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback()` whenever the tokens have changed, until the returned function is called."""
        self._watchers[callback] = None
        return lambda: self._watchers.pop(callback, None)

    def authenticate(self, authorization: bytes, address: str | None = None) -> Caller:
        """Who makes a call with this header; b"" for none.

        Args:
            address: where a new call comes from; None: a call that was already authenticated is checked again.

        Raises:
            Refused: `unauthenticated`; `over_limit`: this address has sent too many invalid tokens, and this is one more.
        """
        if self.is_open:
            return ANYONE
        caller = self._cached.get(authorization)
        if caller is None:
            try:
                caller = self._check(authorization)
            except Refused:
                if address is not None:
                    self._failures.note(address, bool(authorization))
                raise
        caller.used = True
        return caller

    def signer(self, token_id: str, address: str | None = None) -> tuple[Caller, tuple[str, ...]]:
        """Who signs requests with this token, and the secrets that it may sign with. The caller is not proven before that.

        `token_id` may also be `DSS_API_TOKEN`.

        Args:
            address: as for `authenticate`.

        Raises:
            Refused: as `authenticate`.
        """
        if self._api_token and token_id == API_TOKEN:
            return Caller(API_TOKEN, EVERYTHING), (self._api_token.decode(),)
        token = self._tokens.find(token_id)
        if token is None or token.is_expired:
            if address is not None:
                self._failures.note(address, True)
            raise Refused("unauthenticated", NOT_VALID)
        caller = self._signers.get(token_id)
        if caller is None:
            caller = self._signers[token_id] = self._caller(token)
        return caller, self._secrets(token)

    def note_failure(self, address: str) -> None:
        """A call from this address had a wrong signature.

        Raises:
            Refused: `over_limit`, see `authenticate`.
        """
        self._failures.note(address, True)

    def _secrets(self, token: Token) -> tuple[str, ...]:
        generations = [(token.key, token.generation)]
        if token.previous_until_ms:
            generations.append((token.previous_key, token.generation - 1))
        return tuple(
            token_text.secret_of(key, token.id, generation)
            for key_id, generation in generations
            if (key := self._keys.get(key_id)) is not None
        )

    def is_valid(self, authorization: bytes) -> bool:
        """Whether calls with this header are still accepted."""
        try:
            self.authenticate(authorization)
        except Refused:
            return False
        return True

    async def while_valid(self, authorization: bytes, work: Coroutine[Any, Any, T]) -> T:
        """Run `work`, and cancel it when calls with this header are not accepted any longer.

        Raises:
            Refused: `unauthenticated`.
        """
        task = asyncio.ensure_future(work)
        ended = False

        def check() -> None:
            nonlocal ended
            if not ended and not self.is_valid(authorization):
                ended = True
                task.cancel()

        unwatch = self.watch(check)
        try:
            return await task
        except asyncio.CancelledError:
            task.cancel()
            if ended:
                raise Refused("unauthenticated", TOKEN_ENDED) from None
            raise
        finally:
            unwatch()

    def take_used(self) -> list[str]:
        """The ids of the tokens with which calls were made since the last time."""
        used = [caller for caller in (*self._cached.values(), *self._signers.values()) if caller.used and caller.owner]
        for caller in used:
            caller.used = False
        return list(dict.fromkeys(caller.owner for caller in used))

    def _check(self, authorization: bytes) -> Caller:
        if not authorization:
            raise Refused("unauthenticated", TOKEN_WANTED)
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            raise Refused("unauthenticated", NOT_VALID)
        text = authorization[len(_SCHEME) :].strip()
        if self._api_token and hmac.compare_digest(text, self._api_token):
            caller = Caller(API_TOKEN, EVERYTHING)
        else:
            parts = token_text.split(text.decode("latin-1"))
            if parts is None:
                raise Refused("unauthenticated", NOT_VALID)
            if parts[0].startswith(KEY_HOLDER):
                # Not kept: it ends without a change of the tokens.
                return self._key_holder(*parts)
            caller = self._token_holder(*parts)
        if len(self._cached) >= CACHED_MAX:
            self._cached.clear()
        self._cached[authorization] = caller
        return caller

    def _token_holder(self, token_id: str, secret: str) -> Caller:
        token = self._tokens.find(token_id)
        if token is None or not self._has_secret(token, secret):
            raise Refused("unauthenticated", NOT_VALID)
        if token.is_expired:
            raise Refused("unauthenticated", "the token has expired")
        return self._caller(token)

    def _caller(self, token: Token) -> Caller:
        return Caller(f"token {token.id} ({token.name})", Access(token.scopes), token.id, self._session_keys(token), self._quotas)

    def _has_secret(self, token: Token, secret: str) -> bool:
        key = self._keys.get(token.key)
        if key is None and token.key not in self._unknown_keys:
            self._unknown_keys.add(token.key)
            log.warning("access.unknown_key", key=token.key, hint="give every node the same DSS_CLUSTER_SECRET, or DSS_TOKEN_KEY")
        if key is not None and token_text.is_secret(secret, key, token.id, token.generation):
            return True
        previous = self._keys.get(token.previous_key) if token.previous_until_ms else None
        return previous is not None and token_text.is_secret(secret, previous, token.id, token.generation - 1)

    def _session_keys(self, token: Token) -> list[TokenKey]:
        """The keys with which sessions are sealed, the token's own first.

        So all nodes seal in the same way while they get another key, and sessions outlive the rotation of their token.
        """
        return sorted(self._keys.values(), key=lambda key: key.id != token.key)

    def _key_holder(self, token_id: str, secret: str) -> Caller:
        """Check a token that only a holder of the key can compute. Such a caller could compute every other token, too."""
        try:
            made_s = int(token_id[len(KEY_HOLDER) :], 16)
        except ValueError:
            raise Refused("unauthenticated", NOT_VALID) from None
        valid = [key for key in self._keys.values() if token_text.is_secret(secret, key, token_id, 0)]
        if not valid:
            raise Refused("unauthenticated", NOT_VALID)
        if abs(self._wall_s() - made_s) > KEY_HOLDER_S:
            raise Refused("unauthenticated", f"the clocks of the two machines differ by more than {KEY_HOLDER_S} s")
        return Caller("holder of the cluster's key", EVERYTHING)


def check_origin(origin: bytes, host: bytes) -> None:
    """Refuse calls that a page of another site makes. Browsers send that site as Origin; programs send none.

    Raises:
        Refused: `forbidden`.
    """
    scheme, _, site = origin.partition(b"://")
    if origin and (site != host or (_https_only and scheme != b"https")) and origin not in _trusted_origins:
        raise Refused("forbidden", "pages of another site may not call this node")


def trust_origins(origins: Iterable[str], https_only: bool = False) -> None:
    """Let pages of these sites call this node, too.

    Args:
        https_only: this node speaks HTTPS, so a page of the same host that came over HTTP is another site.
    """
    global _trusted_origins, _https_only
    _https_only = https_only
    _trusted_origins = frozenset(origin.encode() for origin in origins)


def shared() -> Guard:
    """The guard of this process, for pages."""
    return _shared


def set_shared(guard: Guard) -> None:
    """Make `guard` the one of this process."""
    global _shared
    _shared = guard


_shared: Guard = Guard()
_trusted_origins: frozenset[bytes] = frozenset()
_https_only = False
