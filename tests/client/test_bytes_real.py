"""Values that are bytes, on a real node: through the client, over HTTP, and on a WebSocket."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from dss_client import AsyncClient, Client, VersionConflict
from dss_client.connection import ATTACHED_TYPE, with_attached
from dss_dev.local_cluster import LocalCluster

pytestmark = pytest.mark.cluster

DATA = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def url(real_node: LocalCluster) -> str:
    return real_node.nodes[0].url


@pytest.fixture
def http(url: str, token: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}) as client:
        yield client


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    return request.node.name


def message(document: Any, *parts: bytes) -> bytes:
    return with_attached(json.dumps(document).encode(), list(parts))


def split(data: bytes) -> tuple[Any, bytes]:
    assert data[0] == 0
    end = 5 + int.from_bytes(data[1:5])
    return json.loads(data[5:end]), data[end:]


@pytest.mark.parametrize("transport", ["websocket", "http"])
@pytest.mark.parametrize("near_cache", [False, True])
async def test_through_the_client(url: str, token: str, key: str, transport: Any, near_cache: bool) -> None:
    if near_cache and transport == "http":
        pytest.skip("a near cache needs a WebSocket")
    async with AsyncClient(url, token, transport=transport, near_cache=near_cache) as dss:
        cache = dss.cache
        looks_attached = {"encoding": "attached", "value": 3}
        for data in (b"", b"\x00", b"{", DATA):
            version = await cache.put(key, data)
            for _ in range(3):
                assert await cache.get(key) == data
        assert await cache.cas(key, bytearray(b"cas"), version) > version
        with pytest.raises(VersionConflict):
            await cache.cas(key, b"late", version)
        await cache.add(f"{key}/added", memoryview(b"added"))
        await cache.mput({f"{key}/1": b"one", f"{key}/2": looks_attached, f"{key}/3": b"", f"{key}/4": b"four"})
        names = [key, f"{key}/added", *(f"{key}/{number}" for number in range(1, 6))]
        for _ in range(2):
            found = await cache.mget(names)
            assert list(found.values()) == [b"cas", b"added", b"one", looks_attached, b"", b"four"]


def test_over_http(http: httpx.Client, key: str) -> None:
    headers = {"Content-Type": ATTACHED_TYPE}
    put = http.post(
        "/cache/put", content=message({"key": key, "value": len(DATA), "encoding": "attached"}, DATA), headers=headers
    )
    assert put.json()["ok"], put.text
    plain = http.get("/cache/get", params={"key": key})
    assert plain.headers["Content-Type"] == "application/json"
    assert (plain.json()["encoding"], base64.b64decode(plain.json()["value"])) == ("base64", DATA)
    for accept in (ATTACHED_TYPE, f"application/json, {ATTACHED_TYPE}"):
        answers = (
            http.get("/cache/get", params={"key": key}, headers={"Accept": accept}),
            http.post("/cache/get", json={"key": key}, headers={"Accept": accept}),
        )
        for answer in answers:
            document, data = split(answer.content)
            assert (document["value"], document["encoding"], data) == (len(DATA), "attached", DATA)
            assert answer.headers["Content-Type"] == ATTACHED_TYPE
    several = http.post("/cache/mget", json={"keys": [key, "none", key]}, headers={"Accept": ATTACHED_TYPE})
    document, data = split(several.content)
    assert [item["value"] for item in document["items"]] == [len(DATA), None, len(DATA)]
    assert data == DATA * 2
    text = http.post("/cache/get", json={"key": "none"}, headers={"Accept": ATTACHED_TYPE})
    assert (text.headers["Content-Type"], text.json()["found"]) == ("application/json", False)


@pytest.mark.parametrize(
    ("path", "document", "attached", "status"),
    [
        ("/cache/put", {"key": "k", "value": 9, "encoding": "attached"}, b"abc", 400),
        ("/cache/put", {"key": "k", "value": "abc", "encoding": "attached"}, b"abc", 400),
        ("/cache/add", {"key": "k", "value": 3}, b"abc", 400),
        ("/cache/put", {"key": "k", "value": 300_000, "encoding": "attached"}, b"x" * 300_000, 413),
        ("/cache/put", {"key": "k", "value": 5_000_000, "encoding": "attached"}, b"x" * 5_000_000, 413),
        ("/lock/release", {"key": "k", "client": "c"}, b"abc", 400),
    ],
)
def test_what_is_refused_over_http(http: httpx.Client, path: str, document: Any, attached: bytes, status: int) -> None:
    answer = http.post(path, content=message(document, attached), headers={"Content-Type": ATTACHED_TYPE})
    assert (answer.status_code, answer.json()["ok"]) == (status, False), answer.text


def test_bytes_that_are_announced_and_missing(http: httpx.Client, key: str) -> None:
    answer = http.post("/cache/put", json={"key": key, "value": 3, "encoding": "attached"})
    assert (answer.status_code, answer.json()["field"]) == (400, "value")


def test_on_a_websocket(url: str, token: str, key: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    path = f"ws{url.removeprefix('http')}/ws"
    put = {"id": 1, "op": "cache.put", "request": {"key": key, "value": len(DATA), "encoding": "attached"}}
    get = json.dumps({"id": 2, "op": "cache.get", "request": {"key": key}})
    with (
        connect(path, additional_headers=headers) as plain,
        connect(path, additional_headers={**headers, "Accept": ATTACHED_TYPE}) as ours,
    ):
        plain.send(message(put, DATA))
        # JSON in a binary frame, as the client sends it.
        assert json.loads(plain.recv())["ok"]
        plain.send(get)
        answer = json.loads(plain.recv())
        assert (answer["encoding"], base64.b64decode(answer["value"])) == ("base64", DATA)
        ours.send(get)
        document, data = split(ours.recv())  # type: ignore[arg-type]
        assert (document["id"], document["status"], document["encoding"], data) == (2, 200, "attached", DATA)
        for request, attached in (
            ({**put, "request": {**put["request"], "value": 2}}, b"abc"),  # type: ignore[dict-item]
            ({"id": 1, "op": "locks.release", "request": {"key": "k", "client": "c"}}, b"abc"),
            ({"id": 1, "op": "locks.watch", "request": {"key": "k"}}, b"abc"),
            ({"id": 1, "op": "cancel", "request": {"call": 1}}, b"abc"),
            ({"id": 1, "op": "cache.near.fetch", "request": {"call": 1, "token": 1, "keys": ["k"]}}, b"abc"),
        ):
            ours.send(message(request, attached))
            answer = json.loads(ours.recv())
            assert (answer["id"], answer["code"]) == (1, "invalid"), request


@pytest.mark.parametrize(
    "frame", [b"\x00", b"\x00\xff\xff\xff\xff{}", b"\x00\x00\x00\x00\x02[]", b"\x83\xa3key", "\x00\x00\x00\x00\x02{}"]
)
def test_a_frame_that_is_none(url: str, token: str, frame: Any) -> None:
    with connect(f"ws{url.removeprefix('http')}/ws", additional_headers={"Authorization": f"Bearer {token}"}) as connection:
        connection.send(frame)
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1007


def test_threads_share_bytes_of_a_near_cache(url: str, token: str, key: str) -> None:
    with Client(url, token, near_cache=True) as dss:
        dss.cache.put(key, DATA)
        for _ in range(3):
            assert dss.cache.get(key) == DATA
