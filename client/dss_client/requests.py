"""Numbers for changing calls, so that a repeat has no second effect.

`request_id` is "SESSION:NUMBER:ANSWERED". The cluster keeps the answer to each number of the session, and gives it to a repeat. It
forgets the answers up to ANSWERED, because this client has them. The session is opened at the first changing call. If the cluster no
longer knows it, the next call opens another.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from dss_client.clock import now
from dss_client.errors import Invalid, NotFound, NotSupportedYet, OverLimit, Unavailable, UnknownOutcome

log = logging.getLogger("dss_client")

TTL_MS = 600_000
#: how long to do without, after the cluster has said that it does not support this yet
UNSUPPORTED_S = 60.0


class Session:
    """One session and its numbers."""

    def __init__(self, id: str) -> None:
        self.id = id
        self._last = 0
        #: in ascending order
        self._in_progress: OrderedDict[int, None] = OrderedDict()

    def begin(self) -> Request:
        self._last += 1
        self._in_progress[self._last] = None
        return Request(self, self._last)

    def end(self, number: int) -> None:
        self._in_progress.pop(number, None)

    @property
    def answered(self) -> int:
        """The answers of all numbers up to this one are here, or no caller waits for them."""
        return next(iter(self._in_progress)) - 1 if self._in_progress else self._last


class Request:
    """One changing call, with all its repeats."""

    def __init__(self, session: Session, number: int) -> None:
        self.session = session
        self._number = number

    @property
    def id(self) -> str:
        return f"{self.session.id}:{self._number}:{self.session.answered}"

    def renumber(self) -> None:
        """Use the next number: no attempt with the present one has taken effect, and none is in progress."""
        self.end()
        self._number = self.session.begin()._number

    def end(self) -> None:
        """The call has ended for its caller. From now on, the cluster may refuse it."""
        self.session.end(self._number)


class Requests:
    """The present session of a client.

    Args:
        open: opens a session; its id.
    """

    def __init__(self, open: Callable[[], Awaitable[str]]) -> None:
        self._open = open
        self._session: Session | None = None
        self._opening: asyncio.Task[None] | None = None
        self._unsupported_until = 0.0

    async def begin(self, timeout_s: float) -> Request | None:
        """The next number, or None if the cluster does not support this yet, or has no room for another session.

        Raises:
            DssError: the session cannot be opened.
        """
        if self._session is None:
            if now() < self._unsupported_until:
                return None
            if self._opening is None:
                self._opening = asyncio.ensure_future(self._open_session())
                self._opening.add_done_callback(self._opened)
            opening = self._opening
            await asyncio.wait({opening}, timeout=max(0.0, timeout_s))
            if not opening.done():
                raise Unavailable("no node opened the session for request ids in time")
            opening.result()
            if self._session is None:
                return None
        return self._session.begin()

    def expired(self, session: Session) -> None:
        """The cluster does not know the session."""
        if self._session is session:
            self._session = None

    def is_unsupported(self) -> None:
        """The cluster does not know `request_id`."""
        self._session = None
        self._unsupported_until = now() + UNSUPPORTED_S

    def take(self) -> str:
        """The id of the session, to be closed; "" without one."""
        session, self._session = self._session, None
        return session.id if session is not None else ""

    async def _open_session(self) -> None:
        try:
            self._session = Session(await self._open())
        except (NotSupportedYet, NotFound, Invalid):
            self.is_unsupported()
        except OverLimit as error:
            log.warning("lost answers cannot be asked for again, because the cluster has too many request sessions: %s", error)
            self.is_unsupported()
        except UnknownOutcome as error:
            # It says nothing about the call that needs the session.
            raise Unavailable(str(error)) from error

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening = None
        if not task.cancelled():
            # Without this, asyncio would log a failure that no caller waits for.
            task.exception()
