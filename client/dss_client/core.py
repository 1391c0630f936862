"""Calls to a cluster: any node will do, and a call is repeated until its deadline as long as that cannot double its effect.

What may be repeated after a lost answer:

1. Reads.
2. Calls that are harmless to repeat: to renew, to release with a fencing token, to ack with a receipt.
3. Other changing calls, if they carry a `request_id`; see requests.py. Without one, a lost answer is `UnknownOutcome`.

A call that certainly had no effect is repeated in any case. Between repeats the client waits, a little longer each time and by a random
amount, and goes to another node.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dss_client.clock import now
from dss_client.config import Config, pause_s
from dss_client.connection import Answer, CannotConnect, Connection, Handle, NoAnswer, NotSent
from dss_client.errors import NO_EFFECT, Cancelled, ClientClosed, DssError, Unavailable, UnknownOutcome, WrongServer, refusal
from dss_client.requests import TTL_MS, Request, Requests
from dss_client.tracing import UNTRACED
from dss_client.websocket import ConnectionRefused, WebSocketConnection

if TYPE_CHECKING:
    from dss_client.http import HttpConnection

log = logging.getLogger("dss_client")
#: says at level DEBUG which node does not answer, and why a call is repeated
retries = logging.getLogger("dss_client.retries")

#: how often a call starts again with another session, after the cluster has refused it because the session was unknown
SESSIONS_MAX = 3
CLOSE_S = 1.0
#: When an attempt fails after at least this long, as those of subscriptions do, the count of failures in a row starts again.
LASTED_S = 10.0
#: A call that took so much of its wait has waited. The node's clock is another one.
WAITED_SHARE = 0.9
#: a member of an answer: an earlier attempt of the call may have taken effect
REPEATED = "_repeated"


def http_connection() -> type[HttpConnection]:
    """Imported only when it is used: importing httpx takes longer than importing the rest of the client."""
    from dss_client.http import HttpConnection

    return HttpConnection


class Repeat(enum.Enum):
    """What a repeat of a call does."""

    #: It reads again.
    READ = enum.auto()
    #: It changes nothing more.
    HARMLESS = enum.auto()
    #: As HARMLESS, but only with a `request_id` does it get the same answer, and keep its place in a queue.
    NUMBERED_IF_POSSIBLE = enum.auto()
    #: It could take effect twice without a `request_id`.
    NUMBERED = enum.auto()


class Core:
    """The calls of one client. It belongs to one event loop."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[Connection] | None = None
        self._next_node = 0
        self._troubles: dict[str, str] = {}
        #: ids of the members' data directories: which cluster this is
        self._stores: set[str] = set()
        #: those that are being retired, too
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closed = False
        self.requests = Requests(self._open_session)

    # ------------------------------------------------------------- calls

    async def call(
        self,
        operation: str,
        fields: Mapping[str, Any],
        repeat: Repeat,
        *,
        wait_s: float = 0.0,
        timeout_s: float | None = None,
        attempt_s: float | None = None,
        handle: Handle | None = None,
        is_numbered: bool = True,
        is_traced: bool = True,
    ) -> Answer:
        """Call until a node answers.

        Args:
            wait_s: how long the call itself waits at the node.
            timeout_s: how long to try, in addition to `wait_s`; by default as configured.
            attempt_s: go to another node if there is no answer after this time.
            handle: cancels the call.
            is_numbered: False for calls that take no `request_id`.
            is_traced: False for calls that the client makes by itself.

        Raises:
            DssError: see errors.py.
        """
        tracing = self.config.tracing
        if tracing is None or not is_traced or operation in UNTRACED:
            return await self._call(operation, fields, repeat, wait_s, timeout_s, attempt_s, handle, is_numbered)
        with tracing.call(operation, fields) as sent:
            answer = await self._call(operation, sent, repeat, wait_s, timeout_s, attempt_s, handle, is_numbered)
            if self._connection is not None:
                tracing.set_node(self._connection.url)
            return answer

    async def _call(
        self,
        operation: str,
        fields: Mapping[str, Any],
        repeat: Repeat,
        wait_s: float,
        timeout_s: float | None,
        attempt_s: float | None,
        handle: Handle | None,
        is_numbered: bool,
    ) -> Answer:
        deadline = now() + wait_s + (self.config.timeout_s if timeout_s is None else timeout_s)
        request: Request | None = None
        if is_numbered and repeat in (Repeat.NUMBERED, Repeat.NUMBERED_IF_POSSIBLE):
            request = await self.requests.begin(deadline - now())
        if request is None:
            return await self._until(deadline, wait_s, operation, fields, repeat, None, attempt_s, handle)
        for _ in range(SESSIONS_MAX):
            try:
                return await self._until(deadline, wait_s, operation, fields, repeat, request, attempt_s, handle)
            except _OtherSession:
                pass
            finally:
                request.end()
            request = await self.requests.begin(deadline - now())
            if request is None:
                return await self._until(deadline, wait_s, operation, fields, repeat, None, attempt_s, handle)
        raise Unavailable("the cluster does not keep the client session that this call needs")

    async def once(self, operation: str, fields: Mapping[str, Any], timeout_s: float) -> Answer:
        """Call the first node that can be reached, and no other. The call is sent once.

        Raises:
            DssError: see errors.py.
        """
        connection = self._connection
        try:
            if connection is None or not connection.is_open:
                connection = self._connection = await self._connect_to_any()
            answer = await connection.call(operation, fields, timeout_s, None)
        except CannotConnect:
            raise self._unavailable(operation) from None
        except NotSent as error:
            raise Unavailable(f"{operation}: {error}") from None
        except NoAnswer as error:
            if connection is not None:
                self._leave(connection)
            raise UnknownOutcome(f"{operation}: it may have taken effect, because the answer was lost ({error})") from None
        if answer["status"] >= 400:
            raise refusal(answer["status"], answer)
        return answer

    async def _until(
        self,
        deadline: float,
        wait_s: float,
        operation: str,
        fields: Mapping[str, Any],
        repeat: Repeat,
        request: Request | None,
        attempt_s: float | None,
        handle: Handle | None,
    ) -> Answer:
        may_repeat = repeat is not Repeat.NUMBERED or request is not None
        may_have_effect = False
        failures = 0
        while True:
            trouble = ""
            began = now()
            connection = self._connection
            try:
                if handle is not None and handle.is_cancelled:
                    raise Cancelled("the call was cancelled")
                if connection is None or not connection.is_open:
                    connection = None
                    connection = await self._connect(deadline)
                left_s = deadline - now()
                if left_s <= 0:
                    raise NotSent
                if request is not None:
                    fields = {**fields, "request_id": request.id}
                sent = now()
                answer = await connection.call(operation, fields, left_s if attempt_s is None else min(left_s, attempt_s), handle)
                if answer["status"] < 400:
                    if may_have_effect:
                        answer[REPEATED] = True
                    return answer
                code = answer.get("code")
                if code in NO_EFFECT:
                    trouble = str(answer.get("detail"))
                    if code == "engine_away" and operation == "queue.publish" and request is not None and not may_have_effect:
                        # The number decides which server gets the messages. Another one may be there.
                        request.renumber()
                    if code == "engine_away" and 0 < WAITED_SHARE * wait_s <= now() - sent and not may_have_effect:
                        # The node has waited on the servers that are up. Another node could do no more.
                        self._troubles[connection.url] = trouble
                        raise self._unavailable(operation)
                elif code == "unknown_outcome" or (code == "cancelled" and not (handle and handle.is_cancelled)):
                    may_have_effect = True
                    trouble = str(answer.get("detail"))
                elif request is not None and self._needs_other_session(request, answer):
                    if may_have_effect and repeat is Repeat.NUMBERED:
                        raise UnknownOutcome(f"{operation}: the cluster no longer knows whether it was carried out")
                    raise _OtherSession
                else:
                    refused = refusal(answer["status"], answer)
                    refused.was_repeated = may_have_effect
                    raise refused
            except NoAnswer as error:
                may_have_effect = True
                trouble = str(error)
            except (NotSent, CannotConnect) as error:
                trouble = str(error)
            except ClientClosed:
                if may_have_effect and repeat is Repeat.NUMBERED:
                    raise UnknownOutcome(
                        f"{operation}: it may have taken effect, because the client was closed before the answer"
                    ) from None
                raise
            failures = 1 if now() - began > LASTED_S else failures + 1
            if connection is not None:
                if trouble:
                    self._troubles[connection.url] = trouble
                self._leave(connection)
            if may_have_effect and not may_repeat:
                raise UnknownOutcome(f"{operation}: it may have taken effect, because the answer was lost ({trouble})")
            pause = pause_s(failures)
            if now() + pause >= deadline:
                if may_have_effect and repeat is not Repeat.READ:
                    raise UnknownOutcome(f"{operation}: it may have taken effect, but no node answered in time ({trouble})")
                raise self._unavailable(operation)
            if connection is not None:
                retries.debug("%s: %s; trying again", connection.url, trouble or "not sent")
            await asyncio.sleep(pause)

    def _needs_other_session(self, request: Request, answer: Answer) -> bool:
        code = answer.get("code")
        if code == "request_expired":
            self.requests.expired(request.session)
            return True
        if code == "not_supported_yet" or (code == "invalid" and answer.get("field") == "request_id"):
            self.requests.is_unsupported()
            return True
        return False

    def _unavailable(self, operation: str) -> Unavailable:
        nodes = "; ".join(f"{url}: {trouble}" for url, trouble in self._troubles.items())
        return Unavailable(f"{operation}: no node carried it out in time ({nodes or 'no answer'})", self._troubles)

    # ------------------------------------------------------- connections

    async def _connect(self, deadline: float) -> Connection:
        """The open connection, or another one. Many calls wait for the same one."""
        if self._is_closed:
            raise ClientClosed("this client is closed")
        if self._connecting is None:
            self._connecting = asyncio.ensure_future(self._connect_to_any())
            self._connecting.add_done_callback(self._connected)
        connecting = self._connecting
        await asyncio.wait({connecting}, timeout=max(0.0, deadline - now()))
        if self._is_closed:
            raise ClientClosed("this client is closed")
        if not connecting.done():
            raise NotSent
        return connecting.result()

    def _connected(self, task: asyncio.Task[Connection]) -> None:
        self._connecting = None
        if not task.cancelled() and task.exception() is None:
            if self._is_closed:
                task.result().close()
            else:
                self._connection = task.result()

    async def _connect_to_any(self) -> Connection:
        """Try each node once.

        Raises:
            CannotConnect: no node can be reached now.
            WrongServer: something answers at each address, but it is no node, or one of another cluster.
            Refused: a node does not accept this client.
        """
        nodes = self.config.nodes
        wrong = 0
        for step in range(len(nodes)):
            node = nodes[(self._next_node + step) % len(nodes)]
            try:
                if self.config.transport == "http":
                    connection: Connection = await http_connection().connect(node, self.config)
                else:
                    connection = await self._websocket(node)
                await self._check_cluster(connection)
            except CannotConnect as error:
                self._troubles[node.url] = str(error)
                retries.debug("no answer from %s: %s", node.url, error)
                wrong += error.is_wrong
                continue
            self._next_node = (self._next_node + step) % len(nodes)
            self._connections.add(connection)
            log.debug("connected to %s", node.url)
            return connection
        if wrong == len(nodes):
            text = "; ".join(f"{url}: {trouble}" for url, trouble in self._troubles.items())
            raise WrongServer(f"no address is a node of {self._cluster} ({text})", self._troubles)
        raise CannotConnect("no node can be reached")

    @property
    def _cluster(self) -> str:
        return "the cluster that this client used before" if self._stores else "the Distributed Sync System"

    async def _check_cluster(self, connection: Connection) -> None:
        """A node of another cluster knows nothing of this client's locks. A list of addresses that mixes clusters would never fail.

        Raises:
            CannotConnect: it is one, or it does not answer.
        """
        try:
            answer = await connection.call("raft.leader", {}, self.config.connect_timeout_s, None)
        except (NoAnswer, NotSent) as error:
            connection.close()
            raise CannotConnect(str(error)) from None
        stores = set(answer.get("stores") or ())
        if stores and self._stores and not stores & self._stores:
            connection.close()
            raise CannotConnect("it is a node of another cluster", is_wrong=True)
        self._stores = stores or self._stores

    async def _websocket(self, node: Any) -> Connection:
        try:
            return await WebSocketConnection.connect(node, self.config)
        except ConnectionRefused:
            pass
        # A WebSocket cannot say why. A wrong token raises here.
        http = http_connection()(node, self.config)
        try:
            await http.check()
        finally:
            http.close()
        raise CannotConnect("the node refuses WebSockets from here; see its setting DSS_ALLOWED_HOSTS", is_wrong=True)

    def _leave(self, connection: Connection) -> None:
        """Take another node for the next calls. Many calls fail at the same time, but only the first moves on."""
        if connection is self._connection:
            self._connection = None
            self._next_node = (self._next_node + 1) % len(self.config.nodes)
            connection.retire()

    async def _open_session(self) -> str:
        answer = await self.call("requests.open", {"ttl_ms": TTL_MS}, Repeat.HARMLESS)
        return str(answer["session"])

    # --------------------------------------------------------- life cycle

    def spawn(self, work: Any) -> None:
        """Run a coroutine until it ends or the client closes."""
        self.keep(asyncio.ensure_future(work))

    def keep(self, task: asyncio.Task[Any]) -> None:
        """End the task when the client closes."""
        self._tasks.add(task)
        task.add_done_callback(self._spawned_ended)

    def _spawned_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, DssError):
            log.error("a task of the client failed", exc_info=error)

    async def close(self) -> None:
        """Close the connections. A second call does nothing."""
        if self._is_closed:
            return
        session = self.requests.take()
        if session and self._connection is not None and self._connection.is_open:
            with contextlib.suppress(NoAnswer, NotSent):
                await self._connection.call("requests.close", {"session": session}, CLOSE_S, None)
        self._is_closed = True
        tasks = [*self._tasks, *([self._connecting] if self._connecting is not None else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)
        for connection in list(self._connections):
            connection.close()
        self._connection = None

    def drop(self) -> None:
        """In the child of a fork; see `Connection.drop`."""
        self._is_closed = True
        for connection in list(self._connections):
            connection.drop()


class _OtherSession(Exception):
    """The call needs another session. It had no effect, or a repeat is harmless."""
