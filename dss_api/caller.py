"""Who makes a call: what the entry points found out about it, for operations that depend on it.

Entry points set the caller for the task of the call. An operation reads it with `caller()`; everything else is given the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from hmac import compare_digest

from dss_api.errors import Refused
from dss_api.quotas import TokenQuotas
from dss_api.rights import EVERYTHING, Access
from dss_api.token_text import TokenKey, seal

#: longer names are cut
NAME_BYTES_MAX = 256


class Caller:
    """An authenticated caller, or a caller of an open node.

    Attributes:
        name: for the audit trail: "token 3f9a1c2b7d4e (billing)", "user alice". The authentication knows it, not the request.
        owner: whom the sessions belong to that this caller opens; "" for callers that may use every session.
        access: what it may do.
        is_token: the token can be revoked or expire while the call is in progress.
        quotas: of tokens; None for callers without.
        used: set by the guard; tells that calls were made with this token.
        reason: why the caller makes its calls, for those that have no field for it; "" if it does not say.
    """

    __slots__ = ("_keys", "access", "is_token", "name", "owner", "quotas", "reason", "used")

    def __init__(
        self, name: str, access: Access, owner: str = "", keys: Sequence[TokenKey] = (), quotas: TokenQuotas | None = None
    ) -> None:
        self.name = name.encode()[:NAME_BYTES_MAX].decode(errors="ignore")
        self.access = access
        self.owner = owner
        self.is_token = bool(owner)
        self.used = False
        self.reason = ""
        self.quotas = quotas
        #: the first one makes seals, each one is good for checking them
        self._keys = keys

    def seal(self, purpose: str, text: str, mark: str) -> str:
        """`text`, `mark`, and a proof that it was given to this caller; only `text` for a caller that may use everybody's."""
        return self._sealed(self._keys[0], purpose, text, mark) if self._keys else text

    def check_seal(self, purpose: str, sealed: str, mark: str, field: str) -> str:
        """Returns what `seal` got.

        Raises:
            Refused: `forbidden`: it was given to another caller.
        """
        text = sealed.partition(mark)[0]
        given = sealed.encode()
        if self._keys:
            is_own = any(compare_digest(self._sealed(key, purpose, text, mark).encode(), given) for key in self._keys)
        else:
            is_own = self.access.everything
        if not is_own:
            raise Refused("forbidden", f"`{field}` belongs to another token", field=field)
        return text

    def _sealed(self, key: TokenKey, purpose: str, text: str, mark: str) -> str:
        return f"{text}{mark}{seal(key, purpose, self.owner, text)}"


#: Calls of an open node, and of programs that use operations directly.
ANYONE = Caller("anyone", EVERYTHING)

_caller: ContextVar[Caller] = ContextVar("caller", default=ANYONE)
set_caller = _caller.set
caller = _caller.get
