"""The load of `bench_engine.py`: processes with keep-alive connections to all nodes, a call in progress on each.

A step gives every connection a part of the work: some calls of `publish`, or calls of `consume` and `ack` until the topic has nothing left.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import bench_http
import msgspec
import uvloop

from dss_dev.local_cluster import HOST

GROUP = "bench"
VISIBILITY_MS = 60_000
#: JSON of 200 bytes
VALUE = b'"' + b"v" * 198 + b'"'


class Taken(msgspec.Struct):
    """A message, as much of it as the load needs."""

    msg_id: str
    receipt: str


class Answer(msgspec.Struct):
    """An answer of `consume` or `ack`."""

    messages: list[Taken] | None = None
    acked: bool | None = None


_answer = msgspec.json.Decoder(Answer)
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Step:
    """What the connections of one process do."""

    kind: Literal["publish", "consume"]
    topic: str
    #: of one call
    messages: int
    #: of `publish`, for each connection
    calls: int = 0


@dataclass
class Done:
    """What one process has done, or several of them in the same time."""

    messages: int = 0
    errors: int = 0
    #: of single calls, or of `consume` and `ack` together; s
    latencies: list[float] = field(default_factory=list)
    #: user and system time of the load itself, s
    cpu_s: float = 0.0
    #: of HTTP, sent and received
    bytes: int = 0
    #: on the clock that all processes of a machine share, s
    began: float = 0.0
    ended: float = 0.0

    @property
    def per_s(self) -> float:
        return self.messages / (self.ended - self.began)


def together(parts: Iterable[Done]) -> Done:
    """What processes have done that worked at the same time."""
    given = list(parts)
    return Done(
        messages=sum(one.messages for one in given),
        errors=sum(one.errors for one in given),
        latencies=[latency for one in given for latency in one.latencies],
        cpu_s=sum(one.cpu_s for one in given),
        bytes=sum(one.bytes for one in given),
        began=min(one.began for one in given),
        ended=max(one.ended for one in given),
    )


class Publisher:
    """Publishes in calls of the same size."""

    def __init__(self, step: Step) -> None:
        message = b'{"value":%b}' % VALUE
        self._body = b'{"topic":%b,"messages":[%b]}' % (_encode(step.topic), b",".join([message] * step.messages))
        if step.messages == 1:
            self._body = b'{"topic":%b,"value":%b}' % (_encode(step.topic), VALUE)
        self._step = step
        self.messages = 0

    def __call__(self, connection: int, number: int, answer: bytes) -> bench_http.Call | None:
        self.messages += self._step.messages if number else 0
        return ("POST", "/queue/publish", self._body) if number < self._step.calls else None


class Consumer:
    """Consumes, acks what it got, and so on until there is nothing left."""

    def __init__(self, step: Step) -> None:
        self._delivery = {"topic": step.topic, "group": GROUP}
        self._consume = _encode(
            {**self._delivery, "max_messages": step.messages, "timeout_ms": 0, "visibility_ms": VISIBILITY_MS}
        )
        self.messages = 0
        self.not_acked = 0

    def __call__(self, connection: int, number: int, answer: bytes) -> bench_http.Call | None:
        got = _answer.decode(answer) if answer else None
        if got is not None and got.messages:
            self.messages += len(got.messages)
            ids = {"msg_ids": [one.msg_id for one in got.messages], "receipts": [one.receipt for one in got.messages]}
            return "POST", "/queue/ack", _encode({**self._delivery, **ids})
        if got is not None and got.messages is not None:
            return None
        self.not_acked += got is not None and not got.acked
        return "POST", "/queue/consume", self._consume


def run(step: Step, ports: Sequence[int], connections: int) -> Done:
    """Do the part of one process: with this many connections, the ports in turn."""
    return uvloop.run(_run(step, ports, connections))


async def _run(step: Step, ports: Sequence[int], connections: int) -> Done:
    calls = Publisher(step) if step.kind == "publish" else Consumer(step)
    load = bench_http.Load(float("inf"))
    loop = asyncio.get_running_loop()
    cpu_s, began = time.process_time(), time.perf_counter()
    clients = [
        (await loop.create_connection(lambda number=number: bench_http.Connection(number, calls, load), HOST, port))[1]
        for number, port in enumerate(ports[number % len(ports)] for number in range(connections))
    ]
    await asyncio.gather(*(client.finished for client in clients))
    latencies = load.latencies
    if isinstance(calls, Consumer):
        latencies = [consume + ack for consume, ack in zip(latencies[::2], latencies[1::2], strict=False)]
    return Done(
        messages=calls.messages,
        errors=load.errors + (calls.not_acked if isinstance(calls, Consumer) else 0),
        latencies=latencies,
        cpu_s=time.process_time() - cpu_s,
        bytes=load.bytes_sent + load.bytes_received,
        began=began,
        ended=time.perf_counter(),
    )
