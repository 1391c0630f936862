"""What topics on the engine `redis` keep while primaries of their Cluster are killed: an account of every message.

    make chaos-engine                                       # the table for each `acks`: 100,000 messages, a primary killed every 10 s
    python -m dss_dev.engine_chaos --cut --acks primary     # its replica lacks the last writes each time

Producers and consumers call three nodes over HTTP. A producer publishes the messages of a key in order, in batches, and never repeats a
call, so a message whose call was not answered is there or not, and counts as unknown. Consumers take runs of a key and ack them. Some
messages are poison: they are nacked until they are dead letters. At the end the queue is drained, and every message has its place in the
account.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from dss_dev.local_cluster import LocalCluster, LocalNode, free_ports
from dss_dev.prepared_pages import ENVIRONMENT
from dss_dev.valkey_cluster import ValkeyCluster
from dss_dev.valkey_server import CHANGE_S, wait_until

ACKS = ("primary", "replica", "fsync")
GROUP = "workers"
PRODUCERS, CONSUMERS = 8, 8
KEYS_OF_PRODUCER = 8
BATCH = 10
#: of a consume; a run has at most BATCH messages of a key
TAKE = 50
VISIBILITY_MS = 3000
MAX_ATTEMPTS = 4
POISONS = 64
PAUSE_S = 10.0
#: Messages published in a second, so that several primaries are killed meanwhile.
RATE = 1000
#: Longer than a node repeats a call while its partition has no primary.
CALL_S = 30.0
#: For the messages that are left when all producers are done.
DRAIN_S = 120.0
#: Messages that a replica that is cut off does not get before its primary is killed.
MISSED = 50


class Name(NamedTuple):
    """A message: its key, and its place in the key."""

    key: str
    place: int

    @property
    def is_poison(self) -> bool:
        return self.key.startswith("poison")


@dataclass
class Account:
    """What the clients saw. A message is in exactly one of `answered`, `refused` and `unknown`."""

    answered: set[Name] = field(default_factory=set)
    #: publishes that were refused and may have had no effect, by the code of the refusal
    refused: dict[Name, str] = field(default_factory=dict)
    #: publishes whose outcome is not known
    unknown: set[Name] = field(default_factory=set)
    #: deliveries of each message, in the order in which consumers got them
    deliveries: Counter[Name] = field(default_factory=Counter)
    #: messages by key in the order of their first delivery
    first: dict[str, list[int]] = field(default_factory=dict)
    #: when an answer said that the message is acked
    acked: dict[Name, float] = field(default_factory=dict)
    #: deliveries by a consume that was sent after this answer
    after_ack: list[Name] = field(default_factory=list)
    #: acks whose outcome is not known
    unknown_acks: set[Name] = field(default_factory=set)
    dead: set[Name] = field(default_factory=set)
    killed: int = 0
    seconds: float = 0.0

    @property
    def lost(self) -> set[Name]:
        """Answered, but never delivered, and no dead letters."""
        return self.answered - self.deliveries.keys() - self.dead

    @property
    def invented(self) -> set[Name]:
        return self.deliveries.keys() - self.answered - self.refused.keys() - self.unknown

    @property
    def doubled(self) -> set[Name]:
        """Delivered more than once; poison is meant to be."""
        return {name for name, times in self.deliveries.items() if times > 1 and not name.is_poison}

    @property
    def out_of_order(self) -> list[Name]:
        """First deliveries of a message after that of a later one of its key."""
        found = []
        for key, places in self.first.items():
            highest = -1
            for place in places:
                if place < highest:
                    found.append(Name(key, place))
                highest = max(highest, place)
        return found

    @property
    def stored_after_all(self) -> int:
        """Messages that came although their publish was not answered."""
        return len((self.unknown | self.refused.keys()) & (self.deliveries.keys() | self.dead))

    @property
    def unfinished(self) -> set[Name]:
        """Answered and delivered, but neither acked nor dead."""
        return (self.answered & self.deliveries.keys()) - self.acked.keys() - self.unknown_acks - self.dead

    def row(self) -> list[int]:
        return [
            self.killed,
            len(self.answered),
            len(self.lost),
            len(self.doubled),
            len(set(self.after_ack)),
            len(self.out_of_order),
            len(self.dead),
            len(self.unknown) + len(self.refused),
            self.stored_after_all,
        ]


COLUMNS = (
    "primaries killed",
    "answered",
    "of them lost",
    "delivered twice",
    "of them after an answered ack",
    "out of order in a key",
    "dead letters",
    "outcome unknown",
    "of them stored",
)


class Calls:
    """HTTP calls about a topic, each to a random node."""

    def __init__(self, session: aiohttp.ClientSession, nodes: Sequence[LocalNode], topic: str, seed: int) -> None:
        self._session = session
        self._topic = topic
        self._urls = [node.url for node in nodes]
        self._chance = random.Random(seed)

    async def post(self, name: str, **fields: Any) -> tuple[int, dict[str, Any]]:
        """Status and answer; 0 when there is none."""
        url = f"{self._chance.choice(self._urls)}/queue/{name}"
        try:
            async with self._session.post(url, json={"topic": self._topic, **fields}) as response:
                answer: dict[str, Any] = await response.json(content_type=None)
                return response.status, answer
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return 0, {"code": "no_answer"}

    async def get(self, name: str, **fields: Any) -> dict[str, Any]:
        url = f"{self._chance.choice(self._urls)}/queue/{name}"
        async with self._session.get(url, params={"topic": self._topic, **fields}) as response:
            answer: dict[str, Any] = await response.json(content_type=None)
            return answer


class Run:
    """Producers and consumers, until all messages are published and the queue is drained.

    Args:
        messages: how many are published, poison not counted.
        per_s: not more than this in a second.
        has_keys: False: messages are published without their keys, so nothing keeps them in order.
    """

    def __init__(
        self, nodes: Sequence[LocalNode], acks: str, messages: int, *, per_s: float = RATE, seed: int = 1, has_keys: bool = True
    ) -> None:
        self.account = Account()
        self._nodes = nodes
        self._acks = acks
        self._has_keys = has_keys
        self._topic = f"chaos-{acks}"
        self._batches = messages // (PRODUCERS * BATCH)
        self._batch_s = PRODUCERS * BATCH / per_s
        self._seed = seed
        self._is_drained = False
        self.is_published = False

    @property
    def published(self) -> int:
        account = self.account
        return len(account.answered) + len(account.refused) + len(account.unknown)

    async def __call__(self) -> Account:
        begun = time.monotonic()
        timeout, connector = aiohttp.ClientTimeout(total=CALL_S), aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            calls = Calls(session, self._nodes, self._topic, self._seed)
            self._put_topic()
            async with asyncio.TaskGroup() as group:
                for _ in range(CONSUMERS):
                    group.create_task(self._consume(calls))
                async with asyncio.TaskGroup() as producers:
                    for number in range(PRODUCERS):
                        producers.create_task(self._produce(calls, number))
                self.is_published = True
                await self._drain(calls)
                self._is_drained = True
            await self._collect_dead(calls)
        self.account.seconds = time.monotonic() - begun
        return self.account

    def _put_topic(self) -> None:
        settings = {"topic": self._topic, "engine": "redis", "acks": self._acks, "max_attempts": MAX_ATTEMPTS}
        for path, body in (("topic", settings), ("group", {"topic": self._topic, "group": GROUP})):
            reply = self._nodes[0].call("PUT", f"/queue/{path}", body)
            if reply.status != 200:
                raise RuntimeError(f"PUT /queue/{path}: {reply.body!r}")

    async def _produce(self, calls: Calls, number: int) -> None:
        begun = time.monotonic()
        for batch in range(self._batches):
            await asyncio.sleep(max(0.0, begun + batch * self._batch_s - time.monotonic()))
            key = f"{number}.{batch % KEYS_OF_PRODUCER}"
            first = batch // KEYS_OF_PRODUCER * BATCH
            await self._publish(calls, [Name(key, place) for place in range(first, first + BATCH)])
            if batch % max(1, self._batches * PRODUCERS // POISONS) == 0:
                await self._publish(calls, [Name(f"poison-{number}.{batch}", 0)])

    async def _publish(self, calls: Calls, names: list[Name]) -> None:
        messages = [{"value": name, "key": name.key if self._has_keys else ""} for name in names]
        status, answer = await calls.post("publish", messages=messages)
        if status == 200:
            self.account.answered.update(names)
        elif answer["code"] in ("unknown_outcome", "no_answer"):
            self.account.unknown.update(names)
        else:
            self.account.refused.update(dict.fromkeys(names, answer["code"]))

    async def _consume(self, calls: Calls) -> None:
        account = self.account
        while not self._is_drained:
            asked = time.monotonic()
            status, answer = await calls.post(
                "consume", group=GROUP, timeout_ms=500, visibility_ms=VISIBILITY_MS, max_messages=TAKE, max_per_key=BATCH
            )
            if status != 200:
                continue
            good: list[tuple[Name, dict[str, Any]]] = []
            poison: list[dict[str, Any]] = []
            for message in answer["messages"]:
                name = Name(*message["value"])
                if self._has_keys and not account.deliveries[name]:
                    account.first.setdefault(name.key, []).append(name.place)
                account.deliveries[name] += 1
                if account.acked.get(name, asked) < asked:
                    account.after_ack.append(name)
                if name.is_poison:
                    poison.append(message)
                else:
                    good.append((name, message))
            for message in poison:
                await calls.post("nack", group=GROUP, msg_id=message["msg_id"], receipt=message["receipt"])
            if good:
                await self._ack(calls, good)

    async def _ack(self, calls: Calls, held: list[tuple[Name, dict[str, Any]]]) -> None:
        ids, receipts = ([message[field] for _, message in held] for field in ("msg_id", "receipt"))
        status, answer = await calls.post("ack", group=GROUP, msg_ids=ids, receipts=receipts)
        if status != 200:
            self.account.unknown_acks.update(name for name, _ in held)
            return
        by_id = {message["msg_id"]: name for name, message in held}
        for one in answer["results"]:
            if one["acked"]:
                self.account.acked.setdefault(by_id[one["msg_id"]], time.monotonic())

    async def _drain(self, calls: Calls) -> None:
        until = time.monotonic() + DRAIN_S
        while True:
            (group,) = (await calls.get("stats")).get("groups") or [None]
            if group is not None and group["ready"] == group["in_flight"] == group["delayed"] == 0:
                return
            if time.monotonic() > until:
                raise TimeoutError(f"the queue is not drained: {group}")
            await asyncio.sleep(0.2)

    async def _collect_dead(self, calls: Calls) -> None:
        found = await calls.get("peek", group=GROUP, dead="true", limit="100")
        self.account.dead = {Name(*one["value"]) for one in found["messages"]}


class Killer:
    """Kills primaries, one after another. Each time a replica takes over, and the killed process comes back as its replica.

    Args:
        cuts: the replica is stopped, and its link cut, before it has the last writes.
    """

    def __init__(self, valkey: ValkeyCluster, run: Run, *, cuts: bool, seed: int = 1) -> None:
        self._valkey = valkey
        self._run = run
        self._cuts = cuts
        self._chance = random.Random(seed)

    def kill(self) -> None:
        valkey = self._valkey
        port = self._chance.choice(valkey.primaries)
        if self._cuts:
            (replica,) = valkey.replicas_of(port)
            before = self._run.published
            valkey.server(replica).pause()
            valkey.server(port).client.execute_command("CLIENT", "KILL", "TYPE", "replica")
            wait_until(
                lambda: self._run.published >= before + MISSED or self._run.is_published, CHANGE_S, lambda: "nothing is published"
            )
            valkey.kill(port)
            valkey.server(replica).resume()
        else:
            valkey.kill(port)
        self._run.account.killed += 1
        valkey.wait_ok()
        valkey.start(port)
        valkey.wait_ok()

    async def again_and_again(self, pause_s: float) -> None:
        """Until all messages are published."""
        next_s = time.monotonic() + pause_s / 2
        while not self._run.is_published:
            if time.monotonic() < next_s:
                await asyncio.sleep(0.1)
                continue
            next_s += pause_s
            await asyncio.to_thread(self.kill)


@contextmanager
def started(directory: Path) -> Iterator[tuple[ValkeyCluster, LocalCluster]]:
    """A new Cluster, and three new nodes whose engine it is."""
    with ValkeyCluster(directory / "valkey", settings={"appendfsync": "always"}) as valkey:
        nodes = LocalCluster(directory / "nodes", free_ports(3), {**ENVIRONMENT, "DSS_ENGINE_URL": valkey.url})
        nodes.start()
        try:
            nodes.wait_ready()
            yield valkey, nodes
        finally:
            nodes.stop()


async def measure(valkey: ValkeyCluster, nodes: LocalCluster, acks: str, options: argparse.Namespace) -> Account:
    run = Run(nodes.nodes, acks, options.messages, has_keys=not options.no_keys)
    killing = asyncio.create_task(Killer(valkey, run, cuts=options.cut).again_and_again(options.pause_s))
    account = await run()
    await killing
    return account


def table(rows: list[tuple[str, Account]]) -> str:
    """Markdown."""
    lines = [f"| `acks` | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for acks, account in rows:
        lines.append(f"| `{acks}` | {' | '.join(f'{number:,}' for number in account.row())} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--acks", nargs="*", choices=ACKS, default=ACKS)
    parser.add_argument("--pause-s", type=float, default=PAUSE_S, help="from one kill to the next")
    parser.add_argument("--cut", action="store_true", help="each time, the replica lacks the last writes")
    parser.add_argument("--no-keys", action="store_true", help="messages without keys: what a consume gets is one record")
    options = parser.parse_args()
    rows = []
    for acks in options.acks:
        with tempfile.TemporaryDirectory() as directory, started(Path(directory)) as (valkey, nodes):
            account = asyncio.run(measure(valkey, nodes, acks, options))
        rows.append((acks, account))
        codes = Counter(account.refused.values())
        print(f"{acks}: {account.seconds:.0f} s, refused {dict(codes)}, unfinished {len(account.unfinished)}", file=sys.stderr)
        print(json.dumps(dict(zip(COLUMNS, account.row(), strict=True))), file=sys.stderr)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
