"""Locust: typical use of locks, queue and cache by applications, with a check of all answers.

    make load                                  # 200 users for a minute against `make run`
    make load NODES=1                          # against `make run NODES=1`
    locust -f benchmarks/load_test_scenarios.py --host http://127.0.0.1:8101,http://127.0.0.1:8102

With https, DSS_CA_FILE names the authority. DSS_TOKEN has the token, where nodes ask for one.

Users are spread over the nodes in `--host`, separated by commas. 423 and 409 are not failures where the contract allows them. A wrong
answer is a failure even with status 200: a fencing token that does not grow, a message with another topic's value, a cached value older
than a put that was answered before the get began. All users are in one process, so it can check this.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import random
import uuid
from collections.abc import Iterator
from typing import Any

import gevent
from locust import FastHttpUser, between, task
from locust.env import Environment

from dss_client.tls import default_context

HOSTS = "http://127.0.0.1:8101,http://127.0.0.1:8102,http://127.0.0.1:8103"
#: keeps runs against one cluster apart
RUN = uuid.uuid4().hex[:8]
LOCKS = 40
TOPICS = 4
ENTRIES = 200
CALL_TIMEOUT_S = 30.0

_turns: Iterator[int] = itertools.count()
_newest_token: dict[str, int] = {}
_newest_version: dict[str, int] = {}


class NodeUser(FastHttpUser):
    """A client of one node. New clients use the nodes in turn."""

    abstract = True
    wait_time = between(0.2, 1.0)
    connection_timeout = CALL_TIMEOUT_S
    network_timeout = CALL_TIMEOUT_S
    insecure = False
    # One for all users: to read the system's authorities takes a while.
    ssl_context_factory = staticmethod(functools.cache(lambda: default_context()))
    default_headers = {"Authorization": f"Bearer {os.environ['DSS_TOKEN']}"} if os.environ.get("DSS_TOKEN") else {}

    def __init__(self, environment: Environment) -> None:
        hosts = (environment.host or HOSTS).split(",")
        self.number = next(_turns)
        self.host = hosts[self.number % len(hosts)].strip().rstrip("/")
        super().__init__(environment)
        self.name = f"user-{RUN}-{self.number}"

    def call(self, path: str, body: dict[str, Any], *, also: tuple[int, ...] = (), check: Any = None) -> dict[str, Any] | None:
        """POST. Returns the answer if its status is 200, and None for one of the statuses in `also` or a failure.

        Args:
            also: other statuses that the contract allows, such as 423 for a lock that is held.
            check: gets the answer; returns what is wrong with it, or None.
        """
        with self.client.post(path, json=body, catch_response=True) as response:
            if response.status_code in also:
                response.success()
                return None
            if response.status_code != 200:
                response.failure(f"{response.status_code}: {(response.text or '')[:200]}")
                return None
            try:
                answer: dict[str, Any] = json.loads(response.text)
            except ValueError:
                response.failure(f"not JSON: {(response.text or '')[:200]}")
                return None
            wrong = "ok is not true" if answer.get("ok") is not True else check(answer) if check else None
            if wrong:
                response.failure(wrong)
                return None
            response.success()
            return answer

    def look(self, path: str, name: str) -> None:
        self.client.get(path, name=name)


def _often_the_first(count: int) -> int:
    """Numbers below `count`, with the low ones much more often, like keys in practice."""
    return min(int(random.paretovariate(0.8)) - 1, count - 1)


class LockLoad(NodeUser):
    """Acquires a lock, works for a moment, releases it. Many users want some of the locks."""

    weight = 3

    @task(8)
    def work_alone(self) -> None:
        key = f"{RUN}-account-{_often_the_first(LOCKS)}"
        granted = self.call(
            "/lock/acquire",
            {"key": key, "client": self.name, "ttl_ms": 10_000, "wait_ms": 500},
            also=(423,),
            check=lambda answer: self._token_grows(key, answer),
        )
        if granted is None:
            return
        self.work()
        release = {"key": key, "client": self.name, "fencing_token": granted["fencing_token"]}
        self.call("/lock/release", release, check=lambda answer: None if answer["released"] else "the lock was lost")

    @task(3)
    def read_together(self) -> None:
        key = f"{RUN}-catalog-{_often_the_first(LOCKS)}"
        body = {"key": key, "client": self.name, "mode": "shared", "ttl_ms": 10_000, "wait_ms": 500}
        if self.call("/lock/acquire", body, also=(423,)) is not None:
            self.work()
            self.call("/lock/release", {"key": key, "client": self.name})

    @task(2)
    def keep_for_longer(self) -> None:
        own = {"key": f"{RUN}-job-of-{self.name}", "client": self.name}
        if self.call("/lock/acquire", {**own, "ttl_ms": 5000}) is not None:
            self.call("/lock/renew", own)
            self.call("/lock/release", own)

    @task(1)
    def look_around(self) -> None:
        self.look(f"/lock/status?key={RUN}-account-0", "/lock/status")

    def work(self) -> None:
        gevent.sleep(random.uniform(0.005, 0.05))

    @staticmethod
    def _token_grows(key: str, answer: dict[str, Any]) -> str | None:
        """The previous holder had its answer before it released the lock, so its token is known here."""
        before, token = _newest_token.get(key, 0), answer["fencing_token"]
        _newest_token[key] = max(before, token)
        return None if token > before else f"fencing token {token} after {before}"


class QueueLoad(NodeUser):
    """Publishes orders, some of them for the same customer, and processes those of other users."""

    weight = 3

    def on_start(self) -> None:
        self.topic = f"{RUN}-orders-{self.number % TOPICS}"

    @task(6)
    def publish(self) -> None:
        value = {"topic": self.topic, "order": random.randrange(10**6), "note": "x" * random.randrange(200)}
        customer = f"customer-{random.randrange(50)}" if random.random() < 0.5 else ""
        self.call("/queue/publish", {"topic": self.topic, "value": value, "key": customer})

    @task(1)
    def publish_several(self) -> None:
        messages = [{"value": {"topic": self.topic, "order": number}} for number in range(5)]
        self.call("/queue/publish", {"topic": self.topic, "messages": messages})

    @task(5)
    def consume(self) -> None:
        place = {"topic": self.topic, "group": "shipping"}
        got = self.call("/queue/consume", {**place, "timeout_ms": 500, "max_messages": 4}, check=self._is_ours)
        if not got or not got["messages"]:
            return
        gevent.sleep(random.uniform(0.0, 0.03))
        several = {"msg_ids": [one["msg_id"] for one in got["messages"]], "receipts": [one["receipt"] for one in got["messages"]]}
        # 409: the work took too long, and another consumer has the message now.
        self.call("/queue/ack", {**place, **several}, also=(409,))

    @task(1)
    def fail_once(self) -> None:
        place = {"topic": self.topic, "group": "billing"}
        got = self.call("/queue/consume", {**place, "timeout_ms": 100}, check=self._is_ours)
        if not got or got["msg_id"] is None:
            return
        delivery = {**place, "msg_id": got["msg_id"], "receipt": got["receipt"]}
        if got["attempt"] == 1:
            self.call("/queue/nack", delivery, also=(409,))
        else:
            self.call("/queue/ack", delivery, also=(409,))

    @task(1)
    def look_around(self) -> None:
        self.look(f"/queue/stats?topic={self.topic}", "/queue/stats")

    def _is_ours(self, answer: dict[str, Any]) -> str | None:
        messages = answer.get("messages", [answer] if answer.get("msg_id") else [])
        strange = [one["value"] for one in messages if one["value"]["topic"] != self.topic]
        return f"a message of another topic: {strange[0]}" if strange else None


class CacheLoad(NodeUser):
    """Reads often, writes sometimes, and counts."""

    weight = 4

    @task(20)
    def get(self) -> None:
        key = f"{RUN}-page-{_often_the_first(ENTRIES)}"
        answered_before = _newest_version.get(key, 0)
        self.call("/cache/get", {"key": key}, check=lambda answer: self._not_older(key, answered_before, answer))

    @task(4)
    def put(self) -> None:
        key = f"{RUN}-page-{_often_the_first(ENTRIES)}"
        answer = self.call("/cache/put", {"key": key, "value": {"by": self.name, "text": "x" * random.randrange(300)}})
        if answer is not None:
            _newest_version[key] = max(_newest_version.get(key, 0), answer["version"])

    @task(1)
    def compare_and_set(self) -> None:
        key = f"{RUN}-stock-{_often_the_first(ENTRIES)}"
        read = self.call("/cache/get", {"key": key})
        if read is not None:
            # 409: another user was faster.
            self.call("/cache/put", {"key": key, "value": 1, "if_version": read["version"]}, also=(409,))

    @task(1)
    def count(self) -> None:
        self.call("/cache/incr", {"key": f"{RUN}-visits-{random.randrange(5)}", "delta": 1})

    @staticmethod
    def _not_older(key: str, answered_before: int, answer: dict[str, Any]) -> str | None:
        version = answer["version"]
        return f"version {version} of {key} after {answered_before} was answered" if version < answered_before else None
