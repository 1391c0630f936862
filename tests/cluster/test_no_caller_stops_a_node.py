"""Calls and connections of one client that stopped a node, or the cluster, of an older release: each costs an answer at most.

`test_hostile_clients.py` has the floods, and `test_poisonous_calls.py` the calls that could not be applied. These tests use HTTP,
WebSocket and the process only, so they can be run against another checkout (see CONTRIBUTING.md).
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from dss_dev.local_cluster import LocalNode

pytestmark = pytest.mark.cluster

PATIENCE_S = 120.0
KIB = 1024
MIB = 1024 * KIB
SERVERS = pytest.mark.parametrize("server", ["daphne", "uvicorn"])


def websocket(node: LocalNode, receive_bytes: int | None = None) -> Any:
    """A connection; with a small receive buffer, the client soon blocks a server that writes to it."""
    tcp = socket.socket()
    if receive_bytes is not None:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    tcp.settimeout(PATIENCE_S)
    tcp.connect((node.host, node.port))
    return connect(node.websocket_url, ssl=node.tls, sock=tcp, max_size=None, max_queue=1, ping_interval=None, compression=None)


def op(number: int, name: str, **request: Any) -> str:
    return json.dumps({"id": number, "op": name, "request": request}, separators=(",", ":"))


def raw(node: LocalNode) -> socket.socket:
    return node.open_socket(PATIENCE_S)


@contextlib.contextmanager
def not_read(connecting: Any) -> Iterator[Any]:
    """Its client reads nothing; at the end the connection is dropped without a closing handshake."""
    with connecting as client:
        try:
            yield client
        finally:
            with contextlib.suppress(OSError):
                client.socket.shutdown(socket.SHUT_RDWR)


def publish_of(size: int) -> str:
    """A publish call of exactly this many bytes, with values below the limit of a value."""
    bare = len(op(1, "queue.publish", topic="large", messages=[{"value": ""}] * 1000))
    each, rest = divmod(size - bare, 1000)
    values = ["x" * (each + (rest if number == 0 else 0)) for number in range(1000)]
    return op(1, "queue.publish", topic="large", messages=[{"value": value} for value in values])


def test_one_large_publish_does_not_stop_the_writes_of_a_cluster(make_cluster):
    """16 MiB is the longest frame that uvicorn takes by default. As an entry of the leader's log it is longer than a peer frame."""
    # With short timeouts, a busy machine deposes the leader before it has the entry in its log.
    slow = {"RAFT_ELECTION_MIN_MS": "8000", "RAFT_ELECTION_MAX_MS": "9000"}
    cluster = make_cluster(DSS_SERVER="uvicorn", DSS_BODY_BYTES_MAX=str(8 * MIB), DSS_SUBMIT_TIMEOUT_MS="60000", **slow)
    node = cluster.leader()
    with websocket(node) as client:
        client.send(publish_of(7 * MIB))
        assert json.loads(client.recv(PATIENCE_S))["ok"], "as long as one that is allowed"
    with websocket(node) as client, contextlib.suppress(ConnectionClosed, TimeoutError):
        client.send(publish_of(16 * MIB))
        client.recv(5)
    for number, one in enumerate(cluster.nodes):
        reply = one.call("POST", "/cache/put", {"key": f"after-{number}", "value": 1}, timeout_s=PATIENCE_S)
        assert reply.status == 200, reply.body
    cluster.wait_ready()


def test_bursts_of_reads_that_outlast_a_coherence_lease(make_cluster):
    """The reads of a burst take longer than the lease that they wait for. The node still answers others, and stops when asked."""
    (node,) = make_cluster(nodes=1, DSS_SERVER="uvicorn", DSS_CACHE_LEASE_MS="50").nodes
    keys = [f"k{number}" for number in range(1000)]
    assert node.call("POST", "/cache/mput", {"items": [{"key": key, "value": 1} for key in keys]}).status == 200
    calls = [op(number, "cache.mget", keys=keys) for number in range(100)]
    with ThreadPoolExecutor(2) as pool, websocket(node) as one, websocket(node) as other:
        sent = [pool.submit(lambda client=client: list(map(client.send, calls))) for client in (one, other)]
        for _ in calls:
            for client in (one, other):
                assert json.loads(client.recv(PATIENCE_S))["ok"]
        assert [len(one.result()) for one in sent] == [len(calls)] * 2
        assert node.call("GET", "/health", timeout_s=PATIENCE_S).status == 200
    assert node.stop() == 0


def test_more_connections_than_descriptors(make_cluster):
    """The node reserves descriptors for itself: it takes its snapshots while clients hold all others."""
    (node,) = make_cluster(nodes=1, confinement=["1024"], DSS_SNAPSHOT_ENTRIES="20").nodes
    with websocket(node) as client, contextlib.ExitStack() as stack:
        for _ in range(1000):
            with contextlib.suppress(OSError):
                stack.callback(raw(node).close)
        before = snapshot_index(client, 0)
        number = 1
        while snapshot_index(client, number) <= before + 20:
            assert number < 1000, "no snapshot was taken"
            client.send(op(number + 1, "cache.put", key="k", value=number))
            assert json.loads(client.recv(PATIENCE_S))["ok"]
            number += 2
    assert node.is_running, node.log_tail()
    assert node.stop() == 0


def snapshot_index(client: Any, number: int) -> int:
    client.send(op(number, "raft.status"))
    index: int = json.loads(client.recv(PATIENCE_S))["snapshot_index"]
    return index


@SERVERS
def test_a_head_without_an_end_is_refused_while_it_arrives(make_cluster, server):
    (node,) = make_cluster(nodes=1, DSS_SERVER=server).nodes
    with raw(node) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nx-long: " + b"x" * 64 * KIB)
        assert client.recv(1000).startswith(b"HTTP/1.1 431 ")


@SERVERS
def test_a_request_that_does_not_arrive_is_given_up(make_cluster, server):
    (node,) = make_cluster(nodes=1, DSS_SERVER=server).nodes
    with raw(node) as client:
        client.sendall(b"POST /lock/acq")
        assert client.recv(1000).startswith(b"HTTP/1.1 408 ")
        while client.recv(1000):
            pass


@SERVERS
def test_a_slow_body_takes_one_descriptor(make_cluster, server):
    (node,) = make_cluster(nodes=1, DSS_SERVER=server).nodes
    process = psutil.Process(node.pid)
    clients = 40
    before = process.num_fds()
    with contextlib.ExitStack() as stack:
        for _ in range(clients):
            client = stack.enter_context(raw(node))
            client.sendall(
                b"POST /lock/acquire HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Expect: 100-continue\r\nContent-Length: 3000000\r\n\r\n"
            )
            if server == "daphne":
                assert b"100" in client.recv(100)
            client.sendall(b"x" * 200_000)
        assert node.call("GET", "/health").status == 200
        assert process.num_fds() < before + 1.5 * clients


@SERVERS
def test_a_watch_that_nobody_reads_ends(make_cluster, server):
    """It may be 10,000 events behind. Beyond that the subscription ends, and nothing is kept for its client any more."""
    (node,) = make_cluster(nodes=1, DSS_SERVER=server).nodes
    with not_read(websocket(node, 4096)) as watcher:
        watcher.send(op(1, "locks.watch", prefix=""))
        while not watches(node):
            assert node.is_running
        client = "c" * 400
        for number in range(200):
            keys = [f"{'x' * 400}/{number}/{key}" for key in range(64)]
            assert node.call("POST", "/lock/acquire", {"keys": keys, "client": client}).status == 200
            assert node.call("POST", "/lock/release", {"keys": keys, "client": client}).status == 200
            # Not after each: the page of metrics takes longer than both calls.
            if number % 8 == 7 and not watches(node):
                return
        raise AssertionError(f"all {200 * 64 * 2} events, of 1 KB each, are kept")


def watches(node: LocalNode) -> bool:
    return b'dss_subscriptions{subscription="locks.watch"} 1.0' in node.call("GET", "/metrics").body


@SERVERS
def test_answers_that_nobody_reads_have_a_limit_in_bytes(make_cluster, server):
    """200 answers of 1 MB; of these the node keeps 16 MiB at most, and then it drops the connection."""
    (node,) = make_cluster(nodes=1, DSS_SERVER=server).nodes
    keys = [f"k{number}" for number in range(20)]
    items = [{"key": key, "value": "x" * 50_000} for key in keys]
    assert node.call("POST", "/cache/mput", {"items": items}).status == 200
    memory = psutil.Process(node.pid).memory_info
    before = memory().rss
    with not_read(websocket(node, 4096)) as client:
        for number in range(200):
            client.send(op(number, "cache.mget", keys=keys))
        most = 0
        for _ in range(100):
            assert node.call("GET", "/health").status == 200
            most = max(most, memory().rss)
    assert most - before < 100 * MIB


@SERVERS
def test_a_client_that_does_not_read_does_not_keep_a_node_from_stopping(make_cluster, server):
    (node,) = make_cluster(nodes=1, DSS_SERVER=server, DSS_DRAIN_MS="300").nodes
    keys = [f"k{number}" for number in range(20)]
    items = [{"key": key, "value": "x" * 100_000} for key in keys]
    assert node.call("POST", "/cache/mput", {"items": items}).status == 200
    with not_read(websocket(node, 4096)) as client:
        for number in range(6):
            client.send(op(number, "cache.mget", keys=keys))
        assert node.call("GET", "/health").status == 200
        assert node.stop() == 0, node.log_tail()
