"""The SQS endpoint next to this project's own HTTP calls: the same work on three nodes, in turns, in one run.

    python benchmarks/bench_sqs.py                      # the table, also as results/bench_sqs.json
    python benchmarks/bench_sqs.py --rounds 3 --calls 20

One asyncio process calls a follower through aiohttp, with keep-alive connections and one call at a time on each; boto3 takes no part. The
calls to the SQS endpoint have the headers that SDKs send. The nodes have no tokens, so the signature is read but not verified. In each
round, both sides do each step after each other, and the next round begins with the other side. A ratio is that of the two in one round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import msgspec
import uvloop
from bench_http import commit, interpreter

from dss_dev.local_cluster import ROOT, LocalCluster, free_ports

RESULTS = Path(__file__).parent / "results" / "bench_sqs.json"
TEXT = "x" * 100
QUEUES = 8
GROUP = "bench"
BATCH = 10
VISIBILITY_S = 600
RATIO_ASKED = 0.75
BATCHES_PER_S_ASKED = 5000
#: for the first, untimed round
WARM_UP_CALLS = 5

#: message id and receipt
Delivery = tuple[str, str]


class Side(Protocol):
    """One of the two ways to do the work."""

    name: str

    async def publish(self, queue: str, count: int) -> None:
        """Store `count` messages by one call."""

    async def take(self, queue: str, count: int) -> list[Delivery]:
        """Take up to `count` messages by one call."""

    async def settle(self, queue: str, deliveries: list[Delivery]) -> None:
        """Finish these messages by one call."""


class OwnHttp:
    """`publish`, `consume` and `ack` of the API."""

    name = "HTTP"

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def publish(self, queue: str, count: int) -> None:
        message = {"value": TEXT}
        await self._call("publish", {"topic": queue, **(message if count == 1 else {"messages": [message] * count})})

    async def take(self, queue: str, count: int) -> list[Delivery]:
        fields = {"topic": queue, "group": GROUP, "timeout_ms": 0, "visibility_ms": VISIBILITY_S * 1000}
        if count == 1:
            answer = await self._call("consume", fields)
            return [(answer["msg_id"], answer["receipt"])] if answer["msg_id"] else []
        answer = await self._call("consume", {**fields, "max_messages": count})
        return [(one["msg_id"], one["receipt"]) for one in answer["messages"]]

    async def settle(self, queue: str, deliveries: list[Delivery]) -> None:
        msg_ids, receipts = ([one[place] for one in deliveries] for place in (0, 1))
        fields: dict[str, Any] = {"msg_ids": msg_ids, "receipts": receipts}
        if len(deliveries) == 1:
            fields = {"msg_id": msg_ids[0], "receipt": receipts[0]}
        answer = await self._call("ack", {"topic": queue, "group": GROUP, **fields})
        if not answer["acked"]:
            raise RuntimeError(f"a message was not acked: {answer}")

    async def _call(self, operation: str, fields: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        return await post(self._session, f"{self._url}/queue/{operation}", headers, fields)


class Sqs:
    """`SendMessage`, `ReceiveMessage`, `DeleteMessage`, and their batches."""

    name = "SQS"

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def create(self, queue: str) -> None:
        await self._call("CreateQueue", {"QueueName": queue})

    async def publish(self, queue: str, count: int) -> None:
        if count == 1:
            await self._call("SendMessage", {"QueueUrl": self._queue(queue), "MessageBody": TEXT})
            return
        entries = [{"Id": str(place), "MessageBody": TEXT} for place in range(count)]
        await self._call("SendMessageBatch", {"QueueUrl": self._queue(queue), "Entries": entries})

    async def take(self, queue: str, count: int) -> list[Delivery]:
        fields: dict[str, Any] = {"QueueUrl": self._queue(queue), "VisibilityTimeout": VISIBILITY_S, "WaitTimeSeconds": 0}
        if count > 1:
            fields["MaxNumberOfMessages"] = count
        answer = await self._call("ReceiveMessage", fields)
        return [(one["MessageId"], one["ReceiptHandle"]) for one in answer.get("Messages", ())]

    async def settle(self, queue: str, deliveries: list[Delivery]) -> None:
        if len(deliveries) == 1:
            await self._call("DeleteMessage", {"QueueUrl": self._queue(queue), "ReceiptHandle": deliveries[0][1]})
            return
        entries = [{"Id": str(place), "ReceiptHandle": handle} for place, (_, handle) in enumerate(deliveries)]
        answer = await self._call("DeleteMessageBatch", {"QueueUrl": self._queue(queue), "Entries": entries})
        if answer["Failed"]:
            raise RuntimeError(f"messages were not deleted: {answer}")

    def _queue(self, queue: str) -> str:
        return f"{self._url}/000000000000/{queue}"

    async def _call(self, operation: str, fields: dict[str, Any]) -> dict[str, Any]:
        headers = {
            "X-Amz-Target": f"AmazonSQS.{operation}",
            "Content-Type": "application/x-amz-json-1.0",
            "User-Agent": "Boto3/1.44 md/Botocore#1.44 lang/python#3.11",
            "X-Amz-Date": "20260101T000000Z",
            "Authorization": (
                "AWS4-HMAC-SHA256 Credential=any/20260101/us-east-1/sqs/aws4_request, "
                f"SignedHeaders=content-type;host;x-amz-date;x-amz-target, Signature={'0' * 64}"
            ),
            "amz-sdk-invocation-id": "00000000-0000-0000-0000-000000000000",
            "amz-sdk-request": "attempt=1",
        }
        return await post(self._session, f"{self._url}/", headers, fields)


async def post(session: aiohttp.ClientSession, url: str, headers: dict[str, str], fields: dict[str, Any]) -> dict[str, Any]:
    async with session.post(url, data=msgspec.json.encode(fields), headers=headers) as answer:
        body = await answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{url} answers {answer.status}: {body[:500].decode()}")
        decoded: dict[str, Any] = msgspec.json.decode(body) if body else {}
        return decoded


class Load:
    """The work of one side, by `connections` at a time, each on one of the queues."""

    def __init__(self, side: Side, connections: int) -> None:
        self.side = side
        self._connections = connections
        self._taken: list[tuple[str, list[Delivery]]] = []

    async def publish(self, calls: int, count: int) -> float:
        """Messages a second."""

        async def work(number: int) -> int:
            for _ in range(calls):
                await self.side.publish(self._queue(number), count)
            return calls * count

        return await self._timed(work)

    async def take(self, calls: int, count: int) -> float:
        async def work(number: int) -> int:
            total = 0
            for _ in range(calls):
                found = await self.side.take(self._queue(number), count)
                self._taken.append((self._queue(number), found))
                total += len(found)
            return total

        return await self._timed(work)

    async def settle(self, calls: int, count: int) -> float:
        async def work(number: int) -> int:
            total = 0
            while self._taken:
                queue, deliveries = self._taken.pop()
                await self.side.settle(queue, deliveries)
                total += len(deliveries)
            return total

        return await self._timed(work)

    async def take_and_settle(self, calls: int, count: int) -> float:
        """Each connection takes messages, and finishes them before it takes others."""

        async def work(number: int) -> int:
            total = 0
            while found := await self.side.take(self._queue(number), count):
                await self.side.settle(self._queue(number), found)
                total += len(found)
            return total

        return await self._timed(work)

    def _queue(self, number: int) -> str:
        return f"bench-{self.side.name.lower()}-{number % QUEUES}"

    async def _timed(self, work: Callable[[int], Awaitable[int]]) -> float:
        began = time.perf_counter()
        done = sum(await asyncio.gather(*(work(number) for number in range(self._connections))))
        return done / (time.perf_counter() - began)


#: title, what `Load` does, messages per call
STEPS: tuple[tuple[str, Callable[[Load, int, int], Awaitable[float]], int], ...] = (
    ("publish | SendMessage", Load.publish, 1),
    ("consume | ReceiveMessage", Load.take, 1),
    ("ack | DeleteMessage", Load.settle, 1),
    ("messages, published by 10", Load.publish, BATCH),
    ("messages, taken and finished by 10", Load.take_and_settle, BATCH),
)


async def measure(url: str, sqs_url: str, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Title of a step -> name of a side -> messages a second in each round."""
    connector = aiohttp.TCPConnector(limit=options.connections)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=120)) as session:
        sqs = Sqs(session, sqs_url)
        for number in range(QUEUES):
            await sqs.create(f"bench-sqs-{number}")
        loads = [Load(side, options.connections) for side in (OwnHttp(session, url), sqs)]
        rates: dict[str, dict[str, list[float]]] = {title: {load.side.name: [] for load in loads} for title, _, _ in STEPS}
        for number in range(options.rounds + 1):
            for title, step, count in STEPS:
                for load in loads if number % 2 else reversed(loads):
                    per_s = await step(load, options.calls if number else WARM_UP_CALLS, count)
                    if number:
                        rates[title][load.side.name].append(per_s)
    return rates


def row_of(title: str, rates: dict[str, list[float]], count: int) -> dict[str, Any]:
    """A line of the table."""
    http, sqs = rates["HTTP"], rates["SQS"]
    row: dict[str, Any] = {
        "step": title,
        "http_per_s": round(statistics.median(http)),
        "sqs_per_s": round(statistics.median(sqs)),
        "ratio": round(statistics.median(mine / own for own, mine in zip(http, sqs, strict=True)), 2),
    }
    if count == 1:
        return {**row, "ratio_asked": RATIO_ASKED, "is_reached": row["ratio"] >= RATIO_ASKED}
    if title == STEPS[-1][0]:
        return {**row, "sqs_per_s_asked": BATCHES_PER_S_ASKED, "is_reached": row["sqs_per_s"] >= BATCHES_PER_S_ASKED}
    return row


def print_row(row: dict[str, Any]) -> None:
    asked = f"ratio {row['ratio_asked']}" if "ratio_asked" in row else f"{row['sqs_per_s_asked']:,}/s" if len(row) > 4 else ""
    verdict = "" if row.get("is_reached", True) else "short"
    print(f"{row['step']:36} {row['http_per_s']:>8,} {row['sqs_per_s']:>8,} {row['ratio']:>7.2f} {asked:>12}  {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--calls", type=int, default=50, help="of each connection in a step")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        ports = free_ports(6)
        cluster = LocalCluster(Path(name), ports[:3])
        sqs_ports = dict(zip((node.id for node in cluster.nodes), ports[3:], strict=True))
        for node in cluster.nodes:
            node.environment["DSS_SQS_PORT"] = str(sqs_ports[node.id])
        cluster.start()
        try:
            cluster.wait_ready()
            follower = cluster.followers()[0]
            rates = uvloop.run(measure(follower.url, f"http://{follower.host}:{sqs_ports[follower.id]}", options))
        finally:
            cluster.stop()
    machine = f"{os.cpu_count()} cores, {platform.platform()}, {interpreter()}"
    rows = [row_of(title, rates[title], count) for title, _, count in STEPS]
    print(
        f"3 nodes and the load on one machine ({machine}); {options.connections} connections to a follower; messages per second\n"
    )
    print(f"{'medians of ' + str(options.rounds) + ' rounds':36} {'HTTP':>8} {'SQS':>8} {'ratio':>7} {'asked':>12}")
    for row in rows:
        print_row(row)
    result = {
        "machine": machine,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "aiohttp": aiohttp.__version__,
        "connections": options.connections,
        "rounds": options.rounds,
        "calls": options.calls,
        "rows": rows,
        "rounds_per_s": {
            title: {side: [round(one) for one in values] for side, values in by.items()} for title, by in rates.items()
        },
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
