"""The text of a token: `dss1_<id>_<secret>`, and how its secret is computed.

The secret is an HMAC of the id and the generation with a key that all nodes of a cluster have. So no node stores a secret, a node can
check any token that another one made, and with the key every secret can be computed. The key is derived from the cluster's secret, or
from DSS_TOKEN_KEY, so that one can change without the other.

A *key holder's token* proves the possession of the key itself, for commands on a node's machine: its id is `key` and the time at which it
was made, and it is valid for a few minutes.

`dss1` is the version of this format, and lets programs that look for leaked secrets recognize one.
"""

from __future__ import annotations

import hmac
import secrets
from functools import cache
from hashlib import scrypt, sha256
from typing import NamedTuple

PREFIX = "dss1_"
ID_BYTES = 6
ID_PATTERN = r"^[0-9a-f]{12}$(?!\n)"
KEY_PATTERN = r"^[0-9a-f]{8}$(?!\n)"
SECRET_LENGTH = 64
#: before the time in the id of a key holder's token
KEY_HOLDER = "key"
#: How far the clocks of the two machines may differ, and how long such a token is valid.
KEY_HOLDER_S = 300
#: a header longer than this is not looked at
TEXT_LENGTH_MAX = 128


class TokenKey(NamedTuple):
    """A key of the cluster, and the name by which tokens refer to it."""

    id: str
    key: bytes


@cache
def token_key(secret: str) -> TokenKey:
    """The key that is derived from a secret of the cluster. Its id tells nothing about the secret.

    A secret may be a word that a person chose, and a person with one token can try words. So each try is made to cost some 50 ms.
    """
    key = scrypt(secret.encode(), salt=b"dss token key 1", n=2**14, r=8, p=1, dklen=32)
    return TokenKey(_mac(key, b"id").hex()[:8], key)


def new_id() -> str:
    return secrets.token_hex(ID_BYTES)


def secret_of(key: TokenKey, token_id: str, generation: int) -> str:
    return _mac(key.key, f"token {token_id} {generation}".encode()).hex()


def text_of(key: TokenKey, token_id: str, generation: int) -> str:
    """The whole token, as a client sends it."""
    return f"{PREFIX}{token_id}_{secret_of(key, token_id, generation)}"


def key_holder_text(key: TokenKey, now_s: int) -> str:
    """A token for a holder of the key."""
    token_id = f"{KEY_HOLDER}{now_s:x}"
    return f"{PREFIX}{token_id}_{secret_of(key, token_id, 0)}"


def split(text: str) -> tuple[str, str] | None:
    """(id, secret) of a text that has the form of a token."""
    if not text.startswith(PREFIX) or len(text) > TEXT_LENGTH_MAX or not text.isascii():
        return None
    token_id, underscore, secret = text[len(PREFIX) :].partition("_")
    return (token_id, secret) if underscore and token_id and len(secret) == SECRET_LENGTH else None


def is_secret(secret: str, key: TokenKey, token_id: str, generation: int) -> bool:
    """Whether this is the secret, in a time that does not depend on how much of it is right."""
    return hmac.compare_digest(secret, secret_of(key, token_id, generation))


def seal(key: TokenKey, purpose: str, owner: str, text: str) -> str:
    """A short proof that `text` was given to `owner`."""
    return _mac(key.key, f"{purpose} {owner} {text}".encode()).hex()[:24]


def _mac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, sha256)
