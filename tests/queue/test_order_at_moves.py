"""Random calls at nodes that know of the moves of a topic at different times: per key, answered messages are delivered in their order.

Requests that are repeated take effect once. The nodes run the real routing, and the engine is a real Valkey. Each step of a call (one with
the engine, the commit of a command, the moment when a node applies it) happens when the test lets it, in random order. So a call may stand
still between any two of its steps.
"""

from __future__ import annotations

import asyncio
import random
from itertools import count
from types import SimpleNamespace

import pytest

from dss_api.errors import Refused
from dss_api.request_id import RequestId
from dss_api.result import Result
from dss_queue import engine_upkeep, operations
from dss_queue.both_engines import delete_topic
from dss_queue.core.broker import Broker
from dss_queue.core.commands import AckRequest, ConsumeRequest, Nack, NewMessage, Publish, PublishRequest, SetTopic
from dss_queue.core.engines import EngineLeft
from dss_queue.core.topic_commands import DeleteTopic, PutGroup
from dss_queue.engine_service import EngineService
from dss_queue.engine_upkeep import EngineUpkeep
from dss_queue.routing import ON_ENGINE, Routing, routing_of
from dss_raft.replication.client_requests import ClientRequests, OpenRequestSession, Unknown
from dss_raft.replication.commands import Once
from dss_raft.replication.machine import Origin

NODES = 3
#: Both keys are in a partition of their own.
PARTITIONS = 2
KEYS = ("a", "b")
STEPS = 250
#: Maximum number of calls in progress.
CALLS_MAX = 6
LONG_MS = 10**8
#: Turns of the event loop that a call needs from one step to the next, at most.
TURNS = 40

_names = count()


class Node:
    """A node that has applied a part of the log."""

    node_id = "n"
    unusable_reason = ""
    is_leader = True

    def __init__(self, world: World) -> None:
        self.world = world
        self.broker = Broker()
        self.requests = ClientRequests(self.broker.limits, self.broker.cancel)
        self.requests.apply(OpenRequestSession(session="s"), world.at_ms, 0, Origin("n", 1, 0))
        self.config = SimpleNamespace(
            queue_num_vnodes=64, queue_visibility_timeout_ms=LONG_MS, value_bytes_max=1000, cluster_id=world.name
        )
        self.services = {}
        self.ticks = []
        self.applied = 0
        self.results = {}

    def machine(self, name):
        return {"queue": self.broker, "requests": self.requests}[name]

    def on_upkeep(self, callback):
        self.ticks.append(callback)

    def now_ms(self):
        return self.world.at_ms

    def apply(self, until: int) -> None:
        """Apply entries up to this one."""
        for index, command, at_ms, once in self.world.log[self.applied : until]:
            self.broker.expire(at_ms, index)
            self.results[index] = self.apply_one(command, at_ms, index, once)
            self.broker.take_events()
        self.applied = max(self.applied, until)
        for callback in self.ticks:
            callback()

    def apply_one(self, command, at_ms, index, once):
        origin = Origin("n", 1, index)
        if once is None:
            return self.broker.apply(command, at_ms, index, origin)
        asked = Once(session=once.session, number=once.number, part=once.part, digest=once.digest, command=b"")
        found = self.requests.find(asked, at_ms, origin)
        if not isinstance(found, Unknown):
            return found
        result = self.broker.apply(command, at_ms, index, origin)
        return self.requests.answered(asked, self.requests.sessions["s"], Result(result.body, result.code, index))

    async def submit(self, command, *, once=None, **options):
        await self.world.gate("commit")
        index = self.world.append(command, once)
        await self.world.gate("answer")
        self.apply(index)
        result = self.results[index]
        return Result(result.body, result.code, index)

    async def read_index(self):
        await self.world.gate("read")
        index = len(self.world.log)
        await self.world.gate("answer")
        self.apply(index)

    def propose_as_leader(self, command):
        self.world.append(command)


class World:
    """See the module."""

    def __init__(self, seed: int, url: str, *, with_deletions: bool) -> None:
        self.rng = random.Random(seed)
        self.url = url
        self.name = f"moves{next(_names)}"
        self.at_ms = 1_800_000_000_000
        self.groups = ("g",) if with_deletions else ("g", "h")
        self.log = []
        self.gates = []
        #: entries with which a stay on the engine, or the topic, ended
        self.endings = 0
        self.calls_of_engine = 0
        self.is_idle = asyncio.Event()
        self.nodes = [Node(self) for _ in range(NODES)]
        #: nodes that get calls now; the others fall behind
        self.awake = self.nodes
        self.tasks = set()
        self.failures = []
        #: values of requests that were repeated after the engine had forgotten them
        self.maybe_twice = set()
        self.is_over = False
        #: moments in the test's own order
        self.moment = 0
        #: value -> (key, when it was published, when that was answered)
        self.published = {}
        #: group -> values in the order of their first deliveries
        self.delivered = {group: [] for group in self.groups}
        #: deliveries that have not ended: group, msg_id, receipt
        self.held = []
        #: the values by receipt
        self.values = {}
        #: groups with the values that they have acked
        self.finished = set()
        #: when topics were deleted: from, until
        self.deletions = []
        self.with_deletions = with_deletions
        self.trace = []

    # ------------------------------------------------------------------ the scheduler

    def append(self, command, once=None) -> int:
        self.at_ms += 1
        self.log.append((len(self.log) + 1, command, self.at_ms, once))
        self.endings += isinstance(command, (EngineLeft, DeleteTopic))
        self.trace.append(command)
        return len(self.log)

    async def gate(self, name: str) -> None:
        """Wait until the test lets this step happen."""
        if self.is_over:
            return
        opened = asyncio.get_running_loop().create_future()
        self.gates.append(opened)
        await opened

    async def settle(self) -> None:
        """Until each call waits at a gate, or has ended: nothing is left to do for the event loop."""
        ready = asyncio.get_running_loop()._ready
        for _ in range(TURNS):
            await asyncio.sleep(0)
            while self.calls_of_engine:
                self.is_idle.clear()
                await self.is_idle.wait()
            if not ready:
                return

    async def step(self) -> None:
        """One of the steps that may happen next happens."""
        self.gates = [one for one in self.gates if not one.done()]
        if self.gates:
            self.gates.pop(self.rng.randrange(len(self.gates))).set_result(None)
        await self.settle()
        if self.failures:
            raise self.failures[0]

    def begin(self, call) -> None:
        task = asyncio.ensure_future(call)
        self.tasks.add(task)
        task.add_done_callback(self.ended)

    def ended(self, task) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.failures.append(task.exception())

    def now(self) -> int:
        self.moment += 1
        return self.moment

    async def open(self) -> None:
        for node in self.nodes:
            service = EngineService(node, self.url)
            Routing(node, service)
            node.upkeep = EngineUpkeep(node, service)
            node.ticks.pop()
            await service.start()
            async with asyncio.timeout(30):
                while service.state != "ready":  # noqa: ASYNC110  (the service signals no change)
                    await asyncio.sleep(0.001)
            await service.tasks.stop()
            engine, servers = service._engine, service._servers
            engine.partitions = engine.lifecycle._partitions = PARTITIONS
            self.hold_back(servers)

    def hold_back(self, servers) -> None:
        call = servers.call_and_repeats

        async def held_back(*args, **fields):
            await self.gate("engine")
            self.calls_of_engine += 1
            try:
                return await call(*args, **fields)
            finally:
                self.calls_of_engine -= 1
                self.is_idle.set()

        servers.call_and_repeats = held_back

    async def close(self) -> None:
        self.is_over = True
        for one in self.gates:
            if not one.done():
                one.set_result(None)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for node in self.nodes:
            await node.services["queue.engine"].stop()

    # ------------------------------------------------------------------ calls

    @property
    def node(self) -> Node:
        return self.rng.choice(self.awake)

    async def publish(self, key: str, node: Node, *, with_an_ack: bool = False) -> None:
        value, since = len(self.published), self.now()
        self.published[value] = None
        if with_an_ack:
            # An ack with `publish` takes the same way.
            new = NewMessage("t", str(value).encode(), key, KEYS.index(key), 0, "", b"")
            result = await routing_of(node).submit(Publish(messages=[new]))
            if result.code == ON_ENGINE:
                return
        else:
            request = PublishRequest(topic="t", value=str(value).encode(), key=key)
            once = RequestId("s", value + 1, 0, bytes(16)) if self.rng.randrange(2) else None
            endings = self.endings
            result = await operations.publish(node, request, once)
            if once is not None:
                self.published[value] = (key, since, self.now())
                await self.gate("repeat")
                again = await operations.publish(self.node, request, once)
                if endings == self.endings:
                    assert again.msg_id == result.msg_id, (result, again)
                else:
                    self.maybe_twice.add(value)
                return
        assert not isinstance(result, Result) or not result.code, result
        self.published[value] = (key, since, self.now())

    async def consume(self, group: str) -> None:
        request = ConsumeRequest(topic="t", group=group, timeout_ms=0, max_messages=self.rng.choice([1, 3]))
        answer = await operations.consume(self.node, request)
        if isinstance(answer, Result):
            # The topic was deleted during the call, which does not create it again.
            assert answer.code == "not_found", answer
            return
        for one in answer.messages:
            value = int(bytes(one.value))
            if value not in self.delivered[group]:
                self.delivered[group].append(value)
            assert (group, value) not in self.finished or value in self.maybe_twice
            self.values[one.receipt] = value
            self.held.append((group, one.msg_id, one.receipt))

    async def end_one(self) -> None:
        if not self.held:
            return
        one = self.held.pop(self.rng.randrange(len(self.held)))
        await self.end(*one, is_finished=bool(self.rng.randrange(4)))

    async def end(self, group: str, msg_id: str, receipt: str, *, is_finished: bool = True) -> None:
        """Ack a message, or give it back. Its delivery is not over, unless the topic was deleted."""
        named = {"topic": "t", "group": group, "msg_id": msg_id, "receipt": receipt}
        value = self.values.pop(receipt)
        refusal = None
        try:
            if is_finished:
                has_ended = (await operations.ack(self.node, AckRequest(**named))).acked
            else:
                answer = await operations.nack(self.node, Nack(**named, delay_ms=0))
                has_ended = answer.body["nacked"] if isinstance(answer, Result) else answer.nacked
        except Refused as refused:
            has_ended, refusal = False, refused
        assert has_ended or (self.with_deletions and (refusal is None or refusal.code == "stale_receipt")), (named, refusal)
        if has_ended and is_finished:
            self.finished.add((group, value))

    async def move(self) -> None:
        engine = self.rng.choice(["raft", "redis"])
        await self.node.submit(SetTopic(topic="t", engine=engine, max_attempts=1000, backoff_ms=0))

    async def drain(self) -> None:
        """Finish what is held, and what there is then: a topic with something left in the log cannot come back to it."""
        held, self.held = self.held, []
        for group in self.groups:
            while True:
                for one in held:
                    await self.end(*one)
                held = []
                await self.consume(group)
                if not self.held:
                    break
                held, self.held = self.held, []

    async def there_and_back(self) -> None:
        """Two moves, after which each of the others may know of none, one or both. They go on."""
        node = self.node
        self.awake = [node]
        await self.drain()
        await node.submit(SetTopic(topic="t", engine="redis", max_attempts=1000, backoff_ms=0))
        # A partition that takes messages exists from then on.
        await self.publish(self.rng.choice(KEYS), node)
        others = [one for one in self.nodes if one is not node]
        self.rng.choice(others).apply(node.applied)
        await node.submit(SetTopic(topic="t", engine="raft", max_attempts=1000, backoff_ms=0))
        self.awake = others
        key = self.rng.choice(KEYS)
        for one in sorted(others, key=lambda one: one.applied):
            await self.publish(key, one)

    async def look_after(self) -> None:
        """The upkeep of a leader, which may have just been elected."""
        node = self.node
        topic = node.broker.topics.get("t")
        if topic is not None and topic.engine is not None:
            node.upkeep._plans[topic.engine.incarnation] = (0.0, 1.0)
            await node.upkeep._look_at(topic)
        for incarnation in list(node.broker.registry.abandoned)[:1]:
            await node.upkeep._delete(incarnation, "t", [])

    async def delete(self) -> None:
        since = self.now()
        await delete_topic(self.node, DeleteTopic(topic="t"))
        self.deletions.append((since, self.now()))

    def begin_a_call(self) -> None:
        what = self.rng.choices(
            [
                lambda: self.publish(self.rng.choice(KEYS), self.node, with_an_ack=not self.rng.randrange(4)),
                lambda: self.consume(self.rng.choice(self.groups)),
                self.end_one,
                self.move,
                self.there_and_back,
                self.look_after,
                self.delete,
            ],
            [4, 5, 5, 3, 1, 3, 0.4 if self.with_deletions else 0],
        )[0]
        self.begin(what())

    # ------------------------------------------------------------------ a run

    async def run(self) -> None:
        self.append(SetTopic(topic="t", max_attempts=1000, backoff_ms=0))
        for group in self.groups:
            self.append(PutGroup(topic="t", group=group))
        for _ in range(STEPS):
            what = self.rng.randrange(40)
            if what == 0:
                node = self.rng.choice(self.nodes)
                node.apply(self.rng.randint(node.applied, len(self.log)))
                await self.settle()
            elif what < 4:
                self.awake = self.rng.sample(self.nodes, self.rng.choice([1, 1, 1, 2, 3]))
            elif what < 16 and len(self.tasks) < CALLS_MAX:
                self.begin_a_call()
                await self.settle()
            else:
                await self.step()
        await self.finish()
        self.check()

    async def finish(self) -> None:
        """All calls end, all nodes know everything, and all messages are consumed."""
        await self.end_calls()
        self.awake = self.nodes
        for node in self.nodes:
            node.apply(len(self.log))
        for one in self.held:
            self.begin(self.end(*one, is_finished=False))
        await self.end_calls()
        for group in self.groups:
            empty = 0
            while empty < 2:
                self.held = []
                self.begin(self.consume(group))
                await self.end_calls()
                empty = 0 if self.held else empty + 1
                for one in self.held:
                    self.begin(self.end(*one))
                await self.end_calls()

    async def end_calls(self) -> None:
        while self.tasks:
            await self.step()

    def check(self) -> None:
        answered = {value: one for value, one in self.published.items() if one is not None}
        for group, values in self.delivered.items():
            places = {value: place for place, value in enumerate(values)}
            for value, (_, since, _) in answered.items():
                if not any(since < end for _, end in self.deletions):
                    assert value in places, f"{value} was answered, and group {group} did not get it"
            for first, (key, begun, until) in answered.items():
                for second, (other, since, end) in answered.items():
                    # The answer with a message of a deleted topic may come late.
                    if any(begun < deleted and deleting < end for deleting, deleted in self.deletions):
                        continue
                    if key == other and until < since and first in places and second in places:
                        assert places[first] < places[second], f"group {group} got {second} before {first}: {values}"


async def run(seed: int, url: str, *, with_deletions: bool) -> None:
    world = World(seed, url, with_deletions=with_deletions)
    await world.open()
    try:
        await world.run()
    except BaseException:
        for line in world.trace:
            print(line)
        print(world.published, world.delivered, world.deletions)
        raise
    finally:
        await world.close()


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("with_deletions", [False, True])
async def test_the_order_of_a_key_holds(valkey, monkeypatch, seed, with_deletions):
    # Otherwise, a topic would wait until its requests are forgotten, and none would return to the engine within a run.
    monkeypatch.setattr(engine_upkeep, "REMEMBERED_S", 0.0)
    await run(seed, f"redis://127.0.0.1:{valkey.port}", with_deletions=with_deletions)
