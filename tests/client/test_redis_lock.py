"""redis-py's own tests of `Lock`, ported to this client: tests/test_lock.py of redis 8.1.0, all cases of `TestLock`.

Each test keeps its name and its assertions, as far as the API has the thing; a comment says what differs. docs/reference/client.md
lists the differences.

The original is under the MIT License:

    Copyright (c) 2022-2023, Redis, inc.

    Permission is hereby granted, free of charge, to any person obtaining a copy
    of this software and associated documentation files (the "Software"), to deal
    in the Software without restriction, including without limitation the rights
    to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
    copies of the Software, and to permit persons to whom the Software is
    furnished to do so, subject to the following conditions:

    The above copyright notice and this permission notice shall be included in all
    copies or substantial portions of the Software.

    THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
    IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
    FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
    AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
    LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
    OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
    SOFTWARE.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from dss_client import Client, LockLost, LockNotHeld, LockTimeout, WrongUse

pytestmark = pytest.mark.cluster


class Redis:
    """What the tests ask the server, as far as it has the thing."""

    def __init__(self, dss: Client) -> None:
        self.lock = dss.lock
        self._dss = dss

    def get(self, key: str) -> int | None:
        """The token of the holder."""
        holders = self._holders(key)
        return holders[0]["fencing_token"] if holders else None

    def pttl(self, key: str) -> int:
        """The lease; -1: the lock has none."""
        expires_in_ms = self._holders(key)[0]["expires_in_ms"]
        return -1 if expires_in_ms is None else expires_in_ms

    def ttl(self, key: str) -> float:
        pttl = self.pttl(key)
        return pttl if pttl < 0 else pttl / 1000

    def set(self, key: str, client: str) -> None:
        """Another client holds the lock from now on."""
        if self._holders(key):
            self._dss.call("locks.force_release", key=key, reason="test")
        self._dss.call("locks.acquire", key=key, client=client, ttl_ms=0)

    def _holders(self, key: str) -> list[dict[str, Any]]:
        holders: list[dict[str, Any]] = self._dss.call("locks.status", key=key)["holders"]
        return holders


@pytest.fixture(params=["websocket", "http"])
def r(request: pytest.FixtureRequest, dss_url: str) -> Iterator[Redis]:
    with Client(dss_url, transport=request.param) as dss:
        yield Redis(dss)


class TestLock:
    # A lock of redis-py has no lease unless it is given one (`timeout`). Here, it has one of 30 s; `ttl=None` is none.

    def test_lock(self, r: Redis) -> None:
        lock = r.lock("foo", ttl=None)
        assert lock.acquire(blocking=False)
        assert r.get("foo") == lock.token
        assert r.ttl("foo") == -1
        lock.release()
        assert r.get("foo") is None

    def test_lock_token(self, r: Redis) -> None:
        self._test_lock_token(r, thread_local=True)

    def test_lock_token_thread_local_false(self, r: Redis) -> None:
        self._test_lock_token(r, thread_local=False)

    def _test_lock_token(self, r: Redis, thread_local: bool) -> None:
        # The cluster gives the token, so `acquire` does not take one.
        lock = r.lock("foo", ttl=None, thread_local=thread_local)
        assert lock.acquire(blocking=False)
        assert isinstance(lock.token, int)
        assert r.get("foo") == lock.token
        assert r.ttl("foo") == -1
        lock.release()
        assert r.get("foo") is None
        assert lock.token is None

    def test_locked(self, r: Redis) -> None:
        lock = r.lock("foo")
        assert lock.locked() is False
        lock.acquire(blocking=False)
        assert lock.locked() is True
        lock.release()
        assert lock.locked() is False

    def _test_owned(self, r: Redis) -> None:
        lock = r.lock("foo")
        assert lock.owned() is False
        lock.acquire(blocking=False)
        assert lock.owned() is True
        lock.release()
        assert lock.owned() is False

        lock2 = r.lock("foo")
        assert lock.owned() is False
        assert lock2.owned() is False
        lock2.acquire(blocking=False)
        assert lock.owned() is False
        assert lock2.owned() is True
        lock2.release()
        assert lock.owned() is False
        assert lock2.owned() is False

    def test_owned(self, r: Redis) -> None:
        self._test_owned(r)

    def test_owned_with_decoded_responses(self, r: Redis) -> None:
        # There is one kind of answers.
        self._test_owned(r)

    def test_competing_locks(self, r: Redis) -> None:
        lock1 = r.lock("foo")
        lock2 = r.lock("foo")
        assert lock1.acquire(blocking=False)
        assert not lock2.acquire(blocking=False)
        lock1.release()
        assert lock2.acquire(blocking=False)
        assert not lock1.acquire(blocking=False)
        lock2.release()

    def test_timeout(self, r: Redis) -> None:
        lock = r.lock("foo", ttl=10)
        assert lock.acquire(blocking=False)
        assert 1 < r.ttl("foo") <= 10
        lock.release()

    def test_float_timeout(self, r: Redis) -> None:
        lock = r.lock("foo", ttl=9.5)
        assert lock.acquire(blocking=False)
        assert 1 < r.pttl("foo") <= 9500
        lock.release()

    def test_blocking_timeout(self, r: Redis) -> None:
        # The node waits, so the client does not sleep (`sleep`). The lock is not renewed, because a thread that keeps
        # renewing a lock would wait for itself: that is a `Deadlock`.
        lock1 = r.lock("foo", renew=False)
        assert lock1.acquire(blocking=False)
        try:
            bt = 0.1
            lock2 = r.lock("foo", wait=bt)
            started = time.monotonic()
            assert not lock2.acquire()
            assert time.monotonic() - started >= bt
        finally:
            lock1.release()

    def test_context_manager(self, r: Redis) -> None:
        with r.lock("foo", wait=0.2) as lock:
            assert r.get("foo") == lock.token
        assert r.get("foo") is None

    def test_context_manager_blocking_timeout(self, r: Redis) -> None:
        with r.lock("foo", wait=0, renew=False):
            bt = 0.1
            lock2 = r.lock("foo", wait=bt)
            started = time.monotonic()
            assert not lock2.acquire()
            assert time.monotonic() - started >= bt

    def test_context_manager_raises_when_locked_not_acquired(self, r: Redis) -> None:
        r.set("foo", "bar")
        with pytest.raises(LockTimeout), r.lock("foo", wait=0.1):
            pass

    def test_context_manager_not_raise_on_release_lock_not_owned_error(self, r: Redis) -> None:
        # `contextlib.suppress` does what `raise_on_release_error=False` does. Locks are renewed unless `renew` is false.
        with contextlib.suppress(LockLost), r.lock("foo", ttl=0.3, renew=False) as lock:
            assert lock.lost.wait(60)

        with pytest.raises(LockLost), r.lock("foo", ttl=0.3, renew=False) as lock:
            assert lock.lost.wait(60)

    def test_context_manager_not_raise_on_release_lock_error(self, r: Redis) -> None:
        # A release in the block is no error.
        with r.lock("foo", ttl=10) as lock:
            lock.release()

        with r.lock("foo", ttl=10) as lock:
            lock.release()
            with pytest.raises(LockNotHeld):
                lock.release()

    def test_high_sleep_small_blocking_timeout(self, r: Redis) -> None:
        # There is no `sleep` that could be longer than the wait.
        lock1 = r.lock("foo", renew=False)
        assert lock1.acquire(blocking=False)
        try:
            assert not r.lock("foo", wait=0.1).acquire()
        finally:
            lock1.release()

    def test_releasing_unlocked_lock_raises_error(self, r: Redis) -> None:
        lock = r.lock("foo")
        with pytest.raises(LockNotHeld):
            lock.release()

    def test_releasing_lock_no_longer_owned_raises_error(self, r: Redis) -> None:
        lock = r.lock("foo")
        lock.acquire(blocking=False)
        # manually change the holder
        r.set("foo", "a")
        with pytest.raises(LockLost):
            lock.release()
        # even though we errored, the token is still cleared
        assert lock.token is None

    def test_extend_lock(self, r: Redis) -> None:
        lock = r.lock("foo", ttl=10)
        assert lock.acquire(blocking=False)
        assert 1000 < r.pttl("foo") <= 10000
        assert lock.extend(10)
        assert 11000 < r.pttl("foo") <= 20000
        lock.release()

    def test_extend_lock_replace_ttl(self, r: Redis) -> None:
        lock = r.lock("foo", ttl=10)
        assert lock.acquire(blocking=False)
        assert 1000 < r.pttl("foo") <= 10000
        assert lock.extend(10, replace_ttl=True)
        assert 1000 < r.pttl("foo") <= 10000
        lock.release()

    def test_extend_lock_float(self, r: Redis) -> None:
        lock = r.lock("foo", ttl=10.5)
        assert lock.acquire(blocking=False)
        assert 1000 < r.pttl("foo") <= 10500
        # What is left counts from the lease as this client knows it, a hundredth less than the cluster's.
        remaining_ms = lock.held.remaining * 1000 if lock.held else 0
        assert lock.extend(10.5)
        assert remaining_ms + 1000 < r.pttl("foo") <= round(remaining_ms + 10500)
        lock.release()

    def test_extending_unlocked_lock_raises_error(self, r: Redis) -> None:
        lock = r.lock("foo", ttl=10)
        with pytest.raises(LockNotHeld):
            lock.extend(10)

    def test_extending_lock_with_no_timeout_raises_error(self, r: Redis) -> None:
        lock = r.lock("foo", ttl=None)
        assert lock.acquire(blocking=False)
        with pytest.raises(WrongUse):
            lock.extend(10)
        lock.release()

    def test_extending_lock_no_longer_owned_raises_error(self, r: Redis) -> None:
        lock = r.lock("foo", ttl=10)
        assert lock.acquire(blocking=False)
        r.set("foo", "a")
        with pytest.raises(LockLost):
            lock.extend(10)

    def test_reacquire_lock(self, r: Redis) -> None:
        lock = r.lock("foo", ttl=10)
        assert lock.acquire(blocking=False)
        assert lock.extend(5, replace_ttl=True)
        assert r.pttl("foo") <= 5000
        assert lock.reacquire()
        assert 1000 < r.pttl("foo") <= 10000
        lock.release()

    def test_reacquiring_unlocked_lock_raises_error(self, r: Redis) -> None:
        lock = r.lock("foo", ttl=10)
        with pytest.raises(LockNotHeld):
            lock.reacquire()

    def test_reacquiring_lock_with_no_timeout_raises_error(self, r: Redis) -> None:
        lock = r.lock("foo", ttl=None)
        assert lock.acquire(blocking=False)
        with pytest.raises(WrongUse):
            lock.reacquire()
        lock.release()

    def test_reacquiring_lock_no_longer_owned_raises_error(self, r: Redis) -> None:
        lock = r.lock("foo", ttl=10)
        assert lock.acquire(blocking=False)
        r.set("foo", "a")
        with pytest.raises(LockLost):
            lock.reacquire()

    def test_context_manager_reacquiring_lock_with_no_timeout_raises_error(self, r: Redis) -> None:
        with r.lock("foo", ttl=None, wait=0) as lock, pytest.raises(WrongUse):
            lock.reacquire()

    def test_context_manager_reacquiring_lock_no_longer_owned_raises_error(self, r: Redis) -> None:
        with pytest.raises(LockLost), r.lock("foo", ttl=10, wait=0):
            r.set("foo", "a")

    def test_lock_error_gives_correct_lock_name(self, r: Redis) -> None:
        r.set("foo", "bar")
        with pytest.raises(LockTimeout) as excinfo, r.lock("foo", wait=0.1):
            pass
        # Instead of `lock_name`, because a lock may have several keys.
        assert [holder["key"] for holder in excinfo.value.holders] == ["foo"]
