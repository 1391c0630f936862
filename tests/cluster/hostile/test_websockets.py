"""Hostile clients on WebSockets: they do not read, do not finish, do not answer, or ask for everything at the same time."""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Callable

import pytest

from dss_dev.confinement import MIB
from dss_dev.hostile import (
    PATIENCE_S,
    RECEIVE_BUFFER_BYTES,
    SCALE,
    Probe,
    call_frame,
    frame,
    has_been_closed,
    send_to_all,
    websocket,
    websockets,
)
from dss_dev.local_cluster import LocalNode

pytestmark = pytest.mark.cluster

BODY_BYTES_MAX = 4 * MIB
MakeProbe = Callable[..., Probe]


@pytest.mark.parametrize("op", ["cache.mget", "raft.status", "nothing"])
def test_answers_that_are_not_read_are_not_kept(node: LocalNode, probe: MakeProbe, op: str) -> None:
    keys = [f"k{number}" for number in range(100)]
    items = [{"key": key, "value": "x" * 10_000} for key in keys]
    assert node.call("POST", "/cache/mput", {"items": items}).status == 200
    request = {"keys": keys} if op == "cache.mget" else {}
    frames = b"".join(call_frame(number, op, request) for number in range(500))
    with probe(), websockets(node, 4 * SCALE, RECEIVE_BUFFER_BYTES) as clients:
        send_to_all(clients, frames * 4, timeout_s=15.0)


def test_watchers_that_never_read(node: LocalNode, probe: MakeProbe) -> None:
    watch = call_frame(1, "locks.watch", {"prefix": "w"})
    meta = {"padding": "x" * 4000}
    with probe(), websockets(node, 10 * SCALE, RECEIVE_BUFFER_BYTES) as clients:
        send_to_all(clients, watch)
        for number in range(300 * SCALE):
            node.call("POST", "/lock/acquire", {"key": f"w{number % 20}", "client": "w", "meta": meta})
            node.call("POST", "/lock/release", {"key": f"w{number % 20}", "client": "w"})


@pytest.mark.parametrize("op", ["locks.watch", "queue.subscribe"])
def test_a_flood_of_subscriptions(node: LocalNode, probe: MakeProbe, op: str) -> None:
    requests = [{"prefix": f"f{n}"} if op == "locks.watch" else {"topic": f"f{n % 50}", "group": "g"} for n in range(1000)]
    frames = b"".join(call_frame(number, op, request) for number, request in enumerate(requests))
    with probe(), websockets(node, 4 * SCALE, RECEIVE_BUFFER_BYTES) as clients:
        send_to_all(clients, frames)
        node.call("POST", "/queue/publish", {"topic": "f1", "value": "x"})


def test_a_flood_of_calls_that_wait(node: LocalNode, probe: MakeProbe) -> None:
    request = {"topic": "none", "group": "g", "timeout_ms": 5000}
    frames = b"".join(call_frame(number, "queue.consume", request) for number in range(1000))
    with probe(), websockets(node, 5 * SCALE) as clients:
        send_to_all(clients, frames)
        time.sleep(1)


def test_large_frames_of_calls_that_wait_are_not_kept(node: LocalNode, probe: MakeProbe) -> None:
    request = {"topic": "none", "group": "g", "timeout_ms": 5000}
    frames = b"".join(call_frame(number, "queue.consume", request, padding=MIB) for number in range(100))
    with probe(), websockets(node, 4 * SCALE) as clients:
        send_to_all(clients, frames, timeout_s=20.0)


@pytest.mark.parametrize("fragments", [False, True])
def test_frames_that_never_end_are_not_kept(node: LocalNode, probe: MakeProbe, fragments: bool) -> None:
    if fragments:
        part = b" " * (MIB // 2)
        data = frame(part, first=0) + frame(part, opcode=0, first=0) * 6
    else:
        data = frame(b" " * (BODY_BYTES_MAX - 1), length=BODY_BYTES_MAX)
    with probe(), websockets(node, 60 * SCALE) as clients:
        send_to_all(clients, data)


def test_messages_of_many_small_frames_are_not_kept(node: LocalNode, probe: MakeProbe) -> None:
    """The server keeps an object for each frame: it takes many times the bytes that were sent."""
    frames = frame(b" ", first=0) + frame(b" ", opcode=0, first=0) * 100_000
    with probe(), websockets(node, 10 * SCALE) as clients:
        send_to_all(clients, frames, timeout_s=20.0)


def test_answers_to_pings_that_are_not_read_are_not_kept(node: LocalNode, probe: MakeProbe) -> None:
    pings = frame(b"x" * 125, opcode=9) * 20_000
    with probe(), websockets(node, 10 * SCALE, RECEIVE_BUFFER_BYTES) as clients:
        send_to_all(clients, pings * 2, timeout_s=20.0)


def test_small_messages_that_arrive_together_are_not_kept(node: LocalNode, probe: MakeProbe) -> None:
    frames = b"".join(call_frame(number, "nothing", {}) for number in range(20_000))
    with probe(), websockets(node, 10 * SCALE, RECEIVE_BUFFER_BYTES) as clients:
        send_to_all(clients, frames, timeout_s=20.0)


def test_a_frame_over_the_limit_is_refused_with_its_code(node: LocalNode, probe: MakeProbe) -> None:
    with probe(), websocket(node) as client:
        send_to_all([client], call_frame(1, "queue.publish", {"topic": "t", "value": "x" * (5 * MIB)}), 5.0)
        answer = b""
        while len(answer) < 4:
            answer += client.recv(100)
        assert answer[0] == 0x88
        assert struct.unpack("!H", answer[2:4]) == (1009,)


def test_compressed_frames_are_as_limited_as_others(node: LocalNode, probe: MakeProbe) -> None:
    """A few kilobytes may not become megabytes."""
    with probe(), websocket(node, 0, "Sec-WebSocket-Extensions: permessage-deflate") as client:
        compress = zlib.compressobj(wbits=-15)
        data = compress.compress(b" " * (64 * MIB)) + compress.flush(zlib.Z_SYNC_FLUSH)
        client.sendall(frame(data[:-4], first=0xC0))
        assert has_been_closed(client)


def test_a_flood_of_connections(node: LocalNode, probe: MakeProbe) -> None:
    with probe():
        for _ in range(SCALE):
            with websockets(node, 300) as clients:
                send_to_all(clients, call_frame(1, "raft.status", {}))
                for client in clients:
                    assert client.recv(100)


def test_subscribers_that_answer_nothing_do_not_use_up_messages(node: LocalNode, probe: MakeProbe) -> None:
    """Their hosts have vanished: what was pushed to them is delivered to a consumer that lives."""
    topic = {"topic": "vanished", "max_attempts": 3}
    assert node.call("PUT", "/queue/topic", topic).status == 200
    subscribe = call_frame(1, "queue.subscribe", {"topic": "vanished", "group": "g", "visibility_ms": 1000})
    with probe(), websockets(node, 5) as clients:
        send_to_all(clients, subscribe)
        for number in range(5):
            assert node.call("POST", "/queue/publish", {"topic": "vanished", "value": number}).status == 200
        # Longer than three attempts would take.
        time.sleep(6)
        values: list[int] = []
        deadline = time.monotonic() + PATIENCE_S
        while len(values) < 5 and time.monotonic() < deadline:
            reply = node.call("POST", "/queue/consume", {"topic": "vanished", "group": "g", "timeout_ms": 2000})
            if reply.status == 200 and reply.json["msg_id"]:
                values.append(reply.json["value"])
                node.call("POST", "/queue/ack", {"topic": "vanished", "group": "g", "msg_id": reply.json["msg_id"]})
        assert sorted(values) == [0, 1, 2, 3, 4], json.dumps(node.call("GET", "/queue/stats").json)[:2000]
