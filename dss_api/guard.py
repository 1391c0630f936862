"""Access checks, the same for every entry point: a bearer token if one is configured, and no calls by pages of other sites."""

from __future__ import annotations

import hmac

from dss_api.errors import Refused

TOKEN_WANTED = "send `Authorization: Bearer <token>`"

_SCHEME = b"bearer "


class Guard:
    """Checks a call's headers.

    Args:
        token: "" when calls need none.
    """

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    @property
    def is_open(self) -> bool:
        """Whether calls need no token."""
        return not self._token

    def check_token(self, authorization: bytes) -> None:
        """Raises:
        Refused: `unauthenticated`.
        """
        if not self._token:
            return
        if not authorization:
            raise Refused("unauthenticated", TOKEN_WANTED)
        if authorization[: len(_SCHEME)].lower() != _SCHEME or not self.is_token(authorization):
            raise Refused("unauthenticated", "the token is not valid")

    def is_token(self, authorization: bytes) -> bool:
        """Whether the header contains the token."""
        return bool(self._token) and hmac.compare_digest(authorization[len(_SCHEME) :].strip(), self._token)


def check_origin(origin: bytes, host: bytes) -> None:
    """Refuse calls that a page of another site makes. Browsers send that site as Origin; programs send none.

    Raises:
        Refused: `forbidden`.
    """
    if origin and origin.partition(b"://")[2] != host:
        raise Refused("forbidden", "pages of another site may not call this node")
