"""Tokens, and every operation of this service with a handler that only says that it was reached."""

from __future__ import annotations

import dataclasses
from typing import Any

from dss_api import token_text
from dss_api.caller import caller
from dss_api.errors import Refused
from dss_api.guard import Guard
from dss_api.operation import Operation, Subscription
from dss_api.token_text import token_key
from dss_project.registry import operations, subscriptions

KEY = token_key("a secret of the cluster")
#: the problem code of a call that has reached its handler
REACHED = "cancelled"


@dataclasses.dataclass
class FakeToken:
    id: str
    name: str
    scopes: tuple[str, ...]
    generation: int = 1
    key: str = KEY.id
    previous_until_ms: int = 0
    previous_key: str = ""
    is_expired: bool = False

    @property
    def text(self) -> str:
        return token_text.text_of(KEY, self.id, self.generation)

    @property
    def header(self) -> str:
        return f"Bearer {self.text}"


class FakeBook:
    """The tokens of a cluster. Call `guard.changed()` after a change."""

    def __init__(self) -> None:
        self.is_closed = True
        self.tokens: dict[str, FakeToken] = {}

    def add(self, *scopes: str) -> FakeToken:
        token = FakeToken(token_text.new_id(), "-".join(scopes), scopes)
        self.tokens[token.id] = token
        return token

    def find(self, token_id: str) -> FakeToken | None:
        return self.tokens.get(token_id)


async def _reached(node: Any, *request: Any) -> Any:
    raise Refused(REACHED, caller().name)


def stubbed() -> list[Operation]:
    return [dataclasses.replace(operation, handle=_reached, prepare=None) for operation in operations()]


def stubbed_subscriptions() -> list[Subscription]:
    return [dataclasses.replace(one, handle=_reached) for one in subscriptions()]


def make_guard(book: FakeBook, api_token: str = "") -> Guard:
    guard = Guard(api_token, False, [KEY])
    guard.use(book)
    return guard
