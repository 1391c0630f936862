"""`Client` with threads, forks and signals, on one real node."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from dss_client import (
    AsyncClient,
    Client,
    ClientClosed,
    Deadlock,
    DssError,
    Exists,
    LockHeld,
    LockLost,
    LockNotHeld,
    LockTimeout,
    NotFound,
    NotHolder,
    Unavailable,
    Unencodable,
    VersionConflict,
    WrongToken,
    WrongUse,
    background,
)
from dss_dev.local_cluster import LocalCluster, free_ports

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def url(real_node: LocalCluster) -> str:
    return real_node.nodes[0].url


@pytest.fixture(scope="module")
def dss(url: str, token: str) -> Iterator[Client]:
    with Client(url, token, name="test") as client:
        yield client


def in_thread(function: Any) -> Any:
    """The result of a function that another thread calls, or its error."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(function())
        except DssError as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    return results[0]


# ----------------------------------------------------------------- locks


def test_a_lock(dss: Client) -> None:
    lock = dss.lock("a lock", ttl=20, wait=1)
    with lock as held:
        assert held.token > 0
        assert lock.token == held.token
        assert held.name.startswith("test:")
        assert lock.locked()
        assert lock.owned()
        assert not held.lost.is_set()
        assert not held.lost.wait(0.01)
        assert held.extend(10)
        assert 21 < (held.remaining or 0) < 30
        assert held.reacquire()
        assert 10 < (held.remaining or 0) < 20
    assert not lock.locked()
    assert not lock.owned()
    for use in (held.release, lock.release, lambda: held.extend(1), lambda: lock.extend(1), held.reacquire, lock.reacquire):
        with pytest.raises(LockNotHeld):
            use()


def test_another_holder(dss: Client) -> None:
    def wait() -> bool:
        return dss.lock("k").acquire(wait=0.05)

    def enter() -> None:
        with dss.lock("k", wait=0):
            pass

    with dss.lock("k") as held:
        assert in_thread(wait) is False
        error = in_thread(enter)
        assert isinstance(error, LockHeld)
        assert isinstance(error, LockTimeout)
        assert error.holders[0]["fencing_token"] == held.token
        assert error.position == 1


def test_threads_exclude_each_other(dss: Client) -> None:
    count = 0

    def work() -> None:
        nonlocal count
        for _ in range(10):
            with dss.lock("counter"):
                before = count
                time.sleep(0.0005)
                count = before + 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == 50


def test_a_lock_belongs_to_its_thread(dss: Client) -> None:
    lock = dss.lock("k")
    with lock as held:
        for use in (lock.release, held.release, lambda: held.extend(1), held.for_ack):
            assert isinstance(in_thread(use), LockNotHeld)
        # For itself, another thread can acquire with the same object.
        assert in_thread(lambda: lock.acquire(blocking=False)) is False
        with pytest.raises(WrongUse):
            lock.acquire()


def test_a_lock_of_all_threads(dss: Client) -> None:
    lock = dss.lock("k", thread_local=False)
    lock.acquire()
    assert in_thread(lock.owned) is True
    assert in_thread(lock.release) is None
    assert not lock.locked()


def test_several_and_shared_locks(dss: Client) -> None:
    with dss.locks(["a", "b"]) as held:
        assert set(held.tokens) == {"a", "b"}
        assert in_thread(lambda: dss.lock("b").acquire(blocking=False)) is False
    with dss.lock("report", shared=True):
        assert in_thread(lambda: dss.lock("report", shared=True).acquire(blocking=False)) is True
    # The same thread, through two objects
    with dss.lock("twice", shared=True), dss.lock("twice", shared=True) as second:
        assert second.owned()


def test_a_deadlock_of_threads_names_the_cycle(dss: Client) -> None:
    has_b = threading.Event()
    errors: list[Deadlock] = []

    def other() -> None:
        with dss.lock("b"):
            has_b.set()
            while not dss.call("locks.status", key="b")["waiters"]:
                time.sleep(0.01)
            try:
                with dss.lock("a"):
                    pass
            except Deadlock as error:
                errors.append(error)

    thread = threading.Thread(target=other)
    with dss.lock("a") as held:
        thread.start()
        has_b.wait(60)
        with dss.lock("b"):
            pass
        thread.join(60)
        assert [step["waits_for"] for step in errors[0].cycle] == ["a", "b"]
        assert errors[0].cycle[0]["held_by"] == held.name


def test_a_lock_that_is_taken_away(dss: Client) -> None:
    lock = dss.lock("taken", ttl=0.6)
    held = lock.__enter__()
    dss.call("locks.force_release", key="taken", reason="test", by="test")
    assert held.lost.wait(60)
    with pytest.raises(LockLost):
        held.extend(1)
    with pytest.raises(LockLost):
        lock.__exit__(None, None, None)


# ------------------------------------------------------- processes, signals

PAUSED = """
import sys, time
from dss_client import Client, LockLost
dss = Client()
try:
    with dss.lock("paused", ttl=0.5) as held:
        print(held.token, flush=True)
        sys.stdin.readline()
        print(held.lost.is_set(), flush=True)
except LockLost:
    print("LockLost", flush=True)
"""

FORKED = """
import os, sys
from dss_client import Client, LockNotHeld
dss = Client()
lock = dss.lock("forked", ttl=30)
with lock as held:
    dss.cache.put("parent", 1)
    pid = os.fork()
    if pid == 0:
        assert held.lost.is_set()
        for use in (lock.release, held.release, lambda: held.extend(1)):
            try:
                use()
                os._exit(1)
            except LockNotHeld:
                pass
        assert not lock.acquire(blocking=False)
        with dss.lock("child") as mine:
            assert mine.name != held.name
            assert dss.cache.get("parent") == 1
        dss.close()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
    assert held.owned() and not held.lost.is_set()
print("done")
"""

WORKER = """
import sys, time
from dss_client import Client
dss = Client()
@dss.worker("drained", group="g", concurrency=2)
def slow(message):
    print("begun", flush=True)
    while not slow._loop._stopping.is_set():
        time.sleep(0.01)
    print("stopping", flush=True)
    sys.stdin.readline()
    dss.cache.put("drained", message.value)
@dss.worker("other", group="g")
async def other(message):
    pass
dss.run_workers()
print(slow.done, flush=True)
"""


def start(script: str, url: str, token: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "DSS_URLS": url, "DSS_TOKEN": token}
    return subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_paused_process_has_lost_its_lock(dss: Client, url: str, token: str) -> None:
    with start(PAUSED, url, token) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        token_of_process = int(process.stdout.readline())
        process.send_signal(signal.SIGSTOP)
        # It is granted here when the lease has ended.
        with dss.lock("paused") as held:
            assert held.token > token_of_process
            process.stdin.write("\n")
            process.stdin.flush()
            process.send_signal(signal.SIGCONT)
            assert process.stdout.read().split() == ["True", "LockLost"]


def test_the_child_of_a_fork_is_another_client(url: str, token: str) -> None:
    with start(FORKED, url, token) as process:
        assert process.communicate(timeout=60)[0] == "done\n"


def test_sigterm_drains_the_workers(dss: Client, url: str, token: str) -> None:
    dss.topic("drained").publish("value")
    with start(WORKER, url, token) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "stopping\n"
        dss.topic("drained").publish("a second one")
        assert process.communicate("\n", timeout=60)[0] == "1\n"
    assert process.returncode == 0
    assert dss.cache.get("drained") == "value"
    (group,) = dss.topic("drained").stats()["groups"]
    assert (group["in_flight"], group["acked"]) == (0, 1)


# ------------------------------------------------------------ queue, cache


def test_a_worker(dss: Client) -> None:
    topic = dss.topic("orders 1")
    topic.publish_many(range(20))
    failed_once = threading.Event()
    seen = []

    @dss.worker("orders 1", group="billing", concurrency=4, backoff=0.01)
    def bill(message: Any) -> None:
        if message.value == 7 and not failed_once.is_set():
            failed_once.set()
            raise ValueError("once")
        seen.append(message.value)
        if len(seen) == 20:
            bill.stop()

    bill.run(handle_signals=False)
    assert sorted(seen) == list(range(20))
    assert (bill.done, bill.failed) == (20, 1)


def test_an_ack_publishes_and_releases_in_one_step(dss: Client) -> None:
    dss.topic("orders 2").publish(1)
    (message,) = dss.topic("orders 2").consume("billing", wait=2)
    lock = dss.lock("customer")
    with lock as held:
        (receipt,) = message.ack(publish=[("invoices 2", {"of": 1})], release=[held])
    assert not lock.locked()
    assert message.is_settled
    (invoice,) = dss.topic("invoices 2").consume("mail", wait=2)
    assert (invoice.msg_id, invoice.value) == (receipt.msg_id, {"of": 1})
    invoice.nack(delay=0, dead=True)
    assert len(dss.topic("invoices 2").peek(group="mail", dead=True)) == 1


def test_an_ack_with_a_lost_lock_does_nothing(dss: Client) -> None:
    dss.topic("orders 3").publish(1)
    (message,) = dss.topic("orders 3").consume("billing", wait=2)
    lock = dss.lock("customer 3", renew=False)
    held = lock.__enter__()
    dss.call("locks.force_release", key="customer 3", reason="test", by="test")
    with pytest.raises(NotHolder):
        message.ack(publish=[("invoices 3", 1)], release=[held])
    assert not message.is_settled
    message.ack()
    with pytest.raises(LockLost):
        lock.release()


def test_the_cache(dss: Client) -> None:
    cache = dss.cache
    assert cache.get("key") is None
    assert cache.get("key", "default") == "default"
    version = cache.put("key", {"a": [1, None]}, ttl=60)
    entry = cache.entry("key")
    assert (entry.value, entry.found, entry.version) == ({"a": [1, None]}, True, version)
    newer = cache.cas("key", "new", version)
    with pytest.raises(VersionConflict) as conflict:
        cache.cas("key", "newer", version)
    assert conflict.value.version == newer
    with pytest.raises(Exists):
        cache.add("key", 1)
    assert cache.add("other", 1) > 0
    assert [cache.incr("count"), cache.incr("count", 5)] == [1, 6]
    assert cache.mput({"x": 1, "y": None}).keys() == {"x", "y"}
    assert cache.mget(["x", "y", "z"]) == {"x": 1, "y": None}
    assert cache.delete("key")
    assert not cache.delete("key")
    assert cache.incr("count", must_exist=True) == 7
    with pytest.raises(NotFound):
        cache.incr("unknown", must_exist=True)
    assert (cache.touch("count", ttl=60), cache.touch("unknown")) == (True, False)
    cache.put("bytes", b"\x00\xff")
    assert cache.get("bytes") == cache.entry("bytes").value == b"\x00\xff"
    cache.mput({"more": memoryview(b"more"), "text": "bW9yZQ=="})
    assert cache.mget(["more", "text"]) == {"more": b"more", "text": "bW9yZQ=="}
    assert cache.mdelete(["more", "text", "unknown"]) == 2
    cache.mput({"page/1": 1, "page/2": 2, "pages": 3})
    assert cache.clear("page/") == 2
    assert cache.mget(["page/1", "pages"]) == {"pages": 3}
    assert cache.trace("count", limit=2)
    for value in (object(), {("a", "b"): 1}):
        with pytest.raises(Unencodable):
            cache.put("key", value)


# ----------------------------------------------------------- connections


@pytest.mark.parametrize("transport", ["websocket", "http"])
def test_both_transports(url: str, token: str, transport: Any) -> None:
    with Client(url, token, transport=transport) as dss:
        assert dss.call("raft.status")["node"] == "node-1"
        assert dss.call("locks.status", key="a b/c?&", consistency="local")["locked"] is False
        with dss.lock("k", ttl=6, wait=1) as held:
            assert in_thread(lambda: dss.lock("k").acquire(wait=0.01)) is False
            time.sleep(6.1)
            assert held.owned()
        dss.topic(transport).publish(1)
        (message,) = dss.topic(transport).consume("g", wait=1)
        assert message.value == 1
        message.ack()
        assert dss.call("queue.topic_delete", topic=transport)["deleted"]


@pytest.mark.parametrize("transport", ["websocket", "http"])
@pytest.mark.parametrize("wrong", ["", "wrong"])
def test_a_wrong_token(url: str, wrong: str, transport: Any) -> None:
    with Client(url, wrong, transport=transport) as dss, pytest.raises(WrongToken):
        dss.cache.get("key")


def test_no_node_at_the_address() -> None:
    (port,) = free_ports(1)
    with Client(f"http://127.0.0.1:{port}", timeout=1) as dss, pytest.raises(Unavailable, match="refused"):
        dss.cache.get("key")


def test_a_closed_client(url: str, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A busy node may need longer to release a lock than a program should wait at its end.
    monkeypatch.setattr(background, "CLOSE_S", 60.0)
    dss = Client(url, token)
    lock = dss.lock("closed")
    lock.acquire()
    dss.close()
    dss.close()
    for use in (lock.release, lambda: dss.cache.get("key")):
        with pytest.raises(ClientClosed):
            use()
    with Client(url, token) as other:
        assert not other.lock("closed").locked()


def test_a_forgotten_client_leaves_no_thread(url: str, token: str) -> None:
    before = set(threading.enumerate())
    forgotten = Client(url, token)
    forgotten.cache.get("key")
    assert set(threading.enumerate()) - before
    del forgotten
    gc.collect()
    deadline = time.monotonic() + 60
    # Threads of earlier tests may end meanwhile.
    while set(threading.enumerate()) - before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def test_both_clients_agree(url: str, token: str) -> None:
    async with AsyncClient(url, token) as dss, dss.lock("k") as held:
        assert await held.owned()
        assert held.token > 0


async def test_a_coroutine_may_not_wait_for_its_own_thread(dss: Client) -> None:
    async def call() -> None:
        dss.cache.get("key")

    with pytest.raises(WrongUse):
        dss._run(call())
