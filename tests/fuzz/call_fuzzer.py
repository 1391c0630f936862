"""Hostile calls on every entry point of three nodes, which are then killed and started again.

Each field of each operation gets each hostile value, alone (`RequestMaker.singles`) and then in pairs, over HTTP, through the pages and
over WebSocket. The operations come from the registry, the fields from their Structs: a new operation is tried without any change here.

Rounds alternate: in one, the values under the keys of calls have just been written (dirty); in the other they have been written back,
and the nodes' lines have been evicted (at rest), so that a call loads them again.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from call_requests import Mutation, RequestMaker, encode, field_of, is_json_object
from entry_points import BAD_FRAME, TOKEN, EntryPoint, Http, Pages, Reply, WebSocket
from node_states import differences, read
from repairs import repaired
from stored_values import PLACEHOLDER, StoredValues
from values import Seen, Values

from dss_api.operation import Operation, Subscription
from dss_dev.answer_check import check
from dss_dev.local_cluster import LocalCluster, LocalNode, NotReady

#: Shares of the calls. A page takes many times longer than a JSON call.
SHARES: dict[type[EntryPoint], float] = {Http: 0.57, WebSocket: 0.4, Pages: 0.03}
CALLS_PER_ROUND = 10_000
FAULTS_MAX = 20
#: How often new dirty values are stored: before they are written back.
DIRTY_S = 0.7
PATIENCE_S = 60.0
POLL_S = 0.05
#: Few lines, so that values at rest are read from the backing store.
ENVIRONMENT = {
    "DSS_CLUSTER_SECRET": "test",
    "DSS_LOG_FORMAT": "json",
    "DSS_ADMIN_PASSWORD": "test",
    "DSS_API_TOKEN": TOKEN,
    "CACHE_MAX_ITEMS": "20",
    "DSS_SNAPSHOT_ENTRIES": "2000",
}
#: Refusals that cannot name a field, because no fields were found in the request.
WITHOUT_FIELD = (
    "the body is not valid JSON",
    "the body is not valid UTF-8",
    "the body is nested too deeply",
    "the body is longer than",
    "the request must be a JSON object",
    "the query is not valid UTF-8",
    "the query has more than",
)
_BAD_LINE = re.compile(rb'Traceback \(most recent call last\)|"exception"|"level": ?"(?:error|critical)"')


class Fuzzer:
    """One run. `faults` is what went wrong.

    Args:
        checks_answers: compare answers with their declarations; not with another release.
        progress: called now and then with the number of calls made.
    """

    def __init__(
        self,
        cluster: LocalCluster,
        operations: Sequence[Operation],
        subscriptions: Sequence[Subscription],
        *,
        calls: int,
        seed: int = 0,
        checks_answers: bool = True,
        progress: Callable[[int], None] = lambda made: None,
    ) -> None:
        self.cluster = cluster
        self.faults: list[str] = []
        #: answers by status
        self.statuses: Counter[str] = Counter()
        #: calls by entry point
        self.made: Counter[str] = Counter()
        self._calls = calls
        self._random = random.Random(seed)
        self._seen = Seen()
        self._stored = StoredValues(self._random)
        values = Values(self._random, self._seen, any_key=self._stored.any_key)
        self._makers = [RequestMaker(one, values) for one in (*operations, *subscriptions)]
        self._checks_answers = checks_answers
        self._progress = progress
        self._plans = {kind: self._plan(kind) for kind in SHARES}

    def run(self) -> None:
        """Start the nodes, make all calls, kill and start all nodes, and compare their states."""
        try:
            self.cluster.start()
            self.cluster.wait_ready()
            asyncio.run(self._make_calls())
            self._check_nodes("during the calls")
            for node in self.cluster.nodes:
                node.kill()
            is_up = self._restart()
        finally:
            self.cluster.stop()
        if is_up:
            self.faults += differences([read(node) for node in self.cluster.nodes])

    # ---------------------------------------------------------------- rounds

    async def _make_calls(self) -> None:
        rounds = max(2, round(self._calls / CALLS_PER_ROUND))
        for number in range(rounds):
            if not self._goes_on:
                return
            in_round = self._calls // rounds
            if number % 2:
                await self._put_to_rest()
                await self._make_round(in_round)
            else:
                dirtying = asyncio.create_task(self._keep_dirty())
                await self._make_round(in_round)
                dirtying.cancel()
                await asyncio.wait([dirtying])

    async def _make_round(self, calls: int) -> None:
        workers: list[Awaitable[None]] = []
        for kind, share in SHARES.items():
            left = itertools.count(max(1, round(calls * share)), -1)
            workers += [
                self._work(kind(node.host, node.port), left) for node in self.cluster.nodes for _ in range(kind.connections)
            ]
        await asyncio.gather(*workers)

    async def _work(self, entry_point: EntryPoint, left: Iterator[int]) -> None:
        """Make calls until none is left for this entry point."""
        plan = self._plans[type(entry_point)]
        while next(left) > 0 and self._goes_on:
            maker, mutations = next(plan)
            mutations = tuple(Mutation(one.path, self._stored.filled_in(one.text)) for one in mutations)
            request = repaired(maker.operation, maker.mutated(mutations))
            try:
                reply = await entry_point.call(maker.operation, request)
            except (OSError, EOFError, TimeoutError) as error:
                await entry_point.close()
                self._fault(entry_point, maker, mutations, f"no answer: {error!r}")
                continue
            self.made[type(entry_point).__name__] += 1
            self.statuses[f"{reply.status} {reply.document.get('code', '')}".strip()] += 1
            if fault := self._judge(maker, request, reply, entry_point):
                self._fault(entry_point, maker, mutations, fault)
            self._seen.add(reply.document)
            self._progress(self.made.total())
        await entry_point.close()

    def _plan(self, kind: type[EntryPoint]) -> Iterator[tuple[RequestMaker, tuple[Mutation, ...]]]:
        """All singles in random order, those with stored values first; then pairs without end."""
        makers = [maker for maker in self._makers if kind is WebSocket or isinstance(maker.operation, Operation)]
        singles = [(maker, mutations) for maker in makers for mutations in maker.singles()]
        self._random.shuffle(singles)
        singles.sort(key=lambda one: PLACEHOLDER not in one[1][0].text)
        yield from singles
        while True:
            maker = self._random.choice(makers)
            yield maker, maker.pair()

    # --------------------------------------------------------- stored values

    async def _keep_dirty(self) -> None:
        """Store the values again and again. A cancelled or refused attempt does no harm."""
        with suppress(OSError):
            while True:
                for body in self._stored.renew():
                    await self._post(self.cluster.nodes[0], "/cache/mput", body)
                await asyncio.sleep(DIRTY_S)

    async def _put_to_rest(self) -> None:
        """Store the values and wait until they are written back."""
        with suppress(OSError):
            for body in self._stored.renew():
                await self._post(self.cluster.nodes[0], "/cache/mput", body)
            async with asyncio.timeout(PATIENCE_S):
                for node in self.cluster.nodes:
                    while (await self._get(node, "/cache/stats")).get("dirty"):  # noqa: ASYNC110
                        await asyncio.sleep(POLL_S)

    async def _post(self, node: LocalNode, path: str, body: bytes) -> int:
        return (await asyncio.to_thread(node.call, "POST", path, body)).status

    async def _get(self, node: LocalNode, path: str) -> dict[str, Any]:
        return (await asyncio.to_thread(node.call, "GET", path)).json

    # ---------------------------------------------------------------- checks

    def _judge(self, maker: RequestMaker, request: Any, reply: Reply, entry_point: EntryPoint) -> str:
        """What is wrong with an answer; "" if nothing is."""
        status, document = reply.status, reply.document
        if status == 0:
            is_bad = not is_json_object(b'{"request":%b}' % encode(request))
            # The close frame can get lost when the connection is reset, because the cancel that follows has not been read.
            codes = (BAD_FRAME, 0) if isinstance(maker.operation, Subscription) else (BAD_FRAME,)
            return "" if is_bad and document["close_code"] in codes else reply.body.decode()
        if status >= 500 and status != 503:
            return f"{status} {reply.body[:300]!r}"
        if document.get("code") in ("invalid", "too_large") and "field" not in document:
            detail = document.get("detail", "")
            if not detail.startswith(WITHOUT_FIELD):
                return f"the refusal names no field: {detail[:300]}"
        if self._checks_answers and type(entry_point) is Http and reply.body.startswith(b"{"):
            error = check(maker.operation.answer, status, reply.body)[:600]
            # A value such as 1e400 is valid JSON, and is passed on as it is.
            return "" if error.startswith("Number out of range") else error
        return ""

    def _fault(self, entry_point: EntryPoint, maker: RequestMaker, mutations: tuple[Mutation, ...], text: str) -> None:
        fields = ", ".join(f"`{field_of(one.path)}` = {one.text[:60]}" for one in mutations)
        self.faults.append(f"{maker.operation.name} ({type(entry_point).__name__}) with {fields}: {text}")

    def _check_nodes(self, when: str) -> None:
        for node in self.cluster.nodes:
            if not node.is_running:
                self.faults.append(f"{node.id} has ended {when}:\n{node.log_tail()}")
            with suppress(OSError):
                bad = [line for line in node.log_path.read_bytes().splitlines() if _BAD_LINE.search(line)]
                self.faults += [f"log of {node.id} {when}: {line.decode(errors='replace')[:1500]}" for line in bad[:3]]

    @property
    def _goes_on(self) -> bool:
        return len(self.faults) < FAULTS_MAX and all(node.is_running for node in self.cluster.nodes)

    def _restart(self) -> bool:
        """Whether all nodes are ready again."""
        self.cluster.start()
        try:
            self.cluster.wait_ready()
        except NotReady as error:
            self.faults.append(f"after kill -9 of all nodes: {error}")
            return False
        asyncio.run(self._until_equal())
        self._check_nodes("after kill -9 of all nodes")
        return True

    async def _until_equal(self) -> None:
        """Wait until all nodes have applied the same entries."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while len({(node.status() or {}).get("last_applied") for node in self.cluster.nodes}) > 1:  # noqa: ASYNC110
                    await asyncio.sleep(POLL_S)


def summary(fuzzer: Fuzzer) -> str:
    """What was done, in a few lines."""
    calls = ", ".join(f"{name} {number:,}" for name, number in fuzzer.made.most_common())
    statuses = ", ".join(f"{name} {number:,}" for name, number in fuzzer.statuses.most_common())
    return f"{fuzzer.made.total():,} calls ({calls})\nanswers: {statuses}"
