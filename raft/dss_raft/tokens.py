"""The tokens of the replicated state as a node uses them: the guard checks calls against them, and their use is reported."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from dss_api.errors import Refused
from dss_api.supervised import Tasks
from dss_raft.replication.access_tokens import (
    SINCE,
    USE_STEP_MS,
    USED_PER_COMMAND_MAX,
    AccessToken,
    AccessTokens,
    NoteTokensUsed,
    TokensChanged,
)

if TYPE_CHECKING:
    from dss_api.guard import Guard
    from dss_raft.node import Node

SERVICE = "guard"
#: How often a node looks for tokens whose use it must report.
REPORT_EVERY_S = 60.0


class Tokens:
    """Connects a guard with a node. Create it before the node starts."""

    def __init__(self, node: Node, guard: Guard) -> None:
        self._node = node
        self._guard = guard
        self._machine = cast(AccessTokens, node.machine("tokens"))
        self._report_at_s = 0.0
        self._tasks = Tasks()
        self._loop = asyncio.get_running_loop()
        node.services[SERVICE] = guard
        node.on_event(TokensChanged, lambda event, index: guard.changed())
        node.on_state_replaced(guard.changed)
        node.on_upkeep(self._tick)
        self._is_settled = False

    def begin(self) -> None:
        """The node has started: let the guard use the tokens that it knows."""
        self._guard.use(self)

    @property
    def is_closed(self) -> bool:
        """Whether calls need a token: the log has or had one, even if it is not applied yet after a restart."""
        return self._machine.is_closed or self._node.applied_index < self._node.tokens_up_to

    def find(self, token_id: str) -> AccessToken | None:
        """See `TokenBook`."""
        return self._machine.tokens.get(token_id)

    def _tick(self) -> None:
        if not self._is_settled and self._node.applied_index >= self._node.tokens_up_to:
            self._is_settled = True
            self._guard.changed()
        now_s = self._loop.time()
        if now_s < self._report_at_s:
            return
        self._report_at_s = now_s + REPORT_EVERY_S
        at_ms = self._node.replica.at_ms
        used = [
            token_id
            for token_id in self._guard.take_used()
            if (token := self.find(token_id)) is not None and at_ms - token.used_ms >= USE_STEP_MS
        ]
        if used and self._node.replica.cluster_version >= SINCE:
            self._tasks.spawn("tokens", self._report(used[:USED_PER_COMMAND_MAX]))

    async def _report(self, used: list[str]) -> None:
        # What is lost here is reported after the next call with the token.
        with suppress(Refused):
            await self._node.submit(NoteTokensUsed(ids=used))
