"""dss_django on a real node: what Django's own tests of caches do not ask. See test_django_suites.py for those."""

from __future__ import annotations

import asyncio
import io
import os
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import BaseCommand, call_command

from dss_client import Client, LockNotHeld, LockTimeout, Unavailable
from dss_dev.local_cluster import LocalCluster
from dss_django import clients
from dss_django.cache import DSSCache
from dss_django.locks import client as client_of_settings
from dss_django.locks import fencing_token, lock

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::django.core.cache.backends.base.CacheKeyWarning")]

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def url(real_node: LocalCluster) -> str:
    return real_node.nodes[0].url


@pytest.fixture(scope="module")
def dss(url: str, token: str) -> Iterator[Client]:
    with Client(url, token) as client:
        yield client


@pytest.fixture
def space(request: pytest.FixtureRequest) -> str:
    """Of this test's names."""
    return request.node.name.partition("[")[0]


@pytest.fixture
def make_cache(url: str, token: str, space: str) -> Any:
    def make(prefix: str = "", urls: Any = None, **options: Any) -> DSSCache:
        return DSSCache(urls or [url], {"KEY_PREFIX": prefix, "OPTIONS": {"token": token, "namespace": space, **options}})

    return make


def test_values_and_integers(dss: Client, make_cache: Any, space: str) -> None:
    cache = make_cache()
    cache.set("number", 41)
    assert dss.cache.incr(f"{space}//:1:number") == 42, "an integer is stored as one"
    assert cache.get("number") == 42
    for value in (True, None, 2**70, b"\x00", {"a": {1}}):
        cache.set("value", value)
        assert cache.get("value") == value
    assert cache.get_many(["value", "unknown", "number"]) == {"value": {"a": {1}}, "number": 42}


def test_clear_deletes_the_keys_of_this_cache_only(dss: Client, make_cache: Any) -> None:
    one, longer, other = make_cache("a"), make_cache("a/b"), make_cache("a", namespace="other")
    dss.cache.put("elsewhere", 1)
    for cache in (one, longer, other):
        cache.set("key", 1)
        cache.set("key", 2, version=2)
    one.clear()
    assert (one.get("key"), one.get("key", version=2)) == (None, None)
    assert (longer.get("key"), other.get("key"), dss.cache.get("elsewhere")) == (1, 1, 1)


@pytest.mark.parametrize("key", ["a\nb", "\x00", "ä" * 300, "k" * 600, ""])
def test_keys_that_no_name_can_have(make_cache: Any, key: str) -> None:
    cache = make_cache()
    cache.set(key, "value")
    assert (cache.get(key), cache.get(key + "!")) == ("value", None)
    assert cache.delete(key)


def test_get_or_set_computes_once(make_cache: Any) -> None:
    cache = make_cache()
    computed = []
    begun, proceed = threading.Event(), threading.Event()

    def compute() -> str:
        computed.append(1)
        begun.set()
        proceed.wait(60)
        return "value"

    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(cache.get_or_set, "key", compute)
        assert begun.wait(60)
        others = [threads.submit(cache.get_or_set, "key", compute) for _ in range(3)]
        proceed.set()
        assert [one.result(60) for one in (first, *others)] == ["value"] * 4
    assert len(computed) == 1


def test_get_or_set_does_not_wait_longer_than_it_may(make_cache: Any, dss: Client, space: str) -> None:
    cache = make_cache(single_flight=0.2)
    with dss.lock(f"{space}//:1:key"):
        assert cache.get_or_set("key", lambda: "mine") == "mine"


def test_the_asynchronous_methods(make_cache: Any) -> None:
    cache = make_cache()

    async def scene() -> None:
        await cache.aset("key", [1])
        assert await cache.aget("key") == [1]
        assert not await cache.aadd("key", 2)
        assert await cache.aget_or_set("other", lambda: 5) == 5
        assert await cache.aincr("other", 2) == 7
        assert await cache.adecr("other") == 6
        assert await cache.ahas_key("other")
        assert await cache.atouch("key", 60)
        assert await cache.aget_many(["key", "other"]) == {"key": [1], "other": 6}
        assert await cache.aset_many({"x": 1}) == []
        await cache.adelete_many(["x", "key"])
        assert not await cache.adelete("key")
        await cache.aclear()
        assert await cache.aget("other") is None

    asyncio.run(scene())


def test_a_cluster_that_is_away(make_cache: Any) -> None:
    strict = make_cache(urls=NOWHERE, timeout=0.2)
    with pytest.raises(Unavailable):
        strict.get("key")
    lenient = make_cache(urls=NOWHERE, timeout=0.2, on_trouble="miss")
    assert lenient.get("key", "default") == "default"
    assert lenient.set_many({"key": 1}) == ["key"]
    assert lenient.add("key", 1) is False
    assert lenient.get_or_set("key", lambda: "computed") == "computed"
    with pytest.raises(ValueError, match="not found"):
        lenient.incr("key")
    assert lenient.statistics()["trouble"] > 4


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("it is a socket")


@pytest.mark.parametrize("value", [lambda: 1, threading.Lock(), Unpicklable()])
def test_a_value_that_cannot_be_pickled(make_cache: Any, value: Any) -> None:
    cache = make_cache()
    with pytest.raises(pickle.PicklingError, match="cache key 'basket' cannot be pickled"):
        cache.set("basket", value)
    with pytest.raises(pickle.PicklingError, match="cache key 'basket' cannot be pickled"):
        cache.set_many({"other": 1, "basket": [value]})
    assert cache.get_many(["basket", "other"]) == {}


def test_a_key_that_cannot_be_encoded(make_cache: Any) -> None:
    with pytest.raises(ValueError, match="cache key"):
        make_cache().get("\ud800")


def test_reads_are_answered_in_this_process(make_cache: Any) -> None:
    cache = make_cache()
    value = {"id": 42, "tags": ["a"]}
    cache.set("key", value)
    hits = cache.statistics()["hits"]
    assert [cache.get("key") for _ in range(10)] == [value] * 10
    assert cache.get("key") is not cache.get("key")
    assert cache.has_key("key")
    assert cache.get_many(["key", "unknown"]) == {"key": value}
    assert cache.statistics()["hits"] > hits
    cache.set("key", "new")
    assert cache.get("key") == "new"


def test_without_a_near_cache(make_cache: Any) -> None:
    for options in ({"near_cache": False}, {"transport": "http"}):
        cache = make_cache(**options)
        cache.set("key", 1)
        assert [cache.get("key"), cache.get("key")] == [1, 1]
        assert cache.statistics() == {"trouble": 0}


def test_the_size_of_the_near_cache(make_cache: Any) -> None:
    cache = make_cache(near_cache={"max_items": 3})
    for number in range(10):
        cache.set(number, number)
        assert cache.get(number) == number
    assert cache.statistics()["items"] <= 3


def test_processes_that_are_forked_after_the_first_use(make_cache: Any) -> None:
    """As with gunicorn's `preload_app`."""
    cache = make_cache()
    cache.set("key", 0)
    assert cache.get("key") == 0
    for number in range(1, 4):
        child = os.fork()
        if not child:
            is_right = cache.get("key") == number - 1
            cache.set("key", number)
            os._exit(0 if is_right and cache.get("key") == number else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert cache.get("key") == number


@pytest.mark.parametrize(
    "options",
    [
        {"on_trouble": "ignore"},
        {"tokn": "x"},
        {"transport": "udp"},
        {"near_cache": "yes"},
        {"near_cache": {"size": 5}},
        {"near_cache": {"max_items": 0}},
        {"near_cache": True, "transport": "http"},
    ],
)
def test_wrong_options(make_cache: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ImproperlyConfigured):
        make_cache(**options)


def test_caches_of_a_cluster_share_a_client(make_cache: Any) -> None:
    assert make_cache("a")._client is make_cache("b")._client


class TestLock:
    @pytest.fixture(autouse=True)
    def _settings(self, url: str, token: str, settings: Any) -> None:
        settings.DSS = {"URLS": [url], "TOKEN": token}

    def test_one_call_at_a_time(self) -> None:
        @lock("invoice/{number}", wait=0.1)
        def pay(number: int, inner: Any = None) -> Any:
            """Pay."""
            return inner and inner(number)

        def in_thread(number: int) -> Any:
            with ThreadPoolExecutor(1) as threads:
                return threads.submit(pay, number).result(60)

        with pytest.raises(LockTimeout):
            pay(7, in_thread)
        pay(7, lambda number: in_thread(8))
        assert pay.__doc__ == "Pay."

    def test_of_a_coroutine(self) -> None:
        @lock("invoice/{invoice.pk}")
        async def pay(invoice: Any) -> int:
            return await asyncio.to_thread(holders)

        def holders() -> int:
            return len(client_of_settings().call("locks.status", key="invoice/7")["holders"])

        class Invoice:
            pk = 7

        assert asyncio.run(pay(Invoice())) == 1
        assert holders() == 0

    def test_instead_of_a_call_that_gets_no_turn(self) -> None:
        def busy(number: int) -> str:
            return f"{number} is busy"

        @lock("busy/{number}", wait=0.1, busy=busy)
        def pay(number: int) -> str:
            return "paid"

        @lock("busy/{number}", wait=0.1, busy=busy)
        async def pay_async(number: int) -> str:
            return "paid"

        with client_of_settings().lock("busy/1"), ThreadPoolExecutor(1) as threads:
            assert threads.submit(pay, 1).result(60) == "1 is busy"
            assert asyncio.run(pay_async(number=1)) == "1 is busy"
        assert (pay(1), asyncio.run(pay_async(1))) == ("paid", "paid")

    def test_the_fencing_token(self) -> None:
        @lock("token/{number}")
        def inner(number: int) -> int:
            return fencing_token()

        @lock("token/{number}")
        async def in_coroutine(number: int) -> int:
            return fencing_token()

        @lock("token/outer")
        def outer() -> list[int]:
            return [fencing_token(), inner(1), inner(2), fencing_token()]

        first, second, third, again = outer()
        assert 0 < first < second < third
        assert again == first
        assert asyncio.run(in_coroutine(1)) > third
        with pytest.raises(LockNotHeld):
            fencing_token()

    def test_of_a_management_command(self) -> None:
        class Command(BaseCommand):
            stealth_options = ("day",)

            @lock("report/{options[day]}")
            def handle(self, *args: Any, **options: Any) -> str:
                return str(client_of_settings().call("locks.status", key="report/monday")["holders"][0]["fencing_token"])

        class Shorter(BaseCommand):
            stealth_options = ("day",)

            @lock("report/{day}")
            def handle(self, *args: Any, **options: Any) -> str:
                return str(fencing_token())

        for command in (Command, Shorter):
            assert int(call_command(command(), day="monday", skip_checks=True, stdout=io.StringIO())) > 0

    def test_a_name_that_cannot_be_made(self) -> None:
        with pytest.raises(TypeError, match=r"\{id\}"):

            @lock("invoice/{id}")
            def pay(number: int) -> None: ...


def test_a_client_is_made_once(url: str) -> None:
    assert clients.client_for([url], {}) is clients.client_for((url,), {})
