"""Nodes are killed under locks and workers."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from dss_client import Client, DssError
from dss_dev.local_cluster import LocalCluster

pytestmark = pytest.mark.cluster
MESSAGES = 40


def urls_from(cluster: LocalCluster, first: Any) -> list[str]:
    return [first.url, *(node.url for node in cluster.nodes if node is not first)]


def test_a_killed_leader_and_a_paused_node(three_nodes: LocalCluster) -> None:
    """The client talks to the leader, which is killed while a lock is held, messages are handled and a counter is incremented."""
    leader = three_nodes.leader()
    with Client(urls_from(three_nodes, leader), timeout=60) as dss:
        dss._client._config = replace(dss._client._config, check_s=0.2)
        dss.topic("orders").publish_many(range(MESSAGES))
        handled: list[int] = []
        counted: list[int] = []
        errors: list[BaseException] = []
        started, has_recovered = threading.Event(), threading.Event()

        @dss.worker("orders", group="billing", concurrency=4, visibility=60)
        def bill(message: Any) -> None:
            handled.append(message.value)
            if len(handled) == MESSAGES // 4:
                started.set()
            time.sleep(0.02)
            message.ack(publish=[("invoices", message.value)])
            if bill.done >= MESSAGES - 4 and len(handled) >= MESSAGES:
                bill.stop()

        def count() -> None:
            while not has_recovered.is_set():
                try:
                    counted.append(dss.cache.incr("count"))
                except DssError as error:
                    errors.append(error)
                    return

        threads = [threading.Thread(target=bill.run), threading.Thread(target=count)]
        with dss.lock("precious", ttl=20) as held:
            for thread in threads:
                thread.start()
            assert started.wait(60)
            leader.kill()
            threads[0].join(120)
            has_recovered.set()
            threads[1].join(120)
            assert held.owned()
            assert not held.lost.is_set()
        assert errors == []
        # No ack was lost, and none had its effect twice.
        assert sorted(handled) == list(range(MESSAGES))
        assert (bill.done, bill.failed) == (MESSAGES, 0)
        invoices = dss.topic("invoices").consume("mail", max_messages=1000, wait=1)
        assert sorted(invoice.value for invoice in invoices) == list(range(MESSAGES))
        assert counted == list(range(1, len(counted) + 1))

        # A node that is paused is a half-open connection: it takes everything and answers nothing.
        leader.start()
        three_nodes.wait_ready(nodes=[leader])
        paused = next(node for node in three_nodes.nodes if node.url == url_of(dss))
        with dss.lock("precious", ttl=12) as held:
            paused.pause()
            ends_s = held._held._until
            # Not the leader, perhaps: then only the client notices.
            assert dss.cache.incr("count") == len(counted) + 1
            assert url_of(dss) != paused.url
            # It is renewed at another node.
            deadline = time.monotonic() + 60
            while held._held._until == ends_s:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert held.owned()
            assert not held.lost.is_set()
        paused.resume()


def url_of(dss: Client) -> str:
    core = dss._client._core
    assert core is not None
    assert core._connection is not None
    return core._connection.url
